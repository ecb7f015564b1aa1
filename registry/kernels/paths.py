"""Lays out trees for the kernel of SHAP values, with everything that can be computed before a row is seen.

A tree's splits lie level by level, those into two leaves behind all others: they are walked in a loop of their own. So
a walk down all of a tree is a loop over its splits, and a walk up is the same loop backwards. The edges to the children
of the i-th split are the tree's edges 1 + 2i and 2 + 2i; edge 0 leads to its root. A split takes 64 bytes, one cache
line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.kernels.forest import Forest
from registry.kernels.kernel import Unsupported

SPLIT = np.dtype(
    [
        ("threshold", "f8"),
        ("zero", "f8"),
        ("zero_before", "f8"),
        ("zero_left", "f8"),
        ("zero_right", "f8"),
        ("edge", "i4"),
        ("before", "i4"),
        ("left", "i4"),
        ("right", "i4"),
        ("place", "i4"),
        ("column", "u2"),
        ("missing_right", "u1"),
    ],
    align=True,
)
"""The `zero` of an edge is the product of the shares of all splits by the same player on the way to its end, where a
share is the part of a node's training rows that went to a child. `edge` leads to this split, `before` is the edge from
the last split by the same player, 0 if there is none; `zero` and `zero_before` are those of these edges.

`left` and `right` are the children: the index of a split in its tree, or the number of the tree's splits plus the index
of a leaf, times the number of values a leaf. `place` is the feature's first among (features, outputs)."""

TREE = np.dtype(
    [(name, "i4") for name in ("split", "splits", "inner", "leaf", "leaves", "alone", "players", "output")], align=True
)
"""The first index and the number of a tree's splits, of which the `inner` ones are not into two leaves, and come first;
of its leaves, of which those that stand `alone` have no leaf for a sibling, and come first; the most players on a path;
the first output that the tree adds to."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Paths:
    """Trees as the kernel takes them."""

    splits: NDArray[Any]
    players: NDArray[np.int32]
    """By split: the column that it is credited to."""
    leaves: NDArray[np.float64]
    """Values, shape (leaves, outputs)."""
    trees: NDArray[Any]
    expected: NDArray[np.float64]
    """The sum of the trees' means over their training rows, shape (outputs,)."""


@dataclass(frozen=True, slots=True)
class _Nodes:
    """By node of all trees: its tree and level; the share of its parent's training rows and the part of the tree's that
    passed; `zero` of the edge to it; the node below the last split by the node's player, or the root; and the number
    of players on the way to it.
    """

    tree: Indices
    level: Indices
    share: NDArray[np.float64]
    zero: NDArray[np.float64]
    reached: NDArray[np.float64]
    before: Indices
    players: Indices


def lay_out(forest: Forest, outputs: int, features: NDArray[np.int32]) -> Paths:
    """The paths of all trees, which alternate between the outputs; `features` has one for each player.

    Raises Unsupported where covers are not positive.
    """
    sizes = np.diff(forest.roots, append=len(forest.nodes))
    single = np.repeat(sizes, sizes) == 1  # a tree of one node has no shares
    if not (single | (forest.cover > 0.0)).all():
        raise Unsupported("its trees do not record how many training rows passed")
    child = forest.nodes["child"].astype(np.int64)
    inner = child != np.arange(len(child))
    nodes = _follow(forest, child, inner)
    splits, paired = _ordered_splits(nodes, child, inner)
    leaves = np.flatnonzero(~inner)
    table = _table(forest, nodes, splits, splits[~paired], leaves)
    table["output"] = np.arange(len(table)) * forest.values.shape[1] % outputs
    pairs = np.stack([child[splits[paired]], child[splits[paired]] + 1], axis=1).ravel()
    ordered = np.concatenate([np.setdiff1d(leaves, pairs), pairs])
    ordered = ordered[np.argsort(nodes.tree[ordered], kind="stable")]
    return Paths(
        splits=_packed(forest, nodes, splits, _places(nodes, table, splits, ordered), features, outputs),
        players=forest.player[splits],
        leaves=np.ascontiguousarray(forest.values[ordered]),
        trees=table,
        expected=_expected(forest, nodes, leaves, outputs),
    )


def _ordered_splits(nodes: _Nodes, child: Indices, inner: NDArray[np.bool_]) -> tuple[Indices, NDArray[np.bool_]]:
    """The splits tree by tree, and which of them are into two leaves.

    On a level those whose player has split before come last: a branch that changes seldom is predicted well.
    """
    splits = np.flatnonzero(inner)
    paired = ~(inner[child[splits]] | inner[child[splits] + 1])
    again = nodes.zero[nodes.before[splits]] != 1.0
    order = np.lexsort((again, np.where(paired, 0, nodes.level[splits]), paired, nodes.tree[splits]))
    return splits[order], paired[order]


def _table(forest: Forest, nodes: _Nodes, splits: Indices, inner: Indices, leaves: Indices) -> NDArray[Any]:
    """A record of dtype TREE for each tree; splits and leaves are sorted by tree."""
    table = np.zeros(len(forest.roots), TREE)
    for one, many, of in (("split", "splits", splits), ("leaf", "leaves", leaves)):
        counts = np.bincount(nodes.tree[of], minlength=len(table))
        table[one], table[many] = np.cumsum(counts) - counts, counts
    table["inner"] = np.bincount(nodes.tree[inner], minlength=len(table))
    table["alone"] = table["leaves"] - 2 * (table["splits"] - table["inner"])
    table["players"] = np.maximum.reduceat(nodes.players, forest.roots)
    return table


def _places(nodes: _Nodes, table: NDArray[Any], splits: Indices, leaves: Indices) -> Indices:
    """The indices of all nodes in their trees: first the splits, then the leaves."""
    places = np.zeros(len(nodes.tree), np.int64)
    places[splits] = np.arange(len(splits)) - table["split"][nodes.tree[splits]]
    owner = table[nodes.tree[leaves]]
    places[leaves] = owner["splits"] + np.arange(len(leaves)) - owner["leaf"]
    return places


def _expected(forest: Forest, nodes: _Nodes, leaves: Indices, outputs: int) -> NDArray[np.float64]:
    sums = np.zeros((outputs // forest.values.shape[1], forest.values.shape[1]))
    np.add.at(sums, nodes.tree[leaves] % len(sums), nodes.reached[leaves, None] * forest.values[leaves])
    return sums.ravel()


def _follow(forest: Forest, child: Indices, inner: NDArray[np.bool_]) -> _Nodes:
    """Go down all trees at once, level by level."""
    count = len(child)
    roots = forest.roots.astype(np.int64)
    parent = np.full(count, -1)
    tree = np.repeat(np.arange(len(roots)), np.diff(roots, append=count))
    nothing, one = np.zeros(count, np.int64), np.ones(count)
    nodes = _Nodes(tree, nothing, one, one.copy(), one.copy(), roots[tree], nothing.copy())
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


def _last_split(here: Indices, player: NDArray[np.int32], parent: Indices) -> Indices:
    """Find, for each node, the nearest one at or above it whose parent splits by the same player, else its root."""
    found = here.copy()
    searching = np.arange(len(here))
    while len(searching):
        above = parent[found[searching]]
        searching, above = searching[above >= 0], above[above >= 0]
        different = player[above] != player[here[searching]]
        searching, above = searching[different], above[different]
        found[searching] = above
    return found


def _packed(
    forest: Forest, nodes: _Nodes, splits: Indices, places: Indices, features: NDArray[np.int32], outputs: int
) -> NDArray[Any]:
    packed = np.zeros(len(splits), SPLIT)
    at = forest.nodes[splits]
    edges = np.zeros(len(places), np.int64)
    left, before = at["child"].astype(np.int64), nodes.before[splits]
    for number, (side, below) in enumerate((("left", left), ("right", left + 1))):
        packed[f"zero_{side}"], packed[side] = nodes.zero[below], places[below] * forest.values.shape[1]
        edges[below] = 1 + 2 * places[splits] + number
    packed["edge"], packed["zero"] = edges[splits], nodes.zero[splits]
    packed["before"], packed["zero_before"] = edges[before], nodes.zero[before]
    packed["threshold"], packed["column"], packed["missing_right"] = at["threshold"], at["feature"], at["missing_right"]
    packed["place"] = features[forest.player[splits]] * outputs
    return packed
