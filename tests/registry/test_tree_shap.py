"""The kernel's SHAP values are those of shap's TreeExplainer, for every kind of tree ensemble."""

from __future__ import annotations

from decimal import localcontext
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeRegressor

from registry.explain.compiled import attribution
from registry.explain.shap_values import Explainer
from registry.kernels import pattern_tables
from registry.kernels.ensembles import Ensemble
from registry.kernels.forest import Tree, flatten
from registry.kernels.kernel import Unsupported
from registry.kernels.paths import lay_out
from registry.kernels.tree_shap import TREE_SHAP, quadrature
from registry.rows.features import Rows
from tests.registry.ensembles import ENSEMBLES, SEED, SMALL
from tests.registry.explanations import CLOSE, assert_additive, assert_same_alone, explain_trees, path_values, shap
from tests.registry.parity import numbers, target

EXPLAINED = (
    "decision tree, 2 classes",
    "decision tree, 3 classes, missing values",
    "decision tree, numbers",
    "decision tree, numbers, missing values",
    "forest, 2 classes",
    "forest, 2 classes, missing values",
    "forest, 9 classes",
    "forest, numbers",
    "forest, weighted classes",
    "extra trees, 3 classes",
    "extra trees, numbers",
    "boosting, 2 classes",
    "boosting, numbers",
    "boosting, huber",
    "histogram boosting, 2 classes",
    "histogram boosting, 2 classes, missing values",
    "histogram boosting, 3 classes",
    "histogram boosting, numbers",
    "histogram boosting, poisson",
)


@cache
def fitted(name: str) -> tuple[Explainer, Any]:
    estimator, classes, missing = clone(ENSEMBLES[name][0]), *ENSEMBLES[name][1:]
    table = numbers(missing=missing)
    y = target(table, classes)
    y = np.exp(y) if getattr(estimator, "loss", "") == "poisson" else y
    explainer = explain_trees(estimator, table, y)
    return explainer, shap.TreeExplainer(estimator)


def expected(reference: Any, rows: Rows) -> Rows:
    """What shap says, shape (rows, features, outputs)."""
    values: Rows = np.asarray(reference.shap_values(rows, check_additivity=False))
    return values if values.ndim == 3 else values[:, :, None]


@pytest.mark.parametrize("name", EXPLAINED)
@settings(max_examples=15)
@given(data=st.data())
def test_values_are_those_of_shap(name: str, data: st.DataObject) -> None:
    explainer, reference = fitted(name)
    cell = st.floats(-4, 4, width=32)
    cells = [st.one_of(cell, st.just(np.nan)) if ENSEMBLES[name][2] and i == 2 else cell for i in range(5)]
    rows = np.array(data.draw(st.lists(st.tuples(*cells), min_size=1, max_size=8)))
    found, values = explainer.explain(rows), expected(reference, rows)
    np.testing.assert_allclose(found.values[:, :, -values.shape[2] :], values, rtol=0, atol=CLOSE)
    base_values = np.ravel(reference.expected_value)
    np.testing.assert_allclose(found.base_values[-len(base_values) :], base_values, rtol=0, atol=CLOSE)
    assert_additive(found)


@pytest.mark.parametrize("name", EXPLAINED)
def test_interactions_are_those_of_shap_and_add_up_to_the_values(name: str) -> None:
    explainer, reference = fitted(name)
    rows = numbers(missing=ENSEMBLES[name][2]).to_numpy()[:12]
    assert explainer.interact is not None
    values = explainer.explain(rows)
    found = values.with_interactions(explainer.interact(rows)).interactions
    assert found is not None
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found.sum(axis=1), values.values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=2), values.values, rtol=0, atol=1e-12)
    assert (found == found.swapaxes(1, 2)).all()
    theirs = np.asarray(reference.shap_interaction_values(rows))
    theirs = theirs if theirs.ndim == 4 else theirs[..., None]
    np.testing.assert_allclose(found[..., -theirs.shape[3] :], theirs, rtol=0, atol=CLOSE)
    alone = np.concatenate([explainer.interact(row[None]) for row in rows])
    assert alone.tobytes() == explainer.interact(rows).tobytes()


@pytest.mark.parametrize("name", EXPLAINED)
def test_row_alone_is_explained_as_in_a_batch(name: str) -> None:
    explainer, _ = fitted(name)
    assert_same_alone(explainer, numbers(missing=ENSEMBLES[name][2]).to_numpy()[:9])


@pytest.mark.parametrize("name", ["bagging, 2 classes", "bagging, numbers", "bagging, 9 classes, some columns"])
def test_bagged_trees_are_explained_as_their_mean(name: str) -> None:
    estimator, classes, missing = clone(ENSEMBLES[name][0]), *ENSEMBLES[name][1:]
    table = numbers(missing=missing)
    rows = table.to_numpy()[:9]
    found = explain_trees(estimator, table, target(table, classes)).explain(rows)
    assert_additive(found)
    values = np.zeros_like(found.values)
    for member, chosen in zip(estimator.estimators_, estimator.estimators_features_, strict=True):
        of_member = expected(shap.TreeExplainer(member), rows[:, chosen])
        values[:, chosen] += of_member
    np.testing.assert_allclose(found.values, values / len(estimator.estimators_), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("classes", [2, 3])
def test_voting_trees_are_explained_by_their_votes(classes: int) -> None:
    table = numbers()
    rows = table.to_numpy()[:9]
    estimator = AdaBoostClassifier(**SMALL)  # of trees with a single split: its feature has all of a tree's vote
    explainer = explain_trees(estimator, table, target(table, classes))
    found = explainer.explain(rows)
    assert (explainer.space, explainer.method) == ("margin", "tree-path-dependent")
    assert_additive(found)
    margins = estimator.decision_function(rows).reshape(len(rows), -1)
    np.testing.assert_allclose(found.outputs[:, -margins.shape[1] :], margins, rtol=0, atol=CLOSE)
    values = np.zeros((len(rows), 5, classes))
    for member, weight in zip(estimator.estimators_, estimator.estimator_weights_, strict=True):
        tree = member.tree_
        voted = tree.value[:, 0].argmax(axis=1)[:, None] == np.arange(classes)
        votes = np.where(voted, weight, -weight / (classes - 1))
        mean = (votes[1:] * tree.weighted_n_node_samples[1:, None]).sum(axis=0) / tree.weighted_n_node_samples[0]
        values[:, tree.feature[0]] += votes[member.apply(rows)] - mean
    values /= estimator.estimator_weights_.sum()
    if classes == 2:  # the margin of the second class is the difference
        values -= values[:, :, ::-1]
    np.testing.assert_allclose(found.values, values, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("depth", range(1, 31))
def test_tree_of_any_depth_is_explained(depth: int) -> None:
    table = numbers(features=2 * depth)
    y = np.sign(table.to_numpy()).cumprod(axis=1).sum(axis=1)  # every feature changes what the next one means
    estimator = DecisionTreeRegressor(max_depth=depth, splitter="random", **SEED)
    explainer = explain_trees(estimator, table, y)
    rows = table.to_numpy()[:20]
    found = explainer.explain(rows)
    assert_additive(found)
    np.testing.assert_allclose(found.values, expected(shap.TreeExplainer(estimator), rows), rtol=0, atol=CLOSE)


def chain(length: int) -> tuple[pd.DataFrame, Any]:
    """A table on which a tree asks for one feature after the other: the i-th row is the first that has feature i."""
    table = pd.DataFrame(np.eye(length), columns=[f"x{i}" for i in range(length)])
    return table, np.arange(length, 0.0, -1.0) ** 2 / length


@pytest.mark.parametrize("length", [2, 15, 16, 17, 18, 31, 32, 33, 34, 60])
def test_path_of_many_features_is_explained_exactly(length: int) -> None:
    table, y = chain(length)
    estimator = DecisionTreeRegressor(**SEED)
    explainer = explain_trees(estimator, table, y)
    assert estimator.get_depth() == length - 1
    rows = np.vstack([table.to_numpy()[[0, -2]], np.ones(length), np.zeros(length)])
    found = explainer.explain(rows)
    assert_additive(found)
    with localcontext(prec=100):
        exact = np.array([path_values(estimator.tree_, row) for row in rows])
    np.testing.assert_allclose(found.values[:, :, 0], exact, rtol=0, atol=CLOSE)


def test_quadrature_has_as_many_points_as_the_longest_path_needs() -> None:
    """A row that always goes the way of few: products of nearly t alone, the hardest there are for fewer points."""
    for length in (15, 16, 17, 18, 24, 32, 33, 48):
        inner = np.arange(length)
        left, right = np.full(2 * length + 1, -1), np.full(2 * length + 1, -1)
        left[2 * inner], right[2 * inner] = 2 * inner + 1, 2 * inner + 2
        cover, values = np.empty(2 * length + 1), np.zeros(2 * length + 1)
        cover[::2] = 1e-3 ** np.arange(length + 1)
        cover[1::2] = cover[:-1:2] - cover[2::2]
        values[-1] = 1000.0
        feature = np.repeat(np.arange(length + 1), 2)[: 2 * length + 1] % length
        thresholds = np.full(2 * length + 1, 0.5)
        forest = flatten([Tree(left, right, feature, thresholds, np.ones(len(left), bool), values[:, None], cover)])
        attribute, *_ = attribution(Ensemble(forest, np.zeros(1)), np.arange(length, dtype=np.int32), length)
        tree = SimpleNamespace(
            children_left=left,
            children_right=right,
            feature=feature,
            threshold=thresholds,
            weighted_n_node_samples=cover,
            value=values[:, None, None],
        )
        rows = np.ones((2, length))
        rows[1, length // 2] = 0.0
        with localcontext(prec=300):
            exact = np.array([path_values(tree, row) for row in rows])
        np.testing.assert_allclose(attribute(rows)[:, :, 0], exact, rtol=0, atol=CLOSE)


def grown(rng: Any, features: int, splits: int, outputs: int) -> Tree:
    """A tree that splits a leaf at random as often as that; shares need not add up, and missing values go right."""
    left, right = [-1], [-1]
    for _ in range(splits):
        leaf = rng.choice([node for node, child in enumerate(left) if child < 0])
        left[leaf], right[leaf] = len(left), len(left) + 1
        left += [-1, -1]
        right += [-1, -1]
    count = len(left)
    cover = np.ones(count)
    for node in range(count):
        if left[node] >= 0:
            cover[[left[node], right[node]]] = cover[node] * rng.uniform(0.05, 0.95, 2)
    feature, threshold = rng.integers(0, features, count), rng.normal(size=count)
    no = np.zeros(count, bool)
    return Tree(np.array(left), np.array(right), feature, threshold, no, rng.normal(size=(count, outputs)), cover)


def named(tree: Tree, output: int) -> SimpleNamespace:
    """The tree with scikit-learn's names, and one of its outputs."""
    return SimpleNamespace(
        children_left=tree.left,
        children_right=tree.right,
        feature=tree.feature,
        threshold=tree.threshold,
        weighted_n_node_samples=tree.cover,
        value=tree.values[:, output, None, None],
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_trees_are_explained_by_their_definition(seed: int) -> None:
    """Trees from one leaf to paths of dozens of features, some of which split again and again."""
    rng = np.random.default_rng(seed)
    features, width = int(rng.integers(1, 40)), int(rng.integers(1, 4))
    outputs = width * int(rng.integers(1, 3))
    sizes = [0, 1, 2, 3, *rng.integers(4, 60, 6)]
    trees = [grown(rng, features, splits, width) for splits in sizes]
    rows = rng.normal(size=(20, features)).astype(np.float32).astype(np.float64)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    expected = np.zeros((len(rows), features, outputs))
    for index, tree in enumerate(trees):
        for output in range(width):
            place = index * width % outputs + output
            with localcontext(prec=100):
                exact = [path_values(named(tree, output), row) for row in rows]
            expected[:, :, place] += np.array(exact, np.float64)
    ensemble = Ensemble(flatten(trees), np.zeros(outputs))
    attribute, base_values, pairs = attribution(ensemble, np.arange(features, dtype=np.int32), features)
    found = attribute(rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert b"".join(attribute(row[None]).tobytes() for row in rows) == found.tobytes()
    sums = base_values + found.sum(axis=1)
    np.testing.assert_allclose(sums, ensemble.compute(None)(rows), rtol=0, atol=1e-12)
    assert b"".join(pairs(row[None]).tobytes() for row in rows) == pairs(rows).tobytes()


def test_trees_with_a_table_are_explained_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """All, some or none of them, whatever memory there is for tables."""
    rng = np.random.default_rng(1)
    trees = [grown(rng, 4, splits, 2) for splits in (0, 1, 7, 7, 8, 5, 7, 3)]
    rows = rng.normal(size=(100, 4))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    ensemble, players = Ensemble(flatten(trees), np.zeros(2)), np.arange(4, dtype=np.int32)
    found = {}
    for memory, chosen in ((1 << 20, [0, 1, 1, 1, 0, 1, 1, 1]), (20_000, [0, 1, 1, 0, 0, 0, 0, 0]), (0, [0] * 8)):
        monkeypatch.setattr(pattern_tables, "MAX_BYTES", memory)
        paths = lay_out(ensemble.forest, 2, players)
        tables = pattern_tables.pattern_tables(paths, quadrature(4), TREE_SHAP.load())
        assert tables.chosen.tolist() == chosen
        assert tables.values.nbytes <= memory
        found[memory] = attribution(ensemble, players, 4).values(rows)
    np.testing.assert_allclose(found[1 << 20], found[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found[20_000], found[0], rtol=0, atol=1e-13)


def small(*, cover: Any) -> Tree:
    """A root and two leaves."""
    no, values = np.full(3, -1), np.array([[0.0], [1.0], [2.0]])
    left, right = np.array([1, -1, -1]), np.array([2, -1, -1])
    return Tree(left, right, np.maximum(no, 0), np.zeros(3), np.ones(3, bool), values, cover)


def test_trees_that_do_not_say_their_covers_are_not_explained() -> None:
    for cover in (None, np.array([2.0, 2.0, 0.0])):
        with pytest.raises(Unsupported, match="how many training rows"):
            attribution(Ensemble(flatten([small(cover=cover)]), np.zeros(1)), np.zeros(1, np.int32), 1)


def test_tree_of_a_single_node_need_not_say_its_cover() -> None:
    nothing = np.zeros(1, np.int64)
    leaf = Tree(nothing - 1, nothing - 1, nothing, np.zeros(1), np.ones(1, bool), np.full((1, 1), 0.5))
    forest = flatten([leaf, small(cover=np.array([4.0, 3.0, 1.0])), leaf])
    attribute, base_values, _ = attribution(Ensemble(forest, np.zeros(1)), np.zeros(1, np.int32), 1)
    assert base_values.tolist() == [0.5 + 1.25 + 0.5]
    assert attribute(np.ones((1, 1)))[0, 0, 0] == pytest.approx(0.75)


def test_path_that_asks_the_same_feature_again_and_again_is_explained() -> None:
    table = numbers(features=2)
    estimator = DecisionTreeRegressor(**SEED)
    explainer = explain_trees(estimator, table, target(table))
    assert estimator.get_depth() > 8
    rows = table.to_numpy()[:50]
    np.testing.assert_allclose(
        explainer.explain(rows).values, expected(shap.TreeExplainer(estimator), rows), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeRegressor(),
        RandomForestRegressor(n_estimators=3),
        GradientBoostingRegressor(n_estimators=3),
        HistGradientBoostingRegressor(max_iter=3),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_trees_of_a_single_node_credit_nobody(estimator: Any) -> None:
    table = numbers()
    found = explain_trees(estimator, table, np.full(len(table), 2.5)).explain(table.to_numpy()[:3])
    assert not found.values.any()
    assert found.base_values.tolist() == [2.5]
    assert found.outputs.tolist() == [[2.5]] * 3


@pytest.mark.parametrize(("name", "total"), [("forest, 2 classes", 1.0), ("boosting, 2 classes", 0.0)])
def test_classes_of_a_binary_model_mirror_each_other(name: str, total: float) -> None:
    explainer, _ = fitted(name)
    found = explainer.explain(numbers().to_numpy()[:5])
    assert (found.values[:, :, 0] == -found.values[:, :, 1]).all()
    assert np.allclose(found.outputs.sum(axis=1), total)
    assert np.allclose(found.base_values.sum(), total)


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("forest, 2 classes", "probability"),
        ("forest, numbers", "value"),
        ("boosting, 2 classes", "margin"),
        ("boosting, numbers", "value"),
        ("histogram boosting, 3 classes", "margin"),
        ("histogram boosting, poisson", "margin"),
        ("histogram boosting, numbers", "value"),
    ],
)
def test_space_says_what_is_explained(name: str, space: str) -> None:
    assert fitted(name)[0].space == space


def test_multi_class_gradient_boosting_is_explained_though_shap_does_not() -> None:
    table = numbers()
    estimator = GradientBoostingClassifier(**SMALL)
    explainer = explain_trees(estimator, table, target(table, 3))
    rows = table.to_numpy()[:20]
    found = explainer.explain(rows)
    assert_additive(found)
    np.testing.assert_allclose(found.outputs, estimator.decision_function(rows), rtol=0, atol=CLOSE)
    start = 0.0
    for stage in range(len(estimator.estimators_)):
        start = start + shap.TreeExplainer(estimator.estimators_[stage, 2]).shap_values(rows)
    np.testing.assert_allclose(found.values[:, :, 2], start * estimator.learning_rate, rtol=0, atol=CLOSE)
