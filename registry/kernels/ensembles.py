"""Compiled forms of scikit-learn's tree ensembles, from what is left in a fitted one.

Random forests and gradient boosting compare values rounded to float32 with float64 thresholds, histogram boosting
compares float64. Leaves are scaled by the learning rate here, once: the product is the same that is summed there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import get_tags

from registry.kernels.flatten import Forest, Tree, flatten, widen_thresholds
from registry.kernels.links import Link, binary, softmax
from registry.kernels.unsupported import Unsupported
from registry.kernels.walk import WALK, WALK_IN_SINGLE
from registry.model import Compute
from registry.rows.features import Rows

SINGLE = (DecisionTreeClassifier, DecisionTreeRegressor)
FORESTS = (ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor)
GRADIENT = (GradientBoostingClassifier, GradientBoostingRegressor)

LARGEST_IN_FLOAT32 = float(np.nextafter(2.0**128 - 2.0**103, 0.0))
"""The largest value that rounds to a finite float32; estimators that take float32 refuse what is larger."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Trees and how their values become margins: (start + sum) / divisor, in float32 if `single`."""

    forest: Forest
    start: Rows
    divisor: float = 1.0
    limit: float = np.inf
    refuses_missing: bool = False
    single: bool = False

    def compute(self, link: Link | None) -> Compute:
        """A function from rows, shape (rows, columns), to what `link` makes of the margins."""
        walk = WALK_IN_SINGLE.load() if self.single else WALK.load()
        number = np.float32 if self.single else np.float64
        nodes, roots, values = self.forest.nodes, self.forest.roots, self.forest.values.astype(number, copy=False)
        start, divisor = self.start.astype(number, copy=False), self.divisor
        limit, refuses_missing = self.limit, self.refuses_missing
        outputs = len(start)

        def margins(rows: Rows) -> Any:
            out = np.empty((len(rows), outputs), number)
            walk(rows, nodes, roots, values, start, divisor, limit, refuses_missing, out)
            return out

        return margins if link is None else lambda rows: link(margins(rows))


def forest_ensemble(estimator: Any, *, refuses_missing: bool) -> tuple[Ensemble, None]:
    """Decision trees, random forests and extra trees: the mean of the trees' probabilities or values."""
    members = [estimator] if type(estimator) in SINGLE else estimator.estimators_
    if estimator.n_outputs_ != 1:
        raise Unsupported("several outputs")
    trees = [_tree(member) for member in members]
    start = np.zeros(trees[0].values.shape[1])
    refuses_missing = refuses_missing or not get_tags(estimator).input_tags.allow_nan
    return Ensemble(flatten(trees), start, float(len(trees)), LARGEST_IN_FLOAT32, refuses_missing), None


def gradient_boosting_ensemble(estimator: Any) -> tuple[Ensemble, Link | None]:
    """Gradient boosting; every stage has a tree for each margin."""
    trees = [_tree(member) for member in estimator.estimators_.ravel()]
    scaled = [replace(tree, values=tree.values * estimator.learning_rate) for tree in trees]
    start = _start(estimator)
    ensemble = Ensemble(flatten(scaled), start, 1.0, LARGEST_IN_FLOAT32, refuses_missing=True)
    return ensemble, _link(estimator, start)


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
        raise Unsupported(f"boosting that starts from {type(initial).__name__}")
    if getattr(initial, "strategy", "prior") in ("stratified", "uniform"):
        raise Unsupported("boosting that starts from chance")
    any_row = np.zeros((1, estimator.n_features_in_))
    start: Rows = estimator._raw_predict_init(any_row)[0].astype(np.float64)
    return start


def _link(estimator: Any, start: Rows) -> Link | None:
    if type(estimator) is GradientBoostingRegressor:
        return None
    nothing = np.zeros(len(start))
    if len(start) > 1:
        return softmax(nothing)
    return binary(nothing, slope=2.0 if estimator.loss == "exponential" else 1.0, tie_is_positive=True)
