"""The card of a model: what it says, and that all of its forms say it alike, whatever the names in it are."""

from __future__ import annotations

import re
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from harness.apps import ask_app
from harness.hostile import BREAKING, MARKUP, NAMES, add_hostile
from harness.service import ADMIN_TOKEN
from registry.store.add import add_trained
from registry.store.aliases import promote
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.http.card import MAX_FEATURES, markdown
from serving.settings import Settings

MARKDOWN = {"Accept": "text/markdown"}
HTML = {"Accept": "text/html"}
TABLES = MarkdownIt("commonmark", {"linkify": False}).enable("table")

ROWS = 40
HOUSES = pd.DataFrame(
    {
        "size": np.linspace(10.0, 90.0, ROWS),
        "colour": ["red", "blue", "red", "green"] * (ROWS // 4),
        "sold": [True, False] * (ROWS // 2),
    }
)
HOSTILE_TEXTS = (
    "[a link](http://example.org)",
    "![a picture](http://example.org/x.png)",
    "see http://example.org or www.example.org, @somebody, <b>bold</b> & more",
    "`code` **bold** _thin_ ~~gone~~ $x$ \\",
    "a | b \\| c",
    "# heading",
    "- item",
    "---",
    "1. first",
    "+ plus",
    "> quoted",
    "line\nbreak\r\n\n# heading\n\n<script>",
    "\u202eturned\x00\x1b[31m",
    "&lt;b&gt; &#124;",
)


def house(root: Path, **options: Any) -> None:
    transformer = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
    estimator = make_pipeline(transformer, LinearRegression()).fit(HOUSES, HOUSES["size"] * 2)
    add_trained(root, "house", Trained(estimator=estimator, sample=HOUSES, **options))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two versions, whose older one is live, one of two targets, and the hostile ones."""
    root = tmp_path_factory.mktemp("cards") / "models"
    add_hostile(root)
    house(root, source="the town; CC0", feature_labels={"size": "Size in m2"})
    house(root)
    promote(root / "house", "1")
    both = LinearRegression().fit(HOUSES[["size"]], HOUSES[["size"]].assign(twice=HOUSES["size"] * 2))
    add_trained(root, "two", Trained(estimator=both, sample=HOUSES[["size"]], targets=["once", "twice"]))
    return root


def build_app(root: Path, **options: Any) -> Application:
    settings = Settings(model_dir=root, data_dir=root.parent / "data", admin_token=ADMIN_TOKEN, **options)
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def app(root: Path) -> Application:
    return build_app(root)


def get(app: Application, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return ask_app(app, "GET", path, headers=headers or {})


def cells(tokens: list[Token]) -> list[str]:
    """The texts of a parsed document, piece by piece; fails for anything but texts and what we write around them."""
    kinds = {inner.type for token in tokens for inner in token.children or ()}
    assert kinds <= {"text", "text_special", "strong_open", "strong_close"}, kinds
    blocks = {token.type.rpartition("_")[0] or token.type for token in tokens}
    assert blocks <= {"heading", "bullet_list", "list_item", "paragraph", "inline"} | {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }, blocks
    return ["".join(one.content for one in token.children or ()) for token in tokens if token.type == "inline"]


def test_a_card_says_what_a_model_is_made_of_and_what_it_takes(app: Application) -> None:
    card = get(app, "/v1/models/house/card").json()
    shown = get(app, "/v1/models/house").json()
    assert (card["version"], card["live"], card["task"]) == ("1", True, "regression")
    assert [one["name"] for one in card["features"]] == shown["features"]
    size, colour, sold = card["features"]
    assert (size["label"], size["kind"], size["nullable"]) == ("Size in m2", "number", False)
    assert (size["minimum"], size["maximum"]) == (
        shown["schema"]["properties"]["size"]["minimum"],
        shown["schema"]["properties"]["size"]["maximum"],
    )
    assert (colour["kind"], sold["kind"]) == ("category", "boolean")
    assert sorted(colour["categories"]) == ["blue", "green", "red"]
    assert [one["distribution"] for one in card["features"]] == [*shown["distributions"]["features"].values()]
    assert card["data"]["source"] == "the town; CC0"
    assert card["data"]["described_rows"] == ROWS
    assert card["explained"]["spaces"] == ["value"]
    assert card["artefact"]["sha256"] == shown["sha256"]
    assert card["libraries"]["python"]["fitted"] == shown["libraries"]["python"]
    assert card["libraries"]["scikit-learn"]["here"] == shown["libraries"]["scikit-learn"]


def test_the_size_is_that_of_the_file_and_the_history_that_of_the_directory(app: Application, root: Path) -> None:
    card = get(app, "/v1/models/house/versions/2/card").json()
    assert card["artefact"]["bytes"] == (root / "house" / "2" / "model.joblib").stat().st_size
    assert (card["live"], card["history"]["live"], card["history"]["previous"]) == (False, "1", "2")
    assert [one["version"] for one in card["history"]["versions"]] == ["1", "2"]
    assert [(one["act"], one["version"]) for one in card["history"]["changes"]] == [("promoted", "1")]


def test_the_limits_say_what_is_refused(app: Application) -> None:
    def limits(name: str) -> str:
        return " ".join(get(app, f"/v1/models/{name}/card").json()["limits"])

    of_house = limits("house")
    assert "outside the limits of its feature is refused: size." in of_house
    assert "takes the listed values only; others are refused: colour." in of_house
    assert "No value may be missing" in of_house
    assert "no calibration rows" in of_house
    assert "two targets" not in of_house
    assert "2 targets at once: once, twice" in limits("two")
    assert "200 features" in limits("wide")


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (HOUSES.assign(size=HOUSES["size"].where(HOUSES.index > 3)), "may be missing (null) of size"),
        (HOUSES.assign(colour=[f"unlike {n}" for n in range(ROWS)]), "as one that the model has never seen: colour"),
    ],
)
def test_the_limits_name_features_that_take_more(tmp_path: Path, sample: pd.DataFrame, said: str) -> None:
    encoder = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["colour"]), remainder="passthrough"
    )
    estimator = make_pipeline(encoder, HistGradientBoostingClassifier(max_iter=2)).fit(sample, HOUSES["sold"])
    add_trained(tmp_path / "models", "wider", Trained(estimator=estimator, sample=sample))
    assert said in " ".join(get(build_app(tmp_path / "models"), "/v1/models/wider/card").json()["limits"])


def test_a_fallback_says_so_first(tmp_path: Path) -> None:
    root = tmp_path / "models"
    house(root)
    (root / "house" / "1" / "model.joblib").write_bytes(b"damaged")
    card = get(build_app(root, model_fallback=True), "/v1/models/house/card").json()
    assert card["limits"][0].startswith("This version could not be loaded")


def test_the_live_quality_is_that_of_the_version_alone(app: Application) -> None:
    assert get(app, "/v1/models/house/card").json()["quality"] == {"version": "1", "outcomes": 0}
    assert get(app, "/v1/models/house/versions/2/card").json()["quality"] is None


def test_a_quality_that_is_low_is_said_and_no_metric(app: Application) -> None:
    card = get(app, "/v1/models/house/card").json()
    card["quality"] |= {"outcomes": 300, "is_low": True, "r2": -1.0}
    content = markdown(card)
    assert "from the latest 300 outcomes, and worse than in training" in content
    assert "is low" not in content
    assert "| r2 | \N{EN DASH} | \N{MINUS SIGN}1 |" in content


def test_all_forms_have_the_same_parts_and_names(app: Application) -> None:
    page = get(app, "/v1/models/hostile/card", HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.text == get(app, "/models/hostile/card", HTML).text
    written = get(app, "/v1/models/hostile/card", MARKDOWN)
    assert written.headers["content-type"] == "text/markdown; charset=utf-8"
    parsed = TABLES.parse(written.text)
    titles = [after.content for one, after in pairwise(parsed) if (one.type, one.tag) == ("heading_open", "h2")]
    assert len(titles) > 6
    assert re.findall(r"<h2>(.*?)</h2>", page.text) == titles
    said = cells(parsed)
    for name in NAMES:
        assert name in said
        assert f'<th scope="row">{name}' in unescape(page.text.replace("<wbr>", ""))
    assert any(MARKUP in one and BREAKING in one for one in said), "the classes"
    assert "<img src=x" not in page.text + written.text
    assert "<script>" not in page.text + written.text


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
@pytest.mark.parametrize("place", ["source", "name", "category"])
def test_no_text_is_taken_for_markup_in_markdown(app: Application, text: str, place: str) -> None:
    card = get(app, "/v1/models/house/card").json()
    if place == "source":
        card["data"]["source"] = text
    elif place == "name":
        card["features"][0] |= {"name": text, "label": None}
    else:
        card["features"][1] |= {"categories": [text]}
    content = markdown(card)
    said = cells(TABLES.parse(content))
    shown = " ".join(re.sub("[\u202e\x00\x1b]", "\N{REPLACEMENT CHARACTER}", text).split())
    assert any(shown in one for one in said), said
    table = content.split("## Features\n")[1].split("##")[0].strip().splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1
    assert not re.search(r"://|www\.|@|<", content), "which GitHub makes links of"


def test_of_very_many_features_people_are_shown_the_most_important(app: Application) -> None:
    card = get(app, "/v1/models/house/card").json()
    card["features"] = [{**card["features"][0], "name": f"f{n}", "importance": n, "label": None} for n in range(600)]
    content = markdown(card)
    assert "| f599 |" in content
    assert "| f99 |" not in content
    assert f"And {600 - MAX_FEATURES} less important features" in content


def test_without_pages_a_browser_gets_json(root: Path) -> None:
    answer = get(build_app(root, pages=False), "/v1/models/two/card", HTML)
    assert answer.headers["content-type"] == "application/json"


def test_a_card_of_a_model_without_classes_or_probabilities_is_a_card_too(tmp_path: Path) -> None:
    estimator = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    add_trained(tmp_path / "models", "bare", Trained(estimator=estimator, sample=pd.DataFrame({"x": [0.0, 1.0]})))
    answer = get(build_app(tmp_path / "models"), "/v1/models/bare/card", MARKDOWN)
    assert "- **Classes**: 0, 1\n" in answer.text
