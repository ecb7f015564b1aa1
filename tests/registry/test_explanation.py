"""Explanations are shown for the classes and features that were asked for, and add up in all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier

from registry.errors import InvalidSelection
from registry.explain.explanation import OTHER, Names, Selection, present_contributions
from registry.explain.shap_values import Contributions, Explainer
from registry.model import LoadedModel
from registry.store.add import add_version
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
        ("classes", Selection(classes=("a", "z")), "some of the model's classes"),
        ("classes", Selection(classes=()), "some of the model's classes"),
        ("classes", Selection(classes="some"), "some of the model's classes"),  # type: ignore[arg-type]
        ("values", Selection(classes=("a",)), "the model has no classes"),
        ("values", Selection(top=0), "top must be at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    models: dict[str, LoadedModel], name: str, selection: Selection, reason: str
) -> None:
    with pytest.raises(InvalidSelection, match=reason):
        models[name].explain(ROWS[:1], selection)
