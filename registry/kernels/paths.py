"""What of trees can be known before a row is seen, laid out for the kernel of SHAP values.

A tree's splits lie level by level, and the children of the i-th split are the tree's nodes 2i + 1 and 2i + 2. So a
walk down all of a tree is a loop over its splits, and a walk up is the same loop backwards. A split takes 64 bytes, one
cache line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.kernels.flatten import Forest
from registry.kernels.unsupported import Unsupported

SPLIT = np.dtype(
    [
        ("threshold", "f8"),
        ("zero_left", "f8"),
        ("zero_right", "f8"),
        ("share_left", "f8"),
        ("share_right", "f8"),
        ("node", "i4"),
        ("before", "i4"),
        ("column", "i4"),
        ("slot", "i4"),
        ("missing_right", "u1"),
    ],
    align=True,
)
"""`share` is the part of a node's training rows that a child got; `zero` is the product of the shares that all splits
by the same player gave on the way to that child. `before` is the node below the last of those splits (this one not
counted), 0 if there is none. `slot` is the player's place among the tree's own."""

TREE = np.dtype(
    [(name, "i4") for name in ("split", "splits", "leaf", "leaves", "slot", "slots", "blocks", "output")], align=True
)
"""Where a tree's splits, leaves and slots begin and how many there are; how many blocks of quadrature points it needs;
the first output that it adds to."""

BLOCK = 8
"""Quadrature points that are computed with at once."""

MOST_BLOCKS = 16
"""For at most 256 players on a path."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Trees as the kernel takes them: `leaves` are nodes with `values` (leaves, outputs), `slots` players."""

    splits: NDArray[Any]
    leaves: NDArray[np.int32]
    values: NDArray[np.float64]
    slots: NDArray[np.int32]
    trees: NDArray[Any]
    expected: NDArray[np.float64]
    """The sum of the trees' means over their training rows, shape (outputs,)."""


@dataclass(frozen=True, slots=True)
class _Nodes:
    """By node of all trees: its tree, parent, level, and what SPLIT says of it."""

    tree: NDArray[np.int64]
    level: NDArray[np.int64]
    share: NDArray[np.float64]
    zero: NDArray[np.float64]
    reached: NDArray[np.float64]
    before: NDArray[np.int64]
    players: NDArray[np.int64]


def lay_out(forest: Forest, outputs: int) -> Paths:
    """The paths of all trees, which take turns at the outputs. Raises Unsupported where covers are not positive."""
    sizes = np.diff(forest.roots, append=len(forest.nodes))
    single = np.repeat(sizes, sizes) == 1  # a tree of one node has nothing to share out
    if not (single | (forest.cover > 0.0)).all():
        raise Unsupported("trees that do not say how many training rows came by")
    child = forest.nodes["child"].astype(np.int64)
    inner = child != np.arange(len(child))
    nodes = _follow(forest, child, inner)
    splits = np.flatnonzero(inner)
    splits = splits[np.lexsort((splits, nodes.level[splits], nodes.tree[splits]))]
    leaves = np.flatnonzero(~inner)
    trees = len(forest.roots)
    first_split, split_count = _runs(nodes.tree[splits], trees)
    first_leaf, leaf_count = _runs(nodes.tree[leaves], trees)
    place = np.zeros(len(child), np.int64)
    ordinal = np.arange(len(splits)) - first_split[nodes.tree[splits]]
    place[child[splits]], place[child[splits] + 1] = 2 * ordinal + 1, 2 * ordinal + 2
    slots, slot = np.unique(nodes.tree[splits] * (1 + forest.player.max()) + forest.player[splits], return_inverse=True)
    first_slot, slot_count = _runs(slots // (1 + forest.player.max()), trees)
    width = forest.values.shape[1]
    table = np.zeros(trees, TREE)
    table["split"], table["splits"] = first_split, split_count
    table["leaf"], table["leaves"] = first_leaf, leaf_count
    table["slot"], table["slots"] = first_slot, slot_count
    table["blocks"] = -(-np.maximum.reduceat(nodes.players, forest.roots) // (2 * BLOCK))
    table["output"] = np.arange(trees) % (outputs // width) * width
    if table["blocks"].max() > MOST_BLOCKS:
        raise Unsupported("too many features on a path")
    expected = np.zeros((outputs // width, width))
    np.add.at(expected, nodes.tree[leaves] % len(expected), nodes.reached[leaves, None] * forest.values[leaves])
    return Paths(
        splits=_packed(forest, nodes, splits, place, slot - first_slot[nodes.tree[splits]]),
        leaves=place[leaves].astype(np.int32),
        values=np.ascontiguousarray(forest.values[leaves]),
        slots=(slots % (1 + forest.player.max())).astype(np.int32),
        trees=table,
        expected=expected.ravel(),
    )


def _follow(forest: Forest, child: NDArray[np.int64], inner: NDArray[np.bool_]) -> _Nodes:
    """Go down all trees at once, level by level."""
    count = len(child)
    roots = forest.roots.astype(np.int64)
    parent = np.full(count, -1)
    tree = np.repeat(np.arange(len(roots)), np.diff(roots, append=count))
    nodes = _Nodes(
        tree,
        np.zeros(count, np.int64),
        np.ones(count),
        np.ones(count),
        np.ones(count),
        roots[tree],
        np.zeros(count, int),
    )
    here, level = roots[inner[roots]], 0
    while len(here):
        level += 1
        nodes.before[here] = before = _last_split(here, forest.player, parent)
        for below in (child[here], child[here] + 1):
            parent[below] = here
            nodes.level[below] = level
            nodes.share[below] = forest.cover[below] / forest.cover[here]
            nodes.zero[below] = nodes.zero[before] * nodes.share[below]
            nodes.reached[below] = nodes.reached[here] * nodes.share[below]
            nodes.players[below] = nodes.players[here] + (parent[before] < 0)
        here = np.concatenate([child[here], child[here] + 1])
        here = here[inner[here]]
    return nodes


def _last_split(here: NDArray[np.int64], player: NDArray[np.int32], parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each node the nearest one at or above it whose parent splits by the same player, else its root."""
    found = here.copy()
    searching = np.arange(len(here))
    while len(searching):
        above = parent[found[searching]]
        searching, above = searching[above >= 0], above[above >= 0]
        different = player[above] != player[here[searching]]
        searching, above = searching[different], above[different]
        found[searching] = above
    return found


def _runs(sorted_trees: NDArray[np.int64], trees: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each tree's entries begin, and how many there are."""
    counts = np.bincount(sorted_trees, minlength=trees)
    return np.cumsum(counts) - counts, counts


def _packed(
    forest: Forest, nodes: _Nodes, splits: NDArray[np.int64], place: NDArray[np.int64], slot: NDArray[np.int64]
) -> NDArray[Any]:
    packed = np.zeros(len(splits), SPLIT)
    at = forest.nodes[splits]
    left = at["child"].astype(np.int64)
    for side, below in (("left", left), ("right", left + 1)):
        packed[f"zero_{side}"] = nodes.zero[below]
        packed[f"share_{side}"] = nodes.share[below]
    packed["threshold"], packed["column"], packed["missing_right"] = at["threshold"], at["feature"], at["missing_right"]
    packed["node"], packed["before"], packed["slot"] = place[splits], place[nodes.before[splits]], slot
    return packed
