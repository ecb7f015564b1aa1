"""Compiled forms of scikit-learn's tree ensembles.

Random forests and gradient boosting compare values rounded to float32 with float64 thresholds, histogram boosting
compares float64. Leaves are multiplied by the learning rate once, here; scikit-learn sums the same products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import ensemble
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import get_tags

from registry.estimator import Compute
from registry.kernels.columns import Plan, Splits, bits_of
from registry.kernels.forest import SUMS, WALK, WALK_IN_SINGLE, Forest, Tree, flatten, widen_thresholds
from registry.kernels.kernel import Unsupported
from registry.kernels.links import Link, binary, exponential, softmax
from registry.rows.features import Rows

SINGLE = (DecisionTreeClassifier, DecisionTreeRegressor)
FORESTS = (
    ensemble.ExtraTreesClassifier,
    ensemble.ExtraTreesRegressor,
    ensemble.RandomForestClassifier,
    ensemble.RandomForestRegressor,
)
GRADIENT = (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor)
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


def sklearn_ensemble(estimator: Any, plan: Plan, *, sparse: bool) -> tuple[Ensemble, Link | None] | None:
    """The trees of an estimator, and the link for their margins; None for an estimator without.

    Splits by category add columns to `plan`; a sparse matrix has no missing values. Raises Unsupported.
    """
    kind = type(estimator)
    if kind in SINGLE or kind in FORESTS:
        return _forest_ensemble(estimator, refuses_missing=sparse)
    if kind in GRADIENT:
        return _gradient_boosting_ensemble(estimator)
    return _histogram_ensemble(estimator, plan) if kind in HISTOGRAM else None


def _forest_ensemble(estimator: Any, *, refuses_missing: bool) -> tuple[Ensemble, None]:
    """Decision trees, random forests and extra trees: the mean of the trees' probabilities or values."""
    members = [estimator] if type(estimator) in SINGLE else estimator.estimators_
    if estimator.n_outputs_ != 1:
        raise Unsupported("its trees have several outputs")
    trees = [_tree(member) for member in members]
    start = np.zeros(trees[0].values.shape[1])
    refuses_missing = refuses_missing or not get_tags(estimator).input_tags.allow_nan
    return Ensemble(flatten(trees), start, float(len(trees)), LARGEST_IN_FLOAT32, refuses_missing), None


def _gradient_boosting_ensemble(estimator: Any) -> tuple[Ensemble, Link | None]:
    """Gradient boosting; every stage has a tree for each margin."""
    trees = [_tree(member) for member in estimator.estimators_.ravel()]
    scaled = [replace(tree, values=tree.values * estimator.learning_rate) for tree in trees]
    start = _start(estimator)
    boosted = Ensemble(flatten(scaled), start, 1.0, LARGEST_IN_FLOAT32, refuses_missing=True)
    return boosted, _link(estimator, start)


def _tree(member: Any) -> Tree:
    tree = member.tree_
    return Tree(
        left=tree.children_left,
        right=tree.children_right,
        feature=tree.feature,
        threshold=widen_thresholds(tree.threshold),
        missing_left=tree.missing_go_to_left.astype(bool),
        values=tree.value[:, 0, :],
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


def _histogram_ensemble(estimator: Any, plan: Plan) -> tuple[Ensemble, Link | None]:
    """Histogram boosting; splits by category add columns to `plan`."""
    start: Rows = estimator._baseline_prediction.ravel().astype(np.float64)
    splits = Splits(plan)
    trees = [_histogram_tree(member, splits) for stage in estimator._predictors for member in stage]
    return Ensemble(flatten(trees), start), _histogram_link(estimator, start)


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
