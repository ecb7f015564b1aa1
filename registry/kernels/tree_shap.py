"""The kernel of exact path-dependent SHAP values of flattened trees, by Gauss-Legendre quadrature.

The game is Lundberg's (Lundberg, Erion, Lee: "Consistent Individualized Feature Attribution for Tree Ensembles", 2018,
arXiv:1802.03888): a split by a feature that is not known is passed on both ways, by the shares of training rows. So a
leaf's value counts for a set of known features by a product over the features on its path: `one` (1 if the row goes
that way at all of the feature's splits, else 0) for known features, `zero` (the product of its shares) for others.

The Shapley value is an integral along the diagonal of the game's multilinear extension (Owen: "Multilinear Extensions
of Games", Management Science 18(5), 1972). For a leaf of value v and the features on its path it reads

    phi_i = v (one_i - zero_i) * integral over t from 0 to 1 of product over j other than i of t one_j + (1 - t) zero_j

With m features that is a polynomial of degree m - 1, so n Gauss-Legendre points give the integral exactly up to
m = 2n. At a given t it takes products and sums: going down, the product of the factors at every node; going up, the sum
over the leaves below, multiplied at each split with (one - zero) / factor, less the part that the feature's previous
split has counted already. (Sums over the leaves below in place of a loop over leaves are from Yu, Xu, Bifet, Read:
"Linear TreeShap", 2022, arXiv:2209.08192.) It takes O(nodes * points), with one division a split and
no branch that depends on the row.

The interaction of two features is half of the same integral with (one_i - zero_i) (one_j - zero_j) in front and neither
among the factors (Lundberg, Erion, Lee; it is Owen's second derivative). On the way up, what a split adds for its own
feature is multiplied with (one - zero) / factor of each other feature as the splits above have left it: like a product
that changes factor by factor, these sums telescope. It takes O(nodes * depth * points).

Eight points are computed at once, in one or more vectors of the processor; numba vectorises no loop this short, so the
vectors are spelt out. No sum is taken over rows: a row gives the same bits alone as in a batch.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

from registry.kernels.kernel import MATRIX, Kernel, Unsupported, part_of_kernel, read_only, records, writable
from registry.kernels.paths import SPLIT, TREE

BLOCK = 8
"""Quadrature points that are computed at once."""

MAX_BLOCKS = 16
"""Enough for 256 players on a path."""

VECTOR = ir.VectorType(ir.DoubleType(), BLOCK)


class Lanes(types.Type):
    """Eight float64 that are added, subtracted, multiplied and divided lane by lane."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, VECTOR)  # type: ignore[no-untyped-call]


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """A pointer to a row of an array of shape (rows, BLOCK)."""
    kind, row = signature.args[0], arguments[1]
    array = context.make_array(kind)(context, builder, arguments[0])
    pointer: Any = cgutils.get_item_pointer
    first = pointer(context, builder, kind, array, [row, ir.Constant(row.type, 0)])
    return builder.bitcast(first, VECTOR.as_pointer())


def _type_load(_typing: Any, array: Any, _row: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_place(context, builder, signature, arguments))
        loaded.align = 8  # numpy guarantees no more
        return loaded

    return LANES(array, types.intp), generate


def _type_store(_typing: Any, array: Any, _row: Any, _lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, signature, arguments)).align = 8
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), generate


def _type_all(_typing: Any, _number: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        nothing = ir.Constant(VECTOR, ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK))

    return LANES(types.float64), generate


_load: Any = intrinsic(_type_load)
"""A row of an array as lanes."""

_store: Any = intrinsic(_type_store)
"""Lanes into a row of an array."""

_all: Any = intrinsic(_type_all)
"""One number in every lane."""


def _type_sum(_typing: Any, _lanes: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        (lanes,) = arguments
        width = BLOCK
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    lanes, lanes, ir.Constant(ir.VectorType(ir.IntType(32), width), [*range(first, first + width)])
                )
                for first in (0, width)
            ]
            lanes = builder.fadd(*halves)
        return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))

    return types.float64(LANES), generate


_sum: Any = intrinsic(_type_sum)
"""The sum of all lanes, halves first."""


def _let_lanes(operation: Any, instruction: str) -> None:
    """Teach numba an operation on lanes, which is one instruction."""

    def type_operation(_typing: Any, _a: Any, _b: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return LANES(LANES, LANES), generate

    compute: Any = intrinsic(type_operation)

    def of_lanes(a: Any, b: Any) -> Any:
        def of_two(a: Any, b: Any) -> Any:
            return compute(a, b)

        return of_two if isinstance(a, Lanes) and isinstance(b, Lanes) else None

    overload(operation)(of_lanes)


_let_lanes(operator.add, "fadd")
_let_lanes(operator.sub, "fsub")
_let_lanes(operator.mul, "fmul")
_let_lanes(operator.truediv, "fdiv")

COLD, FRESH, FIRST = 0, 1, 2
"""Rows of `inverse` and `gain`, one for each state of a feature below some node: the row does not go there (one = 0);
no split by it yet; and from FIRST on, one for each split that the row passes, with factor t + (1 - t) zero. `inverse`
is 1 / factor, `gain` is (one - zero); for COLD both without `zero`, which cancels out."""


@part_of_kernel
def _go_down(row: Any, splits: Any, t: Any, product: Any, inverse: Any, gain: Any, state: Any) -> None:
    """Fill `product` and `state` by node, and a row of `inverse` and `gain` for every split."""
    one = _all(1.0)
    rest = one - t
    _store(product, 0, one)
    _store(inverse, COLD, one / rest)
    _store(inverse, FRESH, one)
    gain[COLD], gain[FRESH] = -1.0, 0.0
    state[0] = FRESH
    for i in range(splits.shape[0]):
        split = splits[i]
        value = row[split.column]
        right = (value > split.threshold) | (math.isnan(value) & (split.missing_right != 0))
        hot, cold = 2 * i + 1 + right, 2 * i + 2 - right
        zero_hot = split.zero_right if right else split.zero_left
        zero_cold = split.zero_left if right else split.zero_right
        share_hot = split.share_right if right else split.share_left
        share_cold = split.share_left if right else split.share_right
        before = state[split.before]
        still = before != COLD  # if not, the row passes neither child
        above = _load(product, split.node) * _load(inverse, before)
        factor = t * _all(1.0 if still else 0.0) + rest * _all(zero_hot if still else 1.0)
        _store(product, hot, above * factor * _all(1.0 if still else share_hot))
        _store(product, cold, above * rest * _all(zero_cold if still else share_cold))
        _store(inverse, FIRST + i, one / factor)
        gain[FIRST + i] = 1.0 - zero_hot
        state[hot] = np.int32(FIRST + i) if still else np.int32(COLD)
        state[cold] = np.int32(COLD)


@part_of_kernel
def _go_up(splits: Any, sums: Any, inverse: Any, gain: Any, state: Any, phi: Any) -> None:
    """Add the splits' contributions to `phi` by slot; `sums` holds the leaves' products times their values."""
    for i in range(splits.shape[0] - 1, -1, -1):
        split = splits[i]
        before, of_left, of_right = state[split.before], state[2 * i + 1], state[2 * i + 2]
        left, right = _load(sums, 2 * i + 1), _load(sums, 2 * i + 2)
        counted = _all(gain[before]) * _load(inverse, before)
        of_left_child = _all(gain[of_left]) * _load(inverse, of_left) - counted
        of_right_child = _all(gain[of_right]) * _load(inverse, of_right) - counted
        _store(sums, split.node, left + right)
        _store(phi, split.slot, _load(phi, split.slot) + (left * of_left_child + right * of_right_child))


@part_of_kernel
def _blocks(players: Any) -> Any:
    """The number of blocks of points that are exact for this many players on a path."""
    return (players + 2 * BLOCK - 1) // (2 * BLOCK)


def _tree_shap(rows: Any, splits: Any, leaves: Any, values: Any, slots: Any, trees: Any, points: Any, out: Any) -> None:
    """Add all trees' SHAP values to `out`, shape (rows, features, outputs); `slots` are features.

    `points` come from `quadrature`. Scratch arrays are as large as the largest tree needs.
    """
    nodes, most_slots = 1, 1
    for n in range(trees.shape[0]):
        nodes, most_slots = max(nodes, 2 * trees[n].splits + 1), max(most_slots, trees[n].slots)
    product = np.empty((nodes, BLOCK))
    inverse = np.empty((FIRST + nodes // 2, BLOCK))
    gain = np.empty(FIRST + nodes // 2)
    state = np.empty(nodes, np.int32)
    phi = np.empty((most_slots, BLOCK))
    sums = product if values.shape[1] == 1 else np.empty((nodes, BLOCK))
    for n in range(trees.shape[0]):
        tree = trees[n]
        own = splits[tree.split : tree.split + tree.splits]
        blocks = _blocks(tree.players)
        for block in range(blocks):
            first = (blocks * (blocks - 1) // 2 + block) * 2
            for r in range(rows.shape[0]):
                _go_down(rows[r], own, _load(points, first), product, inverse, gain, state)
                for k in range(values.shape[1]):
                    for leaf in range(tree.leaf, tree.leaf + tree.leaves):
                        _store(sums, leaves[leaf], _load(product, leaves[leaf]) * _all(values[leaf, k]))
                    for slot in range(tree.slots):
                        _store(phi, slot, _all(0.0))
                    _go_up(own, sums, inverse, gain, state, phi)
                    for slot in range(tree.slots):
                        integral = 0.0
                        for j in range(BLOCK):
                            integral += phi[slot, j] * points[first + 1, j]
                        out[r, slots[tree.slot + slot], tree.output + k] += integral


@part_of_kernel
def _go_up_in_pairs(
    splits: Any, sums: Any, inverse: Any, gain: Any, state: Any, weights: Any, slots: Any, pairs: Any
) -> None:
    """Add the interactions of the splits' features to `pairs`, shape (features, features)."""
    seen = np.full(slots.shape[0], -1, np.int32)  # by slot: the split that has looked at it
    for i in range(splits.shape[0] - 1, -1, -1):
        split = splits[i]
        before, of_left, of_right = state[split.before], state[2 * i + 1], state[2 * i + 2]
        left, right = _load(sums, 2 * i + 1), _load(sums, 2 * i + 2)
        counted = _all(gain[before]) * _load(inverse, before)
        of_left_child = _all(gain[of_left]) * _load(inverse, of_left) - counted
        of_right_child = _all(gain[of_right]) * _load(inverse, of_right) - counted
        _store(sums, split.node, left + right)
        added = (left * of_left_child + right * of_right_child) * weights
        own = slots[split.slot]
        node = split.node
        while node > 0:
            above = splits[(node - 1) // 2]
            if above.slot != split.slot and seen[above.slot] != i:  # the last split by its feature
                seen[above.slot] = i
                other = slots[above.slot]
                if other != own:
                    half = 0.5 * _sum(added * (_all(gain[state[node]]) * _load(inverse, state[node])))
                    pairs[own, other] += half
                    pairs[other, own] += half
            node = above.node


def _tree_interactions(
    rows: Any, splits: Any, leaves: Any, values: Any, slots: Any, trees: Any, points: Any, out: Any
) -> None:
    """Add all trees' interactions to `out`, shape (rows, features, features, outputs), but for the diagonal."""
    nodes = 1
    for n in range(trees.shape[0]):
        nodes = max(nodes, 2 * trees[n].splits + 1)
    product = np.empty((nodes, BLOCK))
    inverse = np.empty((FIRST + nodes // 2, BLOCK))
    gain = np.empty(FIRST + nodes // 2)
    state = np.empty(nodes, np.int32)
    sums = product if values.shape[1] == 1 else np.empty((nodes, BLOCK))
    for n in range(trees.shape[0]):
        tree = trees[n]
        own = splits[tree.split : tree.split + tree.splits]
        names = slots[tree.slot : tree.slot + tree.slots]
        blocks = _blocks(tree.players)
        for block in range(blocks):
            first = (blocks * (blocks - 1) // 2 + block) * 2
            for r in range(rows.shape[0]):
                _go_down(rows[r], own, _load(points, first), product, inverse, gain, state)
                for k in range(values.shape[1]):
                    for leaf in range(tree.leaf, tree.leaf + tree.leaves):
                        _store(sums, leaves[leaf], _load(product, leaves[leaf]) * _all(values[leaf, k]))
                    weights = _load(points, first + 1)
                    _go_up_in_pairs(own, sums, inverse, gain, state, weights, names, out[r, :, :, tree.output + k])


INDICES = read_only(types.int32, 1)

TREE_SHAP = Kernel(
    _tree_shap, MATRIX, records(SPLIT), INDICES, MATRIX, INDICES, records(TREE), MATRIX, writable(types.float64, 3)
)

TREE_INTERACTIONS = Kernel(
    _tree_interactions,
    MATRIX,
    records(SPLIT),
    INDICES,
    MATRIX,
    INDICES,
    records(TREE),
    MATRIX,
    writable(types.float64, 4),
)


def quadrature(players: int) -> NDArray[np.float64]:
    """Gauss-Legendre points on [0, 1], enough for this many players on a path. Raises Unsupported.

    They come in 1, 2, ... blocks, a row of points and a row of weights for each block.
    """
    most = max(1, _blocks(players))
    if most > MAX_BLOCKS:
        raise Unsupported("a path of its trees splits by more than 256 features")
    made = []
    for blocks in range(1, most + 1):
        points, weights = np.polynomial.legendre.leggauss(blocks * BLOCK)
        pairs = np.stack([(points + 1) / 2, weights / 2]).reshape(2, blocks, BLOCK)
        made.append(pairs.swapaxes(0, 1).reshape(2 * blocks, BLOCK))
    return np.concatenate(made)
