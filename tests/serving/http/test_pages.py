"""The pages without a browser: what is sent, to whom, under which headers, and what a form makes of its values."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import httpx
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from harness.apps import ask_app
from harness.hostile import BREAKING, MARKUP, NAMES, add_hostile
from harness.service import ADMIN_TOKEN
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.http.keys import SCOPES
from serving.http.pages.form import Control
from serving.http.pages.page import number, seconds
from serving.http.pages.work import preview_cell
from serving.settings import Settings

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
JOB_KEYS = {"mine": "the-key-of-one-who-has-a-job", "theirs": "the-key-of-somebody-else"}
KEY = "the-key-of-a-person-who-looks"

MAX_PAGES_BYTES = 200_000
"""Of everything that a first visit of all pages may transfer."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages") / "models"
    add_hostile(root)
    sample = pd.DataFrame(
        {"size": [10.0, 20.0, 30.0, 40.0], "colour": ["red", "blue", "red", "green"], "sold": [True, False, True, True]}
    )
    estimator = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough"), LinearRegression()
    ).fit(sample, [1.0, 2.0, 3.0, 4.0])
    add_trained(root, "house", Trained(estimator=estimator, sample=sample))
    return root


def build_app(root: Path, **options: Any) -> Application:
    settings = Settings(**{"model_dir": root, "data_dir": root.parent / "data", **options})
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def app(root: Path) -> Application:
    return build_app(root, admin_token=ADMIN_TOKEN)


@pytest.fixture(scope="module")
def locked_app(root: Path) -> Application:
    return build_app(root, api_key=KEY, admin_token=ADMIN_TOKEN)


def get(app: Application, path: str, headers: Mapping[str, str] = HTML) -> httpx.Response:
    return ask_app(app, "GET", path, headers=dict(headers))


def bearer(key: str) -> dict[str, str]:
    return {**HTML, "Authorization": f"Bearer {key}"}


class Outline(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


PAGES = (
    "/",
    "/docs",
    "/models/house",
    "/models/hostile",
    "/models/hostile/versions",
    "/models/hostile/importance",
    "/models/hostile/card",
    "/models/hostile/batch",
    "/models/wide",
    "/models/nothing",
    "/jobs/nothing",
    "/entities",
    "/entities/nothing",
    "/admin",
    "/monitoring/hostile",
)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_lets_nothing_in_and_has_nothing_inline(app: Application, path: str) -> None:
    answer = get(app, path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    outline = Outline(answer.text)
    assert all(script.get("src") for script in outline.of("script"))
    assert outline.of("style") == []
    for _, attributes in outline.elements:
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        for name in ("href", "src", "action"):
            assert not re.match(r"(?:\w+:)?//|javascript:", attributes.get(name) or "")


def test_the_root_is_a_page_for_people_and_a_sign_of_life_for_programs(app: Application) -> None:
    assert get(app, "/").headers["content-type"] == "text/html; charset=utf-8"
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = get(app, "/", accept)
        assert answer.json() == {"status": "alive"}
        assert answer.headers["vary"] == "Accept"


def test_all_that_the_names_of_others_say_is_text(app: Application) -> None:
    answer = get(app, "/models/hostile")
    assert "<img src=x" not in answer.text
    assert "<script>document" not in answer.text
    assert "{{ 7*7 }}" in answer.text
    outline = Outline(answer.text)
    names = {attributes.get("name") for _, attributes in outline.elements}
    assert {f"x.{name}" for name in NAMES} <= names
    filled = {f"x.{MARKUP}": MARKUP, "class": BREAKING}
    answer = ask_app(app, "POST", "/models/hostile", data=filled, headers=HTML)
    assert answer.status_code == 200
    assert "must be a number" in answer.text
    assert "<img src=x" not in answer.text


def test_what_the_api_does_not_have_is_no_page_either(app: Application) -> None:
    missing = ("/models/nothing/versions", "/models/nothing/batch", "/jobs/nothing", "/entities/nothing")
    for path in (
        *missing,
        "/models/nothing",
        "/models/%2e%2e",
        f"/models/{MARKUP.replace('/', '')}",
        "/models/house?version=9",
    ):
        answer = get(app, path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "<img src=x" not in answer.text


def test_without_pages_there_is_none_of_them(root: Path) -> None:
    app = build_app(root, pages=False)
    for path in ("/", "/models/house", "/pages/static/x/style.css"):
        answer = get(app, path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_form_comes_back_with_the_answer_of_the_api(app: Application) -> None:
    """All that happens without JavaScript."""
    form = {"x.size": "25", "x.colour": "blue", "x.sold": "false"}
    answer = ask_app(app, "POST", "/models/house", data=form, headers=HTML)
    instance = {"size": 25.0, "colour": "blue", "sold": False}
    said = ask_app(app, "POST", "/v1/models/house:predict", json={"instances": [instance]}).json()["predictions"][0]
    values = [float(data["value"] or "nan") for data in Outline(answer.text).of("data")]
    assert said in values
    shown = {one["name"]: one.get("value") for one in Outline(answer.text).of("input") if "name" in one}
    assert shown["x.size"] == "25"


def test_a_link_shows_the_same_again_and_holds_only_what_was_changed(app: Application) -> None:
    answer = ask_app(app, "POST", "/models/house", data={"x.size": "31", "x.colour": "red"}, headers=HTML)
    link, *saved = (one["href"] for one in Outline(answer.text).of("a") if "x.size" in (one["href"] or ""))
    assert saved == [f"{link}&as=svg", f"{link}&as=html"]
    assert link == "/models/house?x.size=31"
    again = get(app, link)
    assert again.text == answer.text


def test_a_wrong_value_is_refused_at_its_field_and_kept(app: Application) -> None:
    wrong = {"x.size": "much", "x.colour": "mauve", "x.sold": ""}
    answer = ask_app(app, "POST", "/models/house", data=wrong, headers=HTML)
    fields = answer.text.split('<div class="field')[1:]
    reasons = ["must be a number", "must be one of", "must not be null"]
    for field, reason in zip(fields, reasons, strict=True):
        assert 'aria-invalid="true"' in field
        assert reason in field
    assert "much" in fields[0]
    assert "mauve" in fields[1]


def test_two_rows_are_compared(app: Application) -> None:
    answer = get(app, "/models/house?x.size=30&y.size=10&y.colour=green")
    assert "What is different" in answer.text
    assert "Before" in answer.text
    requests = answer.text[answer.text.index("The request, to copy") :]
    assert requests.count("&#34;instances&#34;:[") == 2, "of both verbs, each with both rows"


def test_a_part_of_a_page_is_sent_alone(app: Application) -> None:
    whole, part = get(app, "/models/house"), get(app, "/models/house?part=answer")
    assert part.text.strip().startswith('<div class="answer"')
    assert part.text.strip() in whole.text


def test_files_are_kept_for_ever_under_their_hash(app: Application) -> None:
    page = get(app, "/").text
    paths = re.findall(r'(?:href|src)="(/pages/static/[^"]+)"', page)
    assert len(set(paths)) >= 4
    for path in set(paths):
        answer = get(app, path, {"Accept-Encoding": "identity"})
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        tags = {answer.headers["etag"]}
        for coding in ("gzip", "zstd"):
            zipped = get(app, path, {"Accept-Encoding": coding})
            assert zipped.headers["content-encoding"] == coding
            # this client unpacks one of them
            assert (
                zipped.content == answer.content if coding == "gzip" else zipped.content.startswith(b"\x28\xb5\x2f\xfd")
            )
            assert int(zipped.headers["content-length"]) < len(answer.content)
            tags.add(zipped.headers["etag"])
        assert len(tags) == 3
        known = get(app, path, {"If-None-Match": answer.headers["etag"], "Accept-Encoding": "identity"})
        assert (known.status_code, known.content) == (304, b"")


def test_the_files_of_another_release_are_not_kept(app: Application) -> None:
    """While one release replaces another, a page of the one may ask the other for its files."""
    answer = get(app, "/pages/static/0123456789abcdef/style.css", {})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, no-cache"
    assert get(app, "/pages/static/0123456789abcdef/..%2fpage.py", {}).status_code == 404
    assert get(app, "/pages/static/0123456789abcdef/none.css", {}).status_code == 404


def test_an_unchanged_page_is_not_sent_again(app: Application) -> None:
    first = get(app, "/docs")
    again = get(app, "/docs", {**HTML, "If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_all_pages_together_are_small(app: Application) -> None:
    static = Path("serving/http/pages/static")
    files = sum(len(gzip.compress(path.read_bytes())) for path in static.iterdir())
    pages = sum(len(gzip.compress(get(app, path).content)) for path in PAGES)
    assert files + pages < MAX_PAGES_BYTES


def test_what_only_admins_may_see_is_on_no_page_of_others(app: Application, root: Path) -> None:
    assert "A key is needed" in get(app, "/admin").text
    shown = get(app, "/admin", bearer(ADMIN_TOKEN))
    assert shown.status_code == 200
    assert "Models" in shown.text
    assert shown.headers["cache-control"] == "no-store"
    without = build_app(root)
    assert get(without, "/admin", bearer(ADMIN_TOKEN)).status_code == 404
    assert "data-do" in get(app, "/models/house/versions").text
    assert "data-do" not in get(without, "/models/house/versions").text


def test_a_job_is_shown_to_whoever_may_ask_for_it(root: Path) -> None:
    entries = " ".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}:predict" for name, key in JOB_KEYS.items())
    app = build_app(root, api_keys=entries)
    body = {"operation": "predict", "model": "house", "instances": [{"size": 1.0, "colour": "red", "sold": True}]}
    mine, theirs = map(bearer, JOB_KEYS.values())
    job = ask_app(app, "POST", "/v1/jobs", json=body, headers=mine).json()["id"]
    assert "queued" in get(app, f"/jobs/{job}", mine).text
    assert get(app, f"/jobs/{job}", theirs).status_code == 404
    assert "A key is needed" in get(app, f"/jobs/{job}").text


def test_with_keys_a_page_is_an_empty_shell_for_whoever_has_none(locked_app: Application) -> None:
    for path in PAGES[:1] + PAGES[2:]:
        shell = get(locked_app, path)
        assert shell.status_code == 200
        assert "A key is needed" in shell.text
        assert "house" not in shell.text
        if path not in ("/", "/admin", "/entities"):  # which the menu marks
            assert shell.text == get(locked_app, "/models/unknown").text, "it does not say which models there are"
        wrong = get(locked_app, path, bearer("not-the-key-of-anybody"))
        assert "the key is not known" in wrong.text
        assert "house" not in wrong.text
        assert (
            ask_app(locked_app, "POST", "/models/house", data={"x.size": "1"}).text
            == get(locked_app, "/models/house").text
        )
    assert "house" in get(locked_app, "/", bearer(KEY)).text
    assert "data-link" in get(locked_app, "/models/house", bearer(KEY)).text
    assert get(locked_app, "/models/nothing", bearer(KEY)).status_code == 404
    assert get(locked_app, "/", {}).json() == {"status": "alive"}


def test_spans_of_time_have_the_unit_that_fits() -> None:
    spans = (None, 0.0, 0.0001, 0.25, 3.0, 90.0, 7200.0, 864_000.0)
    assert [seconds(span) for span in spans] == [
        "\N{EN DASH}",
        "0 s",
        "0.1 ms",
        "250 ms",
        "3.0 s",
        "1.5 min",
        "2.0 h",
        "10 d",
    ]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("0.5", 0.5), ("-3", -3.0), ("1e-5", 1e-5), ("007", "007"), ("nan", "nan"), ("", ""), ("class_1", "class_1")],
)
def test_cells_of_a_result_are_numbers_where_they_are_written_as_such(cell: str, shown: str | float) -> None:
    assert preview_cell(cell) == shown


def test_what_a_key_shows_is_not_kept_by_the_browser(locked_app: Application) -> None:
    assert get(locked_app, "/", bearer(KEY)).headers["cache-control"] == "no-store"


def test_what_is_somebodys_is_not_kept_by_the_browser(app: Application) -> None:
    for path in (
        "/jobs/nothing",
        "/entities",
        "/entities/nothing",
        "/models/house?x.size=31",
        "/models/house?x.size=31&as=svg",
    ):
        assert get(app, path).headers["cache-control"] == "no-store", path
    assert get(app, "/models/house").headers["cache-control"] == "private, no-cache"


def test_a_page_asks_the_model_only_with_a_key_that_may(root: Path) -> None:
    entries = " ".join(
        f"{scope}:{hashlib.sha256(secret.encode()).hexdigest()}:{scope}::house"
        for scope, secret in (("read", "a-key-that-may-only-read"), ("predict", "a-key-that-may-predict"))
    )
    app = build_app(root, api_keys=entries)
    reader, asker = bearer("a-key-that-may-only-read"), bearer("a-key-that-may-predict")
    assert "lacks the scope" in get(app, "/models/house", reader).text
    assert "data-answered" in get(app, "/models/house", asker).text
    assert "A key is needed" in get(app, "/models/hostile", asker).text
    assert "hostile" not in get(app, "/", asker).text


@pytest.mark.parametrize("scope", SCOPES)
def test_a_page_shows_no_key_what_the_api_refuses_it(root: Path, scope: str) -> None:
    app = build_app(root, api_keys=f"one:{hashlib.sha256(KEY.encode()).hexdigest()}:{scope}::house")
    for model in ("house", "hostile"):
        for page, twin in (
            ("/models/{}", ""),
            ("/models/{}/versions", ""),
            ("/models/{}/batch", ""),
            ("/models/{}/importance", "/importance"),
            ("/models/{}/card", "/card"),
            ("/monitoring/{}", "/quality"),
            ("/monitoring/{}", "/drift"),
        ):
            refused = get(app, f"/v1/models/{model}{twin}", bearer(KEY)).status_code == 403
            shown = get(app, page.format(model), bearer(KEY)).text
            assert ("A key is needed" in shown) == refused, (model, page)
    for headers, is_known in ((bearer(KEY), True), (HTML, False)):
        for path in ("/docs", "/openapi.json"):
            said = get(app, path, headers).text
            assert "/v1/models/{model}:predict" in said
            assert ("/v1/models/house:predict" in said) == is_known
            assert "hostile" not in said


def test_entities_are_listed_for_whoever_may_read(root: Path) -> None:
    entries = " ".join(
        f"{scope}:{hashlib.sha256(f'a-key-to-{scope}'.encode()).hexdigest()}:{scope}" for scope in ("read", "write")
    )
    app = build_app(root, api_keys=entries)
    body = {"values": {"size": 1.0}, "time": "2026-01-31T12:00:00Z"}
    for name in ("shelf-1", "shelf-2"):
        path = f"/v1/entities/{name}/records"
        assert ask_app(app, "POST", path, json=body, headers=bearer("a-key-to-write")).status_code == 201
    assert "shelf" not in get(app, "/entities", bearer("a-key-to-write")).text
    reader = bearer("a-key-to-read")
    links = [one["href"] for one in Outline(get(app, "/entities", reader).text).of("a")]
    assert {"/entities/shelf-1", "/entities/shelf-2"} <= set(links)
    later = get(app, "/entities?after=shelf-1", reader).text
    assert "/entities/shelf-1" not in later
    assert "/entities/shelf-2" in later
    assert "There are no others" in get(app, "/entities?after=shelf-2", reader).text


def test_cards_show_what_is_asked_of_models_and_how_well_they_answer(root: Path) -> None:
    app = build_app(root, data_dir=root.parent / "figures", admin_token=ADMIN_TOKEN)
    app.service.shared.book.enter_alone()
    instance = {"size": 1.0, "colour": "red", "sold": True}
    for _ in range(3):
        ask_app(app, "POST", "/v1/models/house:predict", json={"instances": [instance]})
    ask_app(app, "POST", "/v1/models/house:predict", json={"instances": [{}]})
    outcomes = {"instances": [instance, instance], "outcomes": [0.0, 1.0]}
    assert ask_app(app, "POST", "/v1/models/house/outcomes", json=outcomes).status_code < 300
    listed = {one["name"]: one for one in get(app, "/v1/models?figures=true", {}).json()["models"]}
    asked = listed["house"]["figures"]["predict"]
    assert (asked["requests"], asked["answered"], asked["refused"]) == (4, 3, {"422": 1})
    error = listed["house"]["quality"]["mean_absolute_error"]
    cards = get(app, "/").text.split('<li class="card"')
    (card,) = (one for one in cards if ">house</a>" in one)
    assert 'data-count="4"' in card
    assert f"<dt>p99</dt><dd>{seconds(asked['seconds']['p99'])}</dd>" in card
    assert "live mean absolute error" in card
    assert f'value="{error}"' in card
    now = datetime.now(UTC)
    earlier = {"instances": [instance], "outcomes": [9.0], "time": (now - timedelta(hours=3)).isoformat()}
    assert ask_app(app, "POST", "/v1/models/house/outcomes", json=earlier).status_code < 300
    again = build_app(root, data_dir=root.parent / "figures")
    (listed_again,) = [
        one for one in get(again, "/v1/models?figures=true", {}).json()["models"] if one["name"] == "house"
    ]
    assert [one["metric"] for one in listed_again["trend"]] == ["mean_absolute_error"] * 2
    assert listed_again["trend"][0]["value"] > listed_again["trend"][1]["value"]
    assert 'aria-label="live mean absolute error by hour' in get(again, "/").text
    assert "figures" not in get(app, "/v1/models", {}).json()["models"][0]
    assert f"<dt>errors</dt><dd>{number(0)}</dd>" in get(app, "/admin", bearer(ADMIN_TOKEN)).text, "201 is none"
    assert get(app, "/v1/models?figures=perhaps", {}).status_code == 422


def test_a_degraded_service_says_so_above_its_models(root: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(root, models)
    (models / "hostile" / "1" / "manifest.json").write_text("{")
    entry = f"one:{hashlib.sha256(KEY.encode()).hexdigest()}:read::house"
    app = build_app(models, admin_token=ADMIN_TOKEN, api_keys=entry)
    for path in ("/", "/admin"):
        said = get(app, path, bearer(ADMIN_TOKEN)).text
        assert "The service is degraded" in said
        assert "<li>hostile/1" in said
    assert "hostile/1" not in get(app, "/", bearer(KEY)).text
    shutil.rmtree(models / "hostile")
    assert "degraded" not in get(build_app(models, admin_token=ADMIN_TOKEN), "/").text


def test_patterns_are_there_for_those_who_develop(app: Application, root: Path) -> None:
    assert get(app, "/pages/patterns").status_code == 404
    shown = get(build_app(root, pages_patterns=True), "/pages/patterns")
    assert shown.status_code == 200
    assert "<b>markup</b>" not in shown.text
    for state in ("answered", "stale", "compared", "refused", "draining", "not allowed", "loading"):
        assert f"An answer: {state}" in shown.text
    shapes = {one["class"] for one in Outline(shown.text).of("div") if (one.get("class") or "").startswith("field ")}
    assert shapes == {f"field {control}" for control in get_args(Control)}


def test_importance_is_shown_where_rows_are_too_few_to_be_told_of(app: Application) -> None:
    shown = get(app, "/models/house/importance")
    assert shown.status_code == 200
    assert "What matters" in shown.text
    assert "coloured by" not in shown.text


def test_an_explanation_is_saved_as_a_file(app: Application) -> None:
    picture = get(app, "/models/house?x.size=31&as=svg")
    assert picture.headers["content-type"] == "image/svg+xml"
    assert picture.headers["content-disposition"] == 'attachment; filename="house-1.svg"'
    assert picture.text.startswith("<svg")
    page = get(app, "/models/house?x.size=31&as=html")
    assert page.text.startswith("<!doctype html>")
    assert picture.text[: picture.text.index(" ")] in page.text
    assert get(app, "/models/house?x.size=much&as=svg").status_code == 422
