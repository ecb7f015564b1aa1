"""Explanations are shown for the classes and features that were asked for, and add up in all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.naive_bayes import GaussianNB

from registry.errors import CannotAdd, InvalidSelection
from registry.explain.explanation import (
    MAX_WORDS,
    OTHER,
    Names,
    Selection,
    checked_groups,
    checked_labels,
    present_contributions,
)
from registry.explain.shap_values import Contributions, Explainer, both_classes
from registry.model import LoadedModel
from registry.store.add import add_trained, add_version
from registry.training.script import Trained
from tests.registry.parity import numbers, target

TABLE = numbers()
ROWS = TABLE.to_numpy()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    root = tmp_path_factory.mktemp("models")
    forest = RandomForestClassifier(7, random_state=0).fit(ROWS, target(TABLE, 3))
    boosting = GradientBoostingRegressor(n_estimators=7).fit(ROWS, target(TABLE))
    return {
        "classes": add_version(root, "classes", forest, TABLE),
        "values": add_version(root, "values", boosting, TABLE),
    }


def assert_adds_up(item: dict[str, Any]) -> None:
    assert abs(item["base_value"] + sum(item["values"].values()) - item["output"]) < 1e-9


def test_predicted_class_is_explained(models: dict[str, LoadedModel]) -> None:
    model = models["classes"]
    predictions = model.predict(ROWS[:20])
    items = model.explain(ROWS[:20])
    assert {item["label"] for item in items} == {"a", "b", "c"}
    for item, prediction in zip(items, predictions, strict=True):
        assert list(item) == ["label", "space", "method", "output", "base_value", "values"]
        assert item["label"] == prediction["label"]
        assert item["output"] == prediction["probabilities"][item["label"]]
        assert (item["space"], item["method"]) == ("probability", "tree-path-dependent")
        assert tuple(item["values"]) == model.schema.names
        assert_adds_up(item)


def test_value_of_a_regressor_is_explained(models: dict[str, LoadedModel]) -> None:
    items = models["values"].explain(ROWS[:5], Selection(classes="all"))
    assert [item["output"] for item in items] == models["values"].predict(ROWS[:5])
    for item in items:
        assert list(item) == ["space", "method", "output", "base_value", "values"]
        assert_adds_up(item)


@pytest.mark.parametrize("chosen", ["all", ("c", "a")])
def test_classes_asked_for_are_explained(models: dict[str, LoadedModel], chosen: Any) -> None:
    (item,) = models["classes"].explain(ROWS[:1], Selection(classes=chosen))
    (prediction,) = models["classes"].predict(ROWS[:1])
    assert list(item) == ["label", "space", "method", "classes"]
    assert list(item["classes"]) == (["a", "b", "c"] if chosen == "all" else ["c", "a"])
    for name, of_class in item["classes"].items():
        assert of_class["output"] == prediction["probabilities"][name]
        assert_adds_up(of_class)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_largest_contributions_are_kept_and_the_rest_summed(models: dict[str, LoadedModel], top: int) -> None:
    for full, short in zip(
        models["classes"].explain(ROWS[:9]), models["classes"].explain(ROWS[:9], Selection(top=top)), strict=True
    ):
        shown = list(short["values"].items())
        assert shown[:-1] == sorted(full["values"].items(), key=lambda pair: -abs(pair[1]))[:top]
        assert shown[-1][0] == OTHER
        assert_adds_up(short)


@pytest.mark.parametrize("top", [5, 6, 1000])
def test_nothing_is_summed_where_all_features_are_shown(models: dict[str, LoadedModel], top: int) -> None:
    assert models["classes"].explain(ROWS[:1], Selection(top=top)) == models["classes"].explain(ROWS[:1])


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8), top=st.integers(1, 8))
def test_sums_hold_for_any_values_even_where_a_feature_has_the_name_of_the_rest(values: list[float], top: int) -> None:
    explained = np.array(values)[None, :, None]
    found = Contributions(np.array([[sum(values)]]), np.zeros(1), explained)
    names = [OTHER, *(f"x{i}" for i in range(1, len(values)))]
    explainer = Explainer("exact", "value", lambda _rows: found)
    (item,) = present_contributions(found, explainer, Names(names), [None], Selection(top=top))
    assert np.isclose(sum(item["values"].values()), sum(values), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "selection", "reason"),
    [
        ("classes", Selection(classes=("a", "z")), "classes of the model"),
        ("classes", Selection(classes=()), "classes of the model"),
        ("classes", Selection(classes=("a", "a")), "each named once"),
        ("classes", Selection(classes=("a", "b", "c", "a")), "each named once"),
        ("classes", Selection(classes="some"), "classes of the model"),  # type: ignore[arg-type]
        ("values", Selection(classes=("a",)), "the model has no classes"),
        ("values", Selection(top=0), "top must be at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    models: dict[str, LoadedModel], name: str, selection: Selection, reason: str
) -> None:
    with pytest.raises(InvalidSelection, match=reason):
        models[name].explain(ROWS[:1], selection)


def grouped(models: dict[str, LoadedModel], **changes: Any) -> LoadedModel:
    model = models["classes"]
    return dataclasses.replace(model, manifest=msgspec.structs.replace(model.manifest, **changes))


def test_contributions_of_a_group_are_summed_where_its_first_feature_stood(models: dict[str, LoadedModel]) -> None:
    model = grouped(models, groups={"pair": ("x3", "x1")}, feature_labels={"pair": "Both", "x0": "First", "x3": "Gone"})
    for item, plain in zip(model.explain(ROWS[:9]), models["classes"].explain(ROWS[:9]), strict=True):
        assert list(item["values"]) == ["x0", "pair", "x2", "x4"]
        assert item["values"]["pair"] == pytest.approx(plain["values"]["x1"] + plain["values"]["x3"], abs=1e-12)
        assert {name: item["values"][name] for name in ("x0", "x2", "x4")}.items() <= plain["values"].items()
        assert item["labels"] == {"pair": "Both", "x0": "First"}
        assert_adds_up(item)


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"pair": ("x0", "x9")}, "has 'x9', which is not a feature"),
        ({"pair": ("x0", "x1"), "other": ("x1",)}, "'x1' is twice in the groups: in 'pair' and in 'other'"),
        ({"x2": ("x0", "x1")}, "has the name of a feature that is not in it"),
        ({"pair": ()}, "needs a name and at least one feature"),
    ],
)
def test_group_that_cannot_be_is_refused(groups: Any, reason: str) -> None:
    with pytest.raises(CannotAdd, match=reason):
        checked_groups(groups, ["x0", "x1", "x2"])


def test_label_of_nothing_is_refused() -> None:
    with pytest.raises(CannotAdd, match="'x9', which has a label, is not a feature"):
        checked_labels({"x9": "Nine"}, ["x0"])


def test_importance_is_that_of_groups(tmp_path: Path) -> None:
    estimator = GradientBoostingRegressor(n_estimators=7).fit(ROWS, target(TABLE))
    trained = Trained(estimator=estimator, sample=TABLE, groups={"pair": ["x0", "x1"]}, feature_labels={"x4": "Last"})
    model = add_trained(tmp_path, "model", trained)
    assert model.manifest.explainer is not None
    assert model.manifest.explainer.importance.keys() == {"pair", "x2", "x3", "x4"}
    background = model.schema.rows([list(row) for row in model.manifest.background])
    expected = np.abs(model.contributions(background).values[:, :2].sum(axis=1)).mean()
    assert model.manifest.explainer.importance["pair"] == pytest.approx(expected)
    assert model.instance_schema["properties"]["x4"]["title"] == "Last"


def test_sampled_values_come_with_standard_errors(tmp_path: Path) -> None:
    table = numbers(features=12)
    model = add_version(tmp_path, "model", GaussianNB().fit(table.to_numpy(), target(table, 3)), table)
    (item,) = model.explain(table.to_numpy()[:1], Selection(top=2))
    assert list(item) == ["label", "space", "method", "sampled", "output", "base_value", "values", "standard_error"]
    assert (item["sampled"], item["method"]) == (True, "permutation")
    assert list(item["standard_error"]) == list(item["values"])
    assert all(error > 0 for error in item["standard_error"].values())
    (whole,) = model.explain(table.to_numpy()[:1], Selection(classes="all"))
    assert whole["classes"][item["label"]].keys() == {"output", "base_value", "values", "standard_error"}


def test_words_of_a_text_and_those_that_it_lacks_make_its_value() -> None:
    many = {f"word{i}": np.array([i / 100]) for i in range(30)}
    words = [{"text": {"good": np.array([2.0]), "bad": np.array([-3.0])}}, {"text": many}]
    found = Contributions(np.array([[1.5], [9.0]]), np.zeros(1), np.array([[[1.5]], [[9.0]]]), words=words)
    explainer = Explainer("linear", "margin", lambda _rows: found)
    short, long = present_contributions(found, explainer, Names(["text"]), [None, None], Selection())
    assert short["words"] == {"text": {"bad": -3.0, "good": 2.0, OTHER: 2.5}}
    assert len(long["words"]["text"]) == MAX_WORDS + 1
    assert sum(long["words"]["text"].values()) == pytest.approx(9.0)
    both = both_classes(found, 0.0).words
    assert both is not None
    assert both[0]["text"]["good"].tolist() == [-2.0, 2.0]
