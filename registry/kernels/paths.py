"""Lays out trees for the kernel of SHAP values, with everything that can be computed before a row is seen.

A tree's splits lie level by level, and the children of the i-th split are the tree's nodes 2i + 1 and 2i + 2. So a
walk down all of a tree is a loop over its splits, and a walk up is the same loop backwards. A split takes 64 bytes, one
cache line.
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
"""`share` is the part of a node's training rows that went to a child; `zero` is the product of the shares of all splits
by the same player on the way to that child. `before` is the node below the last of those splits (without this one), 0
if there is none. `slot` is the player's index among the tree's own."""

TREE = np.dtype(
    [(name, "i4") for name in ("split", "splits", "leaf", "leaves", "slot", "slots", "players", "output")], align=True
)
"""The first index and the number of a tree's splits, leaves and slots; the most players on a path; the first output
that the tree adds to."""

Indices = NDArray[np.int64]


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
    """By node of all trees: its tree and level, fields of SPLIT, the part of the tree's training rows that passed, and
    the number of players on the way to it.
    """

    tree: Indices
    level: Indices
    share: NDArray[np.float64]
    zero: NDArray[np.float64]
    reached: NDArray[np.float64]
    before: Indices
    players: Indices


def lay_out(forest: Forest, outputs: int) -> Paths:
    """The paths of all trees, which alternate between the outputs. Raises Unsupported where covers are not positive."""
    sizes = np.diff(forest.roots, append=len(forest.nodes))
    single = np.repeat(sizes, sizes) == 1  # a tree of one node has no shares
    if not (single | (forest.cover > 0.0)).all():
        raise Unsupported("its trees do not record how many training rows passed")
    child = forest.nodes["child"].astype(np.int64)
    inner = child != np.arange(len(child))
    nodes = _follow(forest, child, inner)
    splits, leaves = np.flatnonzero(inner), np.flatnonzero(~inner)
    splits = splits[np.lexsort((nodes.level[splits], nodes.tree[splits]))]
    players = 1 + int(forest.player.max())
    slots, slot = np.unique(nodes.tree[splits] * players + forest.player[splits], return_inverse=True)
    table = _table(forest, nodes, splits, leaves, slots // players)
    table["output"] = np.arange(len(table)) * forest.values.shape[1] % outputs
    owner = table[nodes.tree[splits]]
    place = np.zeros(len(child), np.int64)
    place[child[splits]] = 2 * (np.arange(len(splits)) - owner["split"]) + 1
    place[child[splits] + 1] = place[child[splits]] + 1
    return Paths(
        splits=_packed(forest, nodes, splits, place, slot - owner["slot"]),
        leaves=place[leaves].astype(np.int32),
        values=np.ascontiguousarray(forest.values[leaves]),
        slots=(slots % players).astype(np.int32),
        trees=table,
        expected=_expected(forest, nodes, leaves, outputs),
    )


def _table(forest: Forest, nodes: _Nodes, splits: Indices, leaves: Indices, slot_trees: Indices) -> NDArray[Any]:
    """A record of dtype TREE for each tree; splits, leaves and slots are sorted by tree."""
    table = np.zeros(len(forest.roots), TREE)
    for one, many, trees in (
        ("split", "splits", nodes.tree[splits]),
        ("leaf", "leaves", nodes.tree[leaves]),
        ("slot", "slots", slot_trees),
    ):
        counts = np.bincount(trees, minlength=len(table))
        table[one], table[many] = np.cumsum(counts) - counts, counts
    table["players"] = np.maximum.reduceat(nodes.players, forest.roots)
    return table


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


def _packed(forest: Forest, nodes: _Nodes, splits: Indices, place: Indices, slot: Indices) -> NDArray[Any]:
    packed = np.zeros(len(splits), SPLIT)
    at = forest.nodes[splits]
    left = at["child"].astype(np.int64)
    for side, below in (("left", left), ("right", left + 1)):
        packed[f"zero_{side}"] = nodes.zero[below]
        packed[f"share_{side}"] = nodes.share[below]
    packed["threshold"], packed["column"], packed["missing_right"] = at["threshold"], at["feature"], at["missing_right"]
    packed["node"], packed["before"], packed["slot"] = place[splits], place[nodes.before[splits]], slot
    return packed
