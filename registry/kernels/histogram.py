"""Compiled forms of scikit-learn's histogram gradient boosting.

A split by category asks whether the category is in a set. The set becomes a column of its own: 0 for the categories
that go left, 1 for those that go right, looked up from the feature's own value. So walking needs to know nothing of
categories.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from registry.features import Rows
from registry.kernels.columns import Computed, Tabled
from registry.kernels.ensembles import Ensemble
from registry.kernels.flatten import Tree, flatten
from registry.kernels.links import Link, binary, exponential, softmax
from registry.kernels.unsupported import Unsupported

HISTOGRAM = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)

Plan = list[Computed | Tabled]


def histogram_ensemble(estimator: Any, plan: Plan) -> tuple[Ensemble, Link | None]:
    """Histogram boosting; columns for splits by category are added to `plan`. Raises Unsupported."""
    start: Rows = estimator._baseline_prediction.ravel().astype(np.float64)
    splits: dict[Tabled, int] = {}
    trees = [_tree(member, plan, splits) for stage in estimator._predictors for member in stage]
    plan += splits
    return Ensemble(flatten(trees), start), _link(estimator, start)


def _tree(member: Any, plan: Plan, splits: dict[Tabled, int]) -> Tree:
    nodes = member.nodes
    leaf = nodes["is_leaf"].astype(bool)
    feature, threshold = nodes["feature_idx"].astype(np.int64), nodes["num_threshold"].copy()
    player = feature.copy()
    missing_left = nodes["missing_go_to_left"].astype(bool)
    for index in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf):
        bits = _members(member.raw_left_cat_bitsets[nodes["bitset_idx"][index]])
        split = _split_column(plan[feature[index]], bits, missing_left=bool(missing_left[index]))
        feature[index] = splits.setdefault(split, len(plan) + len(splits))
        threshold[index] = 0.5
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


def _members(bitset: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which of the codes 0 to 255 are in a set of eight 32-bit words."""
    members: NDArray[np.bool_] = (bitset[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(bool).ravel()
    return members


def _split_column(column: Computed | Tabled, left: NDArray[np.bool_], *, missing_left: bool) -> Tabled:
    """0 where the category goes left, 1 where it goes right. What is no known category goes where missing goes."""
    if isinstance(column, Computed):
        raise Unsupported("a split by category of a computed number")

    def side(code: float) -> float:
        goes_left = left[int(code)] if 0 <= code < len(left) else missing_left
        return 0.0 if goes_left else 1.0

    return Tabled(column.source, tuple(map(side, column.table)), column.searched)


def _link(estimator: Any, start: Rows) -> Link | None:
    nothing = np.zeros(len(start))
    if type(estimator) is HistGradientBoostingClassifier:
        return softmax(nothing) if len(start) > 1 else binary(nothing)
    return exponential if estimator.loss in ("poisson", "gamma") else None
