"""The importance of features: sums of explanations, points and bins that tell no row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression

from registry.explain.explanation import Selection
from registry.explain.importance import MAX_POINTS, Detail, Importance, select_importance
from registry.model import LoadedModel
from registry.store.add import add_version

ALL = Selection("all")


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.normal(size=(300, 5)), columns=list("abcde"))
    target = np.where(table["a"] + table["b"] > 1, "high", np.where(table["c"] > 0, "middle", "low"))
    model = RandomForestClassifier(20, max_depth=5, random_state=0).fit(table, target)
    return add_version(tmp_path_factory.mktemp("models"), "forest", model, table)


def summed(model: LoadedModel, rows: Any, detail: Detail = "shares", parts: int = 1) -> dict[str, Any]:
    described = model.manifest.distributions
    assert described is not None
    whole = Importance(model.manifest.features, len(rows), detail=detail, distributions=described.features)
    first = 0
    for part in np.array_split(rows, parts):
        one = Importance(model.manifest.features, len(rows), detail=detail, first=first)
        one.add(model.explain(part, ALL), part)
        whole.merge(one.packed())
        first += len(part)
    return whole.result()


def test_importance_is_the_mean_magnitude_by_feature_and_class(forest: LoadedModel) -> None:
    rows = forest.background
    values = forest.contributions(rows).values
    found = summed(forest, rows)
    assert found["rows"] == 100
    for place, output in enumerate(found["outputs"]):
        assert output["class"] == forest.labels.texts[place]
        for feature, name in enumerate("abcde"):
            assert output["importance"][name] == pytest.approx(np.abs(values[:, feature, place]).mean(), rel=1e-9)
            assert output["mean"][name] == pytest.approx(values[:, feature, place].mean(), rel=1e-9, abs=1e-15)
    assert found["importance"]["a"] == pytest.approx(np.abs(values[:, 0]).mean(), rel=1e-9)
    ranked = list(found["importance"].values())
    assert ranked == sorted(ranked, reverse=True)
    assert forest.manifest.explainer is not None
    assert found["importance"] == pytest.approx(forest.manifest.explainer.importance)


def test_parts_add_up_to_the_whole(forest: LoadedModel) -> None:
    rows = forest.background
    whole, parts = summed(forest, rows, "rows"), summed(forest, rows, "rows", parts=7)
    for one, other in zip(whole["outputs"], parts["outputs"], strict=True):
        assert one["points"] == other["points"]
        assert one["importance"] == pytest.approx(other["importance"])


def test_points_of_two_features_cannot_be_joined_to_a_row(forest: LoadedModel) -> None:
    found = summed(forest, forest.background)
    for output in found["outputs"]:
        for points in output["points"].values():
            assert points.keys() == {"shap", "rank"}
            assert points["shap"] == sorted(points["shap"])
            assert set(points["rank"]) <= {step / 10 for step in range(11)}


def test_a_high_rank_stands_beside_the_value_that_it_has(forest: LoadedModel) -> None:
    (high,) = (output for output in summed(forest, forest.background)["outputs"] if output["class"] == "high")
    points = high["points"]["a"]
    assert np.mean(points["rank"][-20:]) > 0.8
    assert np.mean(points["rank"][:20]) < 0.5


def test_dependence_is_the_mean_in_the_bins_of_the_distribution(forest: LoadedModel) -> None:
    rows = forest.background
    values = forest.contributions(rows).values[:, 0, 0]
    curve = summed(forest, rows)["outputs"][0]["dependence"]["a"]
    low, high = curve["edges"][4:6]
    inside = (rows[:, 0] >= low) & (rows[:, 0] < high)
    assert curve["mean"][4] == pytest.approx(values[inside].mean(), rel=1e-9)
    for place, (low, high) in enumerate(zip(curve["edges"][1:-2], curve["edges"][2:-1], strict=True), 1):
        few = ((rows[:, 0] >= low) & (rows[:, 0] < high)).sum() < 5
        assert (curve["mean"][place] is None) == few


def test_nothing_but_sums_is_told_of_rows_that_are_hidden_or_few(forest: LoadedModel) -> None:
    for found in (summed(forest, forest.background, "none"), summed(forest, forest.background[:10])):
        for output in found["outputs"]:
            assert output.keys() == {"class", "base_value", "importance", "mean"}


def test_own_rows_are_shown_with_their_values_and_in_order(forest: LoadedModel) -> None:
    rows = forest.background
    points = summed(forest, rows, "rows")["outputs"][1]["points"]["b"]
    assert points["value"] == rows[:, 1].tolist()
    assert points["shap"] == pytest.approx(forest.contributions(rows).values[:, 1, 1], rel=1e-5)


def test_of_many_rows_evenly_spread_ones_have_points(forest: LoadedModel) -> None:
    rows = np.tile(forest.background, (12, 1))
    rows[:, 0] = np.linspace(-1, 1, len(rows))
    found = summed(forest, rows, "rows", parts=5)
    column = found["outputs"][0]["points"]["a"]["value"]
    assert len(column) == len(rows) // 3 <= MAX_POINTS
    assert column == rows[::3, 0].tolist()


def test_classes_and_top_are_selected_from_what_is_kept(forest: LoadedModel) -> None:
    found = summed(forest, forest.background)
    chosen = select_importance(found, ["low"], 2)
    (output,) = chosen["outputs"]
    assert output["class"] == "low"
    assert list(output["importance"])[2:] == ["(other)"]
    assert set(output["points"]) == set(output["mean"]) == set(list(output["importance"])[:2])
    assert sum(chosen["importance"].values()) == pytest.approx(sum(found["outputs"][1]["importance"].values()))
    assert select_importance(found, None, None) == found


def test_a_regression_has_one_output_without_a_class(tmp_path: Any) -> None:
    table = pd.DataFrame({"x": np.arange(60.0), "flag": [True, False] * 30})
    model = add_version(tmp_path, "line", LinearRegression().fit(table, table["x"] * 2), table)
    (output,) = summed(model, model.background)["outputs"]
    assert "class" not in output
    assert list(output["importance"]) == ["x", "flag"]
    assert output["dependence"]["flag"]["values"] == [False, True]


def test_a_dependence_is_told_apart_by_another_feature(forest: LoadedModel) -> None:
    """Only `a` and `b` together make a row high, so that `a` alone does less where `b` is low."""
    described = forest.manifest.distributions
    assert described is not None
    rows = forest.background
    whole = Importance(
        forest.manifest.features, len(rows), detail="shares", distributions=described.features, pair=("a", "b")
    )
    whole.add(forest.explain(rows, ALL), rows)
    (high,) = (output for output in whole.result()["outputs"] if output["class"] == "high")
    found = high["dependence_by"]
    assert (found["feature"], found["by"]) == ("a", "b")
    assert set(found["edges"]) <= set(described.features["a"].edges)
    low, high_half = found["groups"]
    assert low["edges"][1] == high_half["edges"][0]
    values = forest.contributions(rows).values[:, 0, forest.labels.texts.index("high")]
    a, b = rows[:, 0], rows[:, 1]
    in_bin = (a >= found["edges"][-2]) & (b >= high_half["edges"][0])
    assert in_bin.sum() >= 5
    assert high_half["mean"][-1] == pytest.approx(values[in_bin].mean())
    assert high_half["mean"][-1] > low["mean"][-1]
    sizes = [
        ((a >= start) & (a < end)).sum() for start, end in zip(found["edges"][1:-2], found["edges"][2:-1], strict=True)
    ]
    assert all(size >= 20 for size in sizes)


def test_no_mean_is_of_fewer_rows_than_five(forest: LoadedModel) -> None:
    described = forest.manifest.distributions
    assert described is not None
    rows = forest.background[:22]
    whole = Importance(forest.manifest.features, 22, detail="shares", distributions=described.features, pair=("a", "b"))
    whole.add(forest.explain(rows, ALL), rows)
    found = whole.result()["outputs"][0]["dependence_by"]
    assert len(found["edges"]) == 2
    split = found["groups"][0]["edges"][1]
    counts = [(rows[:, 1] < split).sum(), (rows[:, 1] >= split).sum()][: len(found["groups"])]
    for group, count in zip(found["groups"], counts, strict=True):
        assert (group["mean"][0] is None) == (count < 5)


def test_interactions_are_summed_over_rows(forest: LoadedModel) -> None:
    rows = forest.background[:7]
    whole = Importance(forest.manifest.features, 7, detail="shares")
    selection = Selection("all", interactions=True)
    for part in (rows[:3], rows[3:]):
        one = Importance(forest.manifest.features, 7, detail="shares")
        one.add(forest.explain(part, selection), part)
        whole.merge(one.packed())
    explained = forest.explain(rows, selection)
    for output in whole.result()["outputs"]:
        shown = {tuple(pair["features"]): pair["mean"] for pair in output["interactions"]}
        assert len(shown) == 10
        assert list(shown.values()) == sorted(shown.values(), reverse=True)
        both = [2 * abs(one["classes"][output["class"]]["interactions"]["a"]["b"]) for one in explained]
        assert shown["a", "b"] == pytest.approx(np.mean(both), rel=1e-9)
