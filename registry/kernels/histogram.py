"""Compiled forms of scikit-learn's histogram gradient boosting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from registry.kernels.ensembles import Ensemble
from registry.kernels.flatten import Tree, flatten
from registry.kernels.links import Link, binary, exponential, softmax
from registry.kernels.splits import Plan, Splits
from registry.rows.features import Rows

HISTOGRAM = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)


def histogram_ensemble(estimator: Any, plan: Plan) -> tuple[Ensemble, Link | None]:
    """Histogram boosting; columns for splits by category are added to `plan`. Raises Unsupported."""
    start: Rows = estimator._baseline_prediction.ravel().astype(np.float64)
    splits = Splits(plan)
    trees = [_tree(member, splits) for stage in estimator._predictors for member in stage]
    return Ensemble(flatten(trees), start), _link(estimator, start)


def _tree(member: Any, splits: Splits) -> Tree:
    nodes = member.nodes
    leaf = nodes["is_leaf"].astype(bool)
    feature, threshold = nodes["feature_idx"].astype(np.int64), nodes["num_threshold"].copy()
    player = feature.copy()
    missing_left = nodes["missing_go_to_left"].astype(bool)
    for index in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf):
        bits = _members(member.raw_left_cat_bitsets[nodes["bitset_idx"][index]])
        feature[index] = splits.add(feature[index], _goes_left(bits, missing_left=bool(missing_left[index])))
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


def _members(bitset: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which of the codes 0 to 255 are in a set of eight 32-bit words."""
    members: NDArray[np.bool_] = (bitset[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(bool).ravel()
    return members


def _goes_left(left: NDArray[np.bool_], *, missing_left: bool) -> Callable[[float], bool]:
    """What is no known category goes where missing goes."""
    return lambda code: bool(left[int(code)]) if 0 <= code < len(left) else missing_left


def _link(estimator: Any, start: Rows) -> Link | None:
    nothing = np.zeros(len(start))
    if type(estimator) is HistGradientBoostingClassifier:
        return softmax(nothing) if len(start) > 1 else binary(nothing)
    return exponential if estimator.loss in ("poisson", "gamma") else None
