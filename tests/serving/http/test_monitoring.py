"""The page of how a model is doing: it shows the quality and the drift of the API, in the window that was chosen."""

from __future__ import annotations

import hashlib
import re
import shutil
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from harness.apps import ask_app
from harness.hostile import BREAKING, MARKUP, add_hostile
from harness.service import ADMIN_TOKEN
from registry.store.add import add_trained
from registry.store.aliases import begin_canary, begin_shadow
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.errors import StoreUnavailable
from serving.http.pages.monitoring import MAX_COLUMNS
from serving.monitoring.quality import QualityHistory
from serving.settings import Settings

HTML = {"Accept": "text/html"}
READER, CALLER, OTHER = (f"the-key-of-one-who-{does}" for does in ("reads", "asks", "has-another-model"))
HOURS = 5


def build_app(root: Path, **options: Any) -> Application:
    settings = Settings(model_dir=root, data_dir=root.parent / "data", **options)
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a classifier whose names attack, one with very many features, and one without outcomes."""
    root = tmp_path_factory.mktemp("monitored") / "models"
    add_hostile(root)
    generator = np.random.default_rng(3)
    sample = pd.DataFrame({MARKUP: generator.normal(size=200), "kind": generator.normal(size=200)})
    labels = np.where(sample[MARKUP] > 0, BREAKING, "plain")
    estimator = LogisticRegression().fit(sample, labels)
    for _ in range(2):
        add_trained(
            root, "judged", Trained(estimator=estimator, sample=sample.assign(label=labels), target="label", margin=100)
        )
    return root


@pytest.fixture(scope="module")
def app(root: Path) -> Application:
    """An app that has been asked, and told what happened, over some hours and with both versions."""
    app = build_app(root, log_predictions="all")
    app.service.shared.book.enter_alone()
    generator = np.random.default_rng(4)
    now = datetime.now(UTC)
    for hour in range(HOURS):
        instances = [{MARKUP: value, "kind": 50.0} for value in generator.normal(size=20).tolist()]
        for version in ("1", "2"):
            path = f"/v1/models/judged/versions/{version}:predict"
            answers = send(app, path, {"instances": instances})["predictions"]
            told = [answer["label"] if place % 4 else "plain" for place, answer in enumerate(answers)]
            moment = (now - timedelta(hours=hour)).isoformat()
            body = {"instances": instances, "outcomes": told, "version": version, "time": moment}
            send(app, "/v1/models/judged/outcomes", body)
    return app


def send(app: Application, path: str, body: Any) -> Any:
    answer = ask_app(app, "POST", path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


def get(app: Application, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return ask_app(app, "GET", path, headers=HTML if headers is None else headers)


def numbers(text: str) -> list[float]:
    return [float(value) for value in re.findall(r'<data class="number" value="([^"]+)"', text)]


def rows(page: str, label: str) -> list[str]:
    """The rows in the body of the table in a scrolled group of this name."""
    table = page.split(f'aria-label="{label}"')[1].split("</table></div>", maxsplit=1)[0]
    return table.split("<tbody>", 1)[1].split("<tr>")[1:]


def test_each_period_is_a_point_and_a_row_that_lead_to_their_predictions(app: Application) -> None:
    page = get(app, "/monitoring/judged?metric=accuracy").text
    quality = get(app, "/v1/models/judged/quality?by=hour", {}).json()
    periods = [(one["version"], period) for one in quality["versions"] for period in one["periods"]]
    assert len(periods) in (2 * HOURS, 2 * HOURS + 2), "an hour may have ended meanwhile"
    assert page.count("<polyline") >= 3, "two versions, and a calibration curve"
    shown = rows(page, "Quality over time")
    assert len(shown) == len(periods)
    newest_first = sorted(periods, key=lambda one: (one[1]["start"], one[0]), reverse=True)
    for row, (version, period) in zip(shown, newest_first, strict=True):
        assert f"<td>{version}</td>" in row
        assert numbers(row)[:2] == [period["outcomes"], period["accuracy"]]
        link = httpx.URL(unescape(re.findall(r'href="([^"]+)"', row)[0]))
        assert (link.path, link.params["model"], link.params["version"]) == ("/v1/predictions", "judged", version)
        assert datetime.fromisoformat(link.params["since"]) == datetime.fromisoformat(period["start"])
        assert datetime.fromisoformat(link.params["until"]) - datetime.fromisoformat(period["start"]) == timedelta(
            hours=1
        )
    links = re.findall(r'<a href="([^"]+)" tabindex="-1"', page)
    assert sorted(links) == sorted(re.findall(r'href="([^"]+)"', row)[0] for row in shown)


def test_without_a_log_nothing_leads_to_predictions(root: Path) -> None:
    page = get(build_app(root), "/monitoring/judged?over=month")
    assert "/v1/predictions" not in page.text
    assert len(rows(page.text, "Quality over time")) >= 2


def test_a_year_is_shown_in_days_and_other_metrics_are_chosen(app: Application) -> None:
    by_day = get(app, "/v1/models/judged/quality?by=day", {}).json()["versions"]
    page = get(app, "/monitoring/judged?over=year&metric=log_loss").text
    assert '<option value="log_loss" selected>log loss</option>' in page
    assert len(rows(page, "Quality over time")) == sum(len(one["periods"]) for one in by_day)
    assert "Quality over time: log loss" in page
    expected = by_day[0]["expected"]["log_loss"]
    assert expected in numbers(page)
    assert '<line class="expected"' in page


def test_the_calibration_curve_is_that_of_the_version(app: Application) -> None:
    quality = get(app, "/v1/models/judged/quality", {}).json()
    (curve,) = next(one for one in quality["versions"] if one["version"] == "1")["calibration"]
    page = get(app, "/monitoring/judged?version=1").text
    part = page.split("<h2>Calibration")[1].split("</section>")[0]
    assert f">{curve['label']}<" in page or unescape(part).startswith(f": {curve['label']}")
    assert part.count("<circle") == part.count('<th scope="row">') == len(curve["points"])
    for point in curve["points"]:
        assert f"{point['predicted']:.1%}" in part
        assert f"{point['observed']:.1%}" in part


def test_drift_is_shown_by_column_the_largest_first_in_the_chosen_window(app: Application) -> None:
    for window in ("1d", "latest"):
        drift = get(app, f"/v1/models/judged/drift?window={window}&version=1", {}).json()
        page = get(app, f"/monitoring/judged?window={window}&version=1").text
        assert f'<option value="{window}" selected>' in page
        features = sorted(drift["features"].items(), key=lambda item: -item[1]["psi"])
        assert [name for name, _ in features] == ["kind", MARKUP], "one was constant and far away"
        in_page = page.split('aria-label="Drift by feature"')[1]
        places = [unescape(in_page.replace("<wbr>", "")).index(f'<th scope="row">{name}') for name, _ in features]
        assert places == sorted(places)
        for _, one in features:
            assert one["psi"] in numbers(in_page)
        assert "above its limit" in in_page or ">alert<" in in_page
        assert f"{features[0][1]['live']['above']:.1%}" in in_page


def test_of_very_many_features_the_page_shows_some(app: Application) -> None:
    shown = get(app, "/v1/models/wide", {}).json()
    send(app, "/v1/models/wide:predict", {"instances": [shown["example"]]})
    page = get(app, "/monitoring/wide").text
    drift = get(app, "/v1/models/wide/drift", {}).json()
    hidden = max(0, len(drift["features"]) + bool(drift["output"]) - MAX_COLUMNS)
    assert (f"And {hidden} features that have moved less" in page) == (hidden > 0)


def test_nothing_known_is_said(app: Application) -> None:
    page = get(app, "/monitoring/hostile").text
    assert "No outcome in this time." in page
    assert "No row in the last 1h." in page
    assert "<polyline" not in page


def test_names_are_text(app: Application) -> None:
    page = get(app, "/monitoring/judged").text
    assert "<img src=x" not in page
    assert "<script>document" not in page
    shown = unescape(page.replace("<wbr>", ""))
    assert BREAKING in shown
    assert MARKUP in shown


@pytest.mark.parametrize("query", ["over=century", "window=3h", "over=%3Cimg%3E"])
def test_a_window_that_there_is_not_is_refused(app: Application, query: str) -> None:
    answer = get(app, f"/monitoring/judged?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "must be one of" in answer.text


def test_a_metric_or_a_class_that_there_is_not_is_left_alone(app: Application) -> None:
    answer = get(app, "/monitoring/judged?metric=fame&curve=nobody")
    assert answer.status_code == 200
    assert "Quality over time: accuracy" in answer.text


def test_without_the_store_everything_else_is_shown(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(*_: Any) -> None:
        raise StoreUnavailable("nobody is there")

    monkeypatch.setattr(QualityHistory, "show", unavailable)
    page = get(app, "/monitoring/judged?version=1")
    assert page.status_code == 200
    assert 'class="banner"' in page.text
    assert "nobody is there" not in page.text
    assert 'aria-label="Drift by feature"' in page.text


def test_the_page_takes_a_key_that_may_read_and_use_the_model(root: Path) -> None:
    scopes = {READER: "read", CALLER: "predict", OTHER: "read::wide"}
    keys = " ".join(f"of:{hashlib.sha256(key.encode()).hexdigest()}:{scope}" for key, scope in scopes.items())
    app = build_app(root, api_keys=keys, admin_token=ADMIN_TOKEN)

    def is_shown(key: str) -> bool:
        return "Monitoring of judged" in get(app, "/monitoring/judged", {**HTML, "Authorization": f"Bearer {key}"}).text

    assert [is_shown(key) for key in (READER, ADMIN_TOKEN)] == [True, True]
    assert [is_shown(key) for key in (CALLER, OTHER, "nobody")] == [False, False, False]


def test_versions_that_are_tried_are_shown_beside_the_live_one(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(root / "judged", copy / "judged")
    begin_canary(copy / "judged", "1", 10.0)
    begin_shadow(copy / "judged", "1")
    app = build_app(copy)
    page = get(app, "/monitoring/judged").text
    canary, shadow = (get(app, f"/v1/models/judged/{kind}", {}).json() for kind in ("canary", "shadow"))
    assert "Canary: version 1" in page
    assert len(rows(page, "The canary beside the live version")) == sum(map(len, canary["versions"].values()))
    part = page.split("Shadow: version 1")[1].split("</section>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', part) == list(shadow["rows"])
