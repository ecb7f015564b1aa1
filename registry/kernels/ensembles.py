"""Compiled forms of scikit-learn's tree ensembles.

Random forests and gradient boosting compare values rounded to float32 with float64 thresholds, histogram boosting
compares float64. Leaves are multiplied by the learning rate once, here; scikit-learn sums the same products. In the
same way bagging, AdaBoost and isolation forests of trees are forests whose leaves hold what a tree adds to the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import ensemble
from sklearn.base import is_classifier
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble._iforest import _average_path_length
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor
from sklearn.utils import get_tags

from registry.estimator import Compute
from registry.kernels.columns import Plan, Splits, bits_of
from registry.kernels.forest import SUMS, WALK, WALK_IN_SINGLE, Forest, Tree, flatten, widen_thresholds
from registry.kernels.kernel import Unsupported
from registry.kernels.links import Link, binary, exponential, softmax, softmax_of_votes, with_most_probable
from registry.rows.features import Rows

SINGLE = (DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor)
FORESTS = (
    ensemble.ExtraTreesClassifier,
    ensemble.ExtraTreesRegressor,
    ensemble.RandomForestClassifier,
    ensemble.RandomForestRegressor,
)
GRADIENT = (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor)
BAGGING = (ensemble.BaggingClassifier, ensemble.BaggingRegressor)
HISTOGRAM = (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor)

LARGEST_IN_FLOAT32 = float(np.nextafter(2.0**128 - 2.0**103, 0.0))
"""The largest value that rounds to a finite float32; estimators that compute in float32 refuse larger ones."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Trees whose values become margins by (start + sum) / divisor, in float32 if `single`; see `forest.py`."""

    forest: Forest
    start: Rows
    divisor: float = 1.0
    limit: float = np.inf
    refuses_missing: bool = False
    single: bool = False

    def compute(self, link: Link | None) -> Compute:
        """A function from rows, shape (rows, columns), to the margins, or to `link` of them."""
        walk = WALK_IN_SINGLE.load() if self.single else WALK.load()
        number = np.float32 if self.single else np.float64
        nodes, roots, values = self.forest.nodes, self.forest.roots, self.forest.values.astype(number, copy=False)
        start = self.start.astype(number, copy=False)
        sums = np.array([(self.divisor, self.limit, self.refuses_missing)], SUMS)
        outputs = len(start)

        def margins(rows: Rows) -> Any:
            out = np.empty((len(rows), outputs), number)
            walk(rows, nodes, roots, values, start, sums, out)
            return out

        return margins if link is None else lambda rows: link(margins(rows))


@dataclass(frozen=True, slots=True)
class Trees:
    """A tree ensemble, and what an estimator makes of its margins.

    `link` gives the outputs, `decision` what `decision_function` answers, of shape (rows,) or (rows, classes); None
    where the margins are the outputs, and where there is no such function. `are_probabilities` tells what the margins
    are. `explained` has the margin of the second of two classes, where those of both are summed.
    """

    ensemble: Ensemble
    link: Link | None = None
    decision: Callable[[Rows], Rows] | None = None
    are_probabilities: bool = False
    explained: Ensemble | None = None


def sklearn_ensemble(estimator: Any, plan: Plan, *, sparse: bool) -> Trees | None:
    """The trees of an estimator; None for an estimator without.

    Splits by category add columns to `plan`; a sparse matrix has no missing values. Raises Unsupported.
    """
    kind = type(estimator)
    if kind in SINGLE or kind in FORESTS:
        return _forest_ensemble(estimator, refuses_missing=sparse)
    if kind in GRADIENT:
        return _gradient_boosting_ensemble(estimator)
    if kind in BAGGING and are_trees(estimator):
        return _bagged_trees(estimator, refuses_missing=sparse)
    if kind is ensemble.AdaBoostClassifier and are_trees(estimator):
        return _voting_trees(estimator)
    if kind is ensemble.IsolationForest:
        return _isolating_trees(estimator)
    return _histogram_ensemble(estimator, plan) if kind in HISTOGRAM else None


def are_trees(estimator: Any) -> bool:
    """True for bagging and AdaBoost whose members are decision trees."""
    if type(estimator) not in (*BAGGING, ensemble.AdaBoostClassifier):
        return False
    return all(type(member) in SINGLE for member in estimator.estimators_)


def _forest_ensemble(estimator: Any, *, refuses_missing: bool) -> Trees:
    """Decision trees, random forests and extra trees: the mean of the trees' probabilities or values."""
    members = [estimator] if type(estimator) in SINGLE else estimator.estimators_
    classes = np.atleast_1d(estimator.n_classes_).tolist() if is_classifier(estimator) else [1] * estimator.n_outputs_
    refuses_missing = refuses_missing or not get_tags(estimator).input_tags.allow_nan
    mean = _mean([_tree(member, classes) for member in members], refuses_missing=refuses_missing)
    if is_classifier(estimator) and (len(classes) > 1 or type(estimator) is ExtraTreeClassifier):
        return Trees(mean, with_most_probable(classes), are_probabilities=True)
    return Trees(mean, are_probabilities=is_classifier(estimator))


def _mean(trees: list[Tree], *, refuses_missing: bool) -> Ensemble:
    start = np.zeros(trees[0].values.shape[1])
    return Ensemble(flatten(trees), start, float(len(trees)), LARGEST_IN_FLOAT32, refuses_missing)


def _bagged_trees(estimator: Any, *, refuses_missing: bool) -> Trees:
    """Bagging of decision trees, each of which may have seen some of the columns only."""
    members = estimator.estimators_
    classifies = type(estimator) is ensemble.BaggingClassifier
    if classifies and any(len(member.classes_) != estimator.n_classes_ for member in members):
        raise Unsupported("a tree has not seen all classes")
    pairs = zip(members, estimator.estimators_features_, strict=True)
    trees = [
        replace(tree, feature=np.asarray(chosen)[tree.feature]) for tree, chosen in ((_tree(m), f) for m, f in pairs)
    ]
    refuses_missing |= not all(get_tags(member).input_tags.allow_nan for member in members)
    link = with_most_probable([estimator.n_classes_]) if classifies else None
    return Trees(_mean(trees, refuses_missing=refuses_missing), link, are_probabilities=classifies)


def _voting_trees(estimator: Any) -> Trees:
    """AdaBoost of decision trees: each adds its weight to the class that it predicts, and takes from the others."""
    count = estimator.n_classes_
    if count < 2 or any(not np.array_equal(member.classes_, estimator.classes_) for member in estimator.estimators_):
        raise Unsupported("a tree has not seen all classes")
    trees = []
    for member, weight in zip(estimator.estimators_, estimator.estimator_weights_, strict=False):
        tree = _tree(member)
        votes = tree.values.argmax(axis=1)[:, None] == np.arange(count)
        trees.append(replace(tree, values=np.where(votes, weight, -1 / (count - 1) * weight)))
    total = float(estimator.estimator_weights_.sum())
    voted = Ensemble(flatten(trees), np.zeros(count), total, LARGEST_IN_FLOAT32, refuses_missing=True)
    if count > 2:
        return Trees(voted, softmax_of_votes, lambda margins: margins)
    second = [replace(tree, values=tree.values[:, 1:] - tree.values[:, :1]) for tree in trees]
    explained = replace(voted, forest=flatten(second), start=np.zeros(1))
    return Trees(voted, softmax_of_votes, lambda margins: margins[:, 1] - margins[:, 0], explained=explained)


def _gradient_boosting_ensemble(estimator: Any) -> Trees:
    """Gradient boosting; every stage has a tree for each margin."""
    trees = [_tree(member) for member in estimator.estimators_.ravel()]
    scaled = [replace(tree, values=tree.values * estimator.learning_rate) for tree in trees]
    start = _start(estimator)
    boosted = Ensemble(flatten(scaled), start, 1.0, LARGEST_IN_FLOAT32, refuses_missing=True)
    return Trees(boosted, _link(estimator, start), decision_of(start))


def decision_of(start: Rows) -> Callable[[Rows], Rows]:
    """From margins to what `decision_function` answers: a vector for a single margin."""
    return np.ravel if len(start) == 1 else np.asarray


def _isolating_trees(estimator: Any) -> Trees:
    """An isolation forest: the mean path to the leaf where a row ends up, the shorter, the more unusual."""
    divisor = len(estimator.estimators_) * float(_average_path_length([estimator._max_samples])[0])
    if divisor == 0.0:
        raise Unsupported("its trees have seen a single row")
    trees = []
    for place, (member, chosen) in enumerate(zip(estimator.estimators_, estimator.estimators_features_, strict=True)):
        tree = _tree(member)
        paths = estimator._decision_path_lengths[place] + estimator._average_path_length_per_tree[place] - 1.0
        trees.append(replace(tree, feature=np.asarray(chosen)[tree.feature], values=paths[:, None]))
    offset = estimator.offset_

    def decision(margins: Rows) -> Rows:
        scores: Rows = -(2 ** (-margins[:, 0])) - offset
        return scores

    def link(margins: Rows) -> Rows:
        scores = decision(margins)
        return np.column_stack([np.where(scores < 0, -1.0, 1.0), scores])

    return Trees(Ensemble(flatten(trees), np.zeros(1), divisor), link, decision)


def _tree(member: Any, classes: Sequence[int] = ()) -> Tree:
    """A tree; of several outputs, those of each one's `classes` stand next to each other."""
    tree = member.tree_
    return Tree(
        left=tree.children_left,
        right=tree.children_right,
        feature=tree.feature,
        threshold=widen_thresholds(tree.threshold),
        missing_left=tree.missing_go_to_left.astype(bool),
        values=tree.value[:, 0]
        if len(classes) < 2
        else np.hstack([tree.value[:, k, :n] for k, n in enumerate(classes)]),
        cover=tree.weighted_n_node_samples,
    )


def _start(estimator: Any) -> Rows:
    """The margins before the first stage, which are the same for every row."""
    initial = estimator.init_
    if not isinstance(initial, str) and type(initial) not in (DummyClassifier, DummyRegressor):
        raise Unsupported(f"its boosting starts from a {type(initial).__name__}")
    if getattr(initial, "strategy", "prior") in ("stratified", "uniform"):
        raise Unsupported("its boosting starts from chance")
    any_row = np.zeros((1, estimator.n_features_in_))
    start: Rows = estimator._raw_predict_init(any_row)[0].astype(np.float64)
    return start


def _link(estimator: Any, start: Rows) -> Link | None:
    if type(estimator) is ensemble.GradientBoostingRegressor:
        return None
    nothing = np.zeros(len(start))
    if len(start) > 1:
        return softmax(nothing)
    return binary(nothing, slope=2.0 if estimator.loss == "exponential" else 1.0, tie_is_positive=True)


def _histogram_ensemble(estimator: Any, plan: Plan) -> Trees:
    """Histogram boosting; splits by category add columns to `plan`."""
    start: Rows = estimator._baseline_prediction.ravel().astype(np.float64)
    splits = Splits(plan)
    trees = [_histogram_tree(member, splits) for stage in estimator._predictors for member in stage]
    return Trees(Ensemble(flatten(trees), start), _histogram_link(estimator, start), decision_of(start))


def _histogram_tree(member: Any, splits: Splits) -> Tree:
    nodes = member.nodes
    leaf = nodes["is_leaf"].astype(bool)
    feature, threshold = nodes["feature_idx"].astype(np.int64), nodes["num_threshold"].copy()
    player = feature.copy()
    missing_left = nodes["missing_go_to_left"].astype(bool)
    for index in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf):
        codes = bits_of(member.raw_left_cat_bitsets[nodes["bitset_idx"][index]])
        feature[index] = splits.add(feature[index], _goes_left(codes, missing_left=bool(missing_left[index])))
        threshold[index] = Splits.THRESHOLD
    return Tree(
        left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        right=nodes["right"].astype(np.int64),
        feature=feature,
        threshold=threshold,
        missing_left=missing_left,
        values=nodes["value"][:, None],
        cover=nodes["count"].astype(np.float64),
        player=player,
    )


def _goes_left(left: NDArray[np.bool_], *, missing_left: bool) -> Callable[[float], bool]:
    """An unknown category goes the way of a missing value."""
    return lambda code: bool(left[int(code)]) if 0 <= code < len(left) else missing_left


def _histogram_link(estimator: Any, start: Rows) -> Link | None:
    nothing = np.zeros(len(start))
    if type(estimator) is ensemble.HistGradientBoostingClassifier:
        return softmax(nothing) if len(start) > 1 else binary(nothing)
    return exponential if estimator.loss in ("poisson", "gamma") else None
