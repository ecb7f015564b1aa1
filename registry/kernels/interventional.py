"""The kernel of exact interventional SHAP values of flattened trees: unknown features have a background row's values.

Against one background row, a leaf counts for a set of known features if it is reached with these from the explained row
and all others from the background row. Going down, the two rows part at some splits; a player (a feature) that parts
them is known on one side and unknown on the other, and from then on decides its splits that way. So each leaf that is
reached has a set of players that must be known, and one of players that must not be, of sizes k and u. It counts with
its value times (k - 1)! u! / (k + u)! for each of the former, and with minus k! (u - 1)! / (k + u)! times it for each
of the latter (Lundberg et al.: "From Local Explanations to Global Understanding with Explainable AI for Trees", Nature
Machine Intelligence 2, 2020). Only the nodes that are reached cost time, a few for each tree and background row.

Each background row has factors, by which its values are multiplied: they turn differences of margins into those of
probabilities. No sum is taken over rows: a row gives the same bits alone as in a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from registry.kernels.forest import NODE, Forest
from registry.kernels.kernel import MATRIX, Kernel, part_of_kernel, read_only, records, writable

CREDITED = np.dtype([*((name, NODE[name]) for name in NODE.names or ()), ("player", "i4")], align=True)


@part_of_kernel
def _goes_right(row: Any, node: Any) -> Any:
    value = row[node.feature]
    return (value > node.threshold) | (math.isnan(value) & (node.missing_right != 0))


@part_of_kernel
def _side_of(player: Any, players: Any, sides: Any, count: Any) -> Any:
    """1 if the player is known on this path, 0 if it is unknown, -1 if it has not parted the rows yet."""
    for k in range(count):
        if players[k] == player:
            return sides[k]
    return np.int32(-1)


@part_of_kernel
def _add_leaf(
    values: Any, factors: Any, known: Any, count: Any, weights: Any, players: Any, sides: Any, out: Any
) -> None:
    """Add a leaf to `out`, shape (players, outputs); `factors` are those of its `values`, shape (values, outputs)."""
    unknown = count - known
    for k in range(out.shape[1]):
        value = 0.0
        for j in range(values.shape[0]):
            value += values[j] * factors[j, k]
        gain = value * weights[known - 1, unknown] if known > 0 else 0.0
        loss = value * weights[known, unknown - 1] if unknown > 0 else 0.0
        for p in range(count):
            out[players[p], k] += gain if sides[p] == 1 else -loss


def _interventional(
    rows: Any, background: Any, factors: Any, nodes: Any, roots: Any, values: Any, weights: Any, out: Any
) -> None:
    """Add the trees' values against all background rows to `out`, shape (rows, players, outputs).

    `factors` has shape (rows, background, margins, outputs). `nodes` come from `credited`, `weights` from
    `part_weights`. `values` are by node; trees with fewer values than there are margins take turns.
    """
    most, width = weights.shape[0] + 1, values.shape[1]
    turns = factors.shape[2] // width
    players, sides = np.empty(most, np.int32), np.empty(most, np.int32)
    # branches that are left to be walked: where, how many players have parted the rows there, and how many are known
    places, parted = np.empty(most, np.int32), np.empty(most, np.int32)
    counts, knowns = np.empty(most, np.int32), np.empty(most, np.int32)
    for r in range(rows.shape[0]):
        row = rows[r]
        for t in range(roots.shape[0]):
            first = t % turns * width
            for b in range(background.shape[0]):
                other, factor = background[b], factors[r, b, first : first + width]
                places[0], counts[0], knowns[0] = roots[t], 0, 0
                waiting = 1
                while waiting > 0:
                    waiting -= 1
                    at, count, known = places[waiting], counts[waiting], knowns[waiting]
                    if count > 0:
                        players[count - 1], sides[count - 1] = parted[waiting], 0
                    while nodes[at].child != at:
                        node = nodes[at]
                        player = node.player
                        side = _side_of(player, players, sides, count)
                        right, other_right = _goes_right(row, node), _goes_right(other, node)
                        if side == 0:
                            right = other_right
                        elif side < 0 and right != other_right:
                            places[waiting] = node.child + np.int32(other_right)
                            counts[waiting], knowns[waiting], parted[waiting] = count + 1, known, player
                            waiting += 1
                            players[count], sides[count] = player, 1
                            count += 1
                            known += 1
                        at = node.child + np.int32(right)
                    _add_leaf(values[at], factor, known, count, weights, players, sides, out[r])


FACTORS, VALUES = read_only(types.float64, 4), writable(types.float64, 3)
INDICES = read_only(types.int32, 1)

INTERVENTIONAL = Kernel(_interventional, MATRIX, MATRIX, FACTORS, records(CREDITED), INDICES, MATRIX, MATRIX, VALUES)


def credited(forest: Forest, players: NDArray[np.int32]) -> NDArray[Any]:
    """The nodes with the players that their splits are credited to, of which `players` gives one a column."""
    nodes = np.empty(len(forest.nodes), CREDITED)
    for name in forest.nodes.dtype.names or ():
        nodes[name] = forest.nodes[name]
    nodes["player"] = players[forest.player]
    return nodes


def part_weights(forest: Forest, players: int) -> NDArray[np.float64]:
    """By numbers a and b of players: a! b! / (a + b + 1)!, for as many as can part two rows on a path."""
    here, depth = forest.roots, 0
    while len(here):
        child = forest.nodes["child"][here]
        here = child[child != here]
        here = np.concatenate([here, here + 1])
        depth += 1
    weights = np.empty((1 + min(depth, players), 1 + min(depth, players)))
    for a, row in enumerate(weights):
        row[0] = 1.0 / (a + 1)
        for b in range(1, len(row)):
            row[b] = row[b - 1] * b / (a + b + 1)
    return weights
