"""All trees of an ensemble as one array of nodes, and the kernel that walks them.

The two children of a node lie side by side, so a node needs to know only the left one and going right adds 1. A leaf
is its own left child and no value is greater than its threshold, so a walk that has arrived stays where it is. A
node takes 16 bytes, in a scikit-learn tree 64.

A walk waits for memory at every step: node, value, next node. So eight trees are walked at once for one row; their
loads overlap. No step branches (a comparison adds 0 or 1 to the child's index), and eight walks end together when none
of them has moved. All rows go down eight trees before the next eight, which stay in the processor's cache meanwhile.
Outputs are added tree by tree, in scikit-learn's order. Rows without a missing value need not ask where those go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from registry.kernels.kernel import MATRIX, Kernel, Unsupported, part_of_kernel, read_only, records, writable

NODE = np.dtype([("threshold", "f8"), ("child", "i4"), ("feature", "u2"), ("missing_right", "u1")], align=True)
SUMS = np.dtype([("divisor", "f8"), ("limit", "f8"), ("refuses_missing", "u1")], align=True)
"""The step from sums to outputs: see `_walk`."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A binary tree as arrays over its nodes, the root first; `left` is negative for a leaf.

    A value goes left when it is missing and `missing_left`, or when it is at most the threshold. `values` has shape
    (nodes, outputs); those of inner nodes are not used. `cover` is the weight of the training rows that passed a node,
    which only SHAP values need. `player` is the column that a split is credited to, where that is not `feature`.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    missing_left: NDArray[np.bool_]
    values: NDArray[np.float64]
    cover: NDArray[np.float64] | None = None
    player: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Forest:
    """Flattened trees: `nodes` of dtype NODE, the index of each tree's root, and (nodes, outputs) values.

    `cover` (NaN where a tree has none) and `player` are those of the trees, by node.
    """

    nodes: NDArray[Any]
    roots: NDArray[np.int32]
    values: NDArray[np.float64]
    cover: NDArray[np.float64]
    player: NDArray[np.int32]


def flatten(trees: Sequence[Tree]) -> Forest:
    """All trees in one array, in their order. Raises Unsupported for more than 2^31 nodes or 2^16 features."""
    counts = np.array([len(tree.left) for tree in trees])
    starts = np.cumsum(counts) - counts
    if counts.sum() > np.iinfo(np.int32).max or max(tree.feature.max() for tree in trees) > np.iinfo(np.uint16).max:
        raise Unsupported("its trees have more than 2^31 nodes or 2^16 columns")
    nodes = np.zeros(counts.sum(), NODE)
    values = np.empty((len(nodes), trees[0].values.shape[1]))
    cover, player = np.full(len(nodes), np.nan), np.zeros(len(nodes), np.int32)
    for start, tree in zip(starts.tolist(), trees, strict=True):
        places = start + _places(tree)
        inner = tree.left >= 0
        nodes["threshold"][places] = np.where(inner, tree.threshold, np.inf)
        nodes["child"][places] = np.where(inner, places[tree.left], places)
        nodes["feature"][places] = np.where(inner, tree.feature, 0)
        nodes["missing_right"][places] = inner & ~tree.missing_left
        values[places] = tree.values
        cover[places] = np.nan if tree.cover is None else tree.cover
        player[places] = np.where(inner, tree.feature if tree.player is None else tree.player, 0)
    return Forest(nodes, starts.astype(np.int32), values, cover, player)


def _places(tree: Tree) -> NDArray[np.int64]:
    """The new index of each node: the children of the n-th inner node become 2n + 1 and 2n + 2."""
    inner = np.flatnonzero(tree.left >= 0)
    places = np.zeros(len(tree.left), np.int64)
    places[tree.left[inner]] = 2 * np.arange(len(inner)) + 1
    places[tree.right[inner]] = 2 * np.arange(len(inner)) + 2
    return places


def widen_thresholds(thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds for float64 values that decide as `thresholds` do for the same values rounded to float32.

    Rounding keeps the order, so float32(x) <= t holds exactly for the x up to some number: the largest one that
    rounds to the greatest float32 below or at t. That is the middle between it and the next float32, or, where the
    middle rounds up (to even), the float64 before the middle.
    """
    with np.errstate(over="ignore"):  # beyond the largest float32 there is infinity, and that is right here
        nearest = thresholds.astype(np.float32)
        below = np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)
        above = np.nextafter(below, np.float32(np.inf))
        middle = (below.astype(np.float64) + above.astype(np.float64)) / 2
        widened = np.where(middle.astype(np.float32) <= below, middle, np.nextafter(middle, -np.inf))
    return np.where(np.isfinite(thresholds), widened, thresholds)


LANES = 8


@part_of_kernel
def _fits(row: Any, limit: Any, refuses_missing: Any) -> Any:
    fits = True
    for f in range(row.shape[0]):
        fits &= (abs(row[f]) <= limit) | (math.isnan(row[f]) & (not refuses_missing))
    return fits


@part_of_kernel
def _has_missing(rows: Any) -> Any:
    missing = False
    for r in range(rows.shape[0]):
        for f in range(rows.shape[1]):
            missing |= math.isnan(rows[r, f])
    return missing


@part_of_kernel
def _below(nodes: Any, rows: Any, r: Any, at: Any, missing: Any) -> Any:
    """The node that a walk goes to from this one; `missing` tells whether the row may have missing values."""
    node = nodes[at]
    value = rows[r, node.feature]
    right = value > node.threshold
    if missing:
        right |= math.isnan(value) & (node.missing_right != 0)
    return np.uint64(np.uint32(node.child)) + np.uint64(right)


@part_of_kernel
def _descend(nodes: Any, rows: Any, r: Any, at: Any, missing: Any) -> None:
    """Move eight walks from roots to leaves; they are spelt out, so that registers hold where they are."""
    a, b, c, d, e, f, g, h = at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7]
    while True:
        following = (
            _below(nodes, rows, r, a, missing),
            _below(nodes, rows, r, b, missing),
            _below(nodes, rows, r, c, missing),
            _below(nodes, rows, r, d, missing),
            _below(nodes, rows, r, e, missing),
            _below(nodes, rows, r, f, missing),
            _below(nodes, rows, r, g, missing),
            _below(nodes, rows, r, h, missing),
        )
        moved = (a ^ following[0]) | (b ^ following[1]) | (c ^ following[2]) | (d ^ following[3])
        moved |= (e ^ following[4]) | (f ^ following[5]) | (g ^ following[6]) | (h ^ following[7])
        a, b, c, d, e, f, g, h = following
        if moved == 0:
            break
    at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7] = following


@part_of_kernel
def _finish(rows: Any, sums: Any, out: Any) -> None:
    """Divide the sums; NaN where the estimator would refuse the row."""
    for r in range(rows.shape[0]):
        fits = _fits(rows[r], sums.limit, sums.refuses_missing != 0)
        for k in range(out.shape[1]):
            out[r, k] = out[r, k] / sums.divisor if fits else math.nan


def _walk(rows: Any, nodes: Any, roots: Any, values: Any, start: Any, sums: Any, out: Any) -> None:
    """Fill `out`, shape (rows, outputs), with (start + sum of the trees' values) / divisor.

    With as many values a leaf as outputs, a tree adds to all of them; with fewer, trees take turns. A row with a value
    beyond +-limit, or a missing one where those are refused, is answered NaN: the estimator would raise. `sums` is one
    record of dtype SUMS.
    """
    trees = roots.shape[0]
    width = values.shape[1]
    turns = out.shape[1] // width
    at = np.empty(LANES, np.uint64)  # unsigned: no index is counted from the end
    missing = _has_missing(rows)
    for r in range(rows.shape[0]):
        for k in range(out.shape[1]):
            out[r, k] = start[k]
    for first in range(0, trees, LANES):
        for r in range(rows.shape[0]):
            for j in range(LANES):
                at[j] = np.uint64(np.uint32(roots[min(first + j, trees - 1)]))
            if missing:
                _descend(nodes, rows, r, at, missing=True)
            else:
                _descend(nodes, rows, r, at, missing=False)
            for j in range(min(LANES, trees - first)):
                offset = (first + j) % turns * width
                for k in range(width):
                    out[r, offset + k] += values[at[j], k]
    _finish(rows, sums[0], out)


def _kernel(number: Any) -> Kernel:
    """The walk whose leaves and sums are of this type."""
    roots, values, start = read_only(types.int32, 1), read_only(number, 2), read_only(number, 1)
    return Kernel(_walk, MATRIX, records(NODE), roots, values, start, records(SUMS), writable(number, 2))


WALK = _kernel(types.float64)
WALK_IN_SINGLE = _kernel(types.float32)
"""Sums in float32, as XGBoost does."""
