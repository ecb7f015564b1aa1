"""The kernel of exact path-dependent SHAP values of flattened trees, by Gauss-Legendre quadrature.

The game is Lundberg's (Lundberg, Erion, Lee: "Consistent Individualized Feature Attribution for Tree Ensembles", 2018,
arXiv:1802.03888): a split by a feature that is not known is passed on both ways, by the shares of training rows. So a
leaf's value counts for a set of known features by a product over the features on its path: `one` (1 if the row goes
that way at all of the feature's splits, else 0) for known features, `zero` (the product of its shares) for others.

The Shapley value is an integral along the diagonal of the game's multilinear extension (Owen: "Multilinear Extensions
of Games", Management Science 18(5), 1972). For a leaf of value v and the features on its path it reads

    phi_i = v (one_i - zero_i) * integral over t from 0 to 1 of product over j other than i of t one_j + (1 - t) zero_j

With m features that is a polynomial of degree m - 1, so n Gauss-Legendre points give the integral exactly up to
m = 2n. At a given t it takes products and sums: going down, the product of the factors at every split; going up, the
sum over the leaves below, without the factors above. (Sums over the leaves below in place of a loop over leaves are
from Yu, Xu, Bifet, Read: "Linear TreeShap", 2022, arXiv:2209.08192.) Let `hot` be the sum below the child where the
row goes, 0 if it does not arrive at the split, and `cold` the mean of both children's sums by their shares, what is
expected if the feature is not known. Then

    sum below the split = cold + t (hot - cold)
    the split's part of phi_i = product above it * (hot - cold)

If the feature has split before, its factor there is divided out of both, and the part that this split has counted is
taken off. Only these splits need a division. Of a split into two leaves, hot and cold are plain numbers. It takes
O(nodes * points), without a branch that depends on the row.

The interaction of two features is half of the same integral with (one_i - zero_i) (one_j - zero_j) in front and neither
among the factors (Lundberg, Erion, Lee; it is Owen's second derivative). On the way up, what a split adds for its own
feature is multiplied with (one - zero) / factor of each other feature as the splits above have left it: like a product
that changes factor by factor, these sums telescope. It takes O(nodes * depth * points).

The sums of all trees are kept by point, and summed over the points once.

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

from registry.kernels.kernel import MATRIX, NUMBERS, Kernel, Unsupported, part_of_kernel, read_only, records, writable
from registry.kernels.paths import SPLIT, TREE, Paths

BLOCK = 8
"""Quadrature points that are computed at once."""

CACHE_LINE = 64

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


def _element(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> Any:
    """A pointer to an element of a contiguous array that is taken as one of elements of `kind`."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(builder.bitcast(array.data, kind.as_pointer()), [arguments[1]])


def _type_load(_typing: Any, array: Any, _row: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_element(context, builder, signature, arguments, VECTOR))
        loaded.align = 8  # numpy guarantees no more
        return loaded

    return LANES(array, types.intp), generate


def _type_store(_typing: Any, array: Any, _row: Any, _lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _element(context, builder, signature, arguments, VECTOR)).align = 8
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), generate


def _type_get(_typing: Any, array: Any, _index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(array.dtype)
        return builder.load(_element(context, builder, signature, arguments, kind))

    return array.dtype(array, types.intp), generate


def _type_put(_typing: Any, array: Any, _index: Any, _value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(array.dtype)
        builder.store(arguments[2], _element(context, builder, signature, arguments, kind))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


def _type_all(_typing: Any, _number: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        nothing = ir.Constant(VECTOR, ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK))

    return LANES(types.float64), generate


def _type_skipped(_typing: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        size = ir.IntType(64)
        past = builder.urem(builder.ptrtoint(array.data, size), ir.Constant(size, CACHE_LINE))
        to_next = builder.urem(builder.sub(ir.Constant(size, CACHE_LINE), past), ir.Constant(size, CACHE_LINE))
        return builder.udiv(to_next, ir.Constant(size, 8))

    return types.intp(array), generate


_load: Any = intrinsic(_type_load)
"""The n-th eight numbers of an array as lanes."""

_store: Any = intrinsic(_type_store)
"""Lanes into an array, in place of its n-th eight numbers."""

_skipped: Any = intrinsic(_type_skipped)
"""The index of the first number of an array at the start of a cache line: lanes across two lines take twice as long."""

_get: Any = intrinsic(_type_get)
"""An element of an array; an index is never taken from its end, which would take as long as a sum."""

_put: Any = intrinsic(_type_put)
"""A value into an array."""

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


def _type_add_product(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        signature = ir.FunctionType(VECTOR, [VECTOR] * 3)
        declare: Any = cgutils.get_or_insert_function
        fused = declare(builder.module, signature, f"llvm.fmuladd.v{BLOCK}f64")
        return builder.call(fused, arguments)

    return LANES(LANES, LANES, LANES), generate


_add_product: Any = intrinsic(_type_add_product)
"""a * b + c, rounded once where the processor can."""

ROOT = 0
"""The edge into a tree's root: all rows take it, and no feature decides that."""


@part_of_kernel
def _blocks(players: Any) -> Any:
    """The number of blocks of points that are exact for this many players on a path."""
    return (players + 2 * BLOCK - 1) // (2 * BLOCK)


@part_of_kernel
def _factor(edge: Any, zero: Any, t: Any, one: Any) -> Any:
    """The factor of an edge: t one + (1 - t) zero."""
    return _add_product(_all(_get(one, edge)), t, (_all(1.0) - t) * _all(zero))


@part_of_kernel
def _goes_right(row: Any, split: Any) -> Any:
    value = _get(row, split.column)
    return (value > split.threshold) | (math.isnan(value) & (split.missing_right != 0))


@part_of_kernel
def _place_leaves(values: Any, first: Any, last: Any, rows: Any, sums: Any) -> None:
    """The values from the first to the last one into rows of `sums`."""
    for place in range(first, last):
        _store(sums, rows + place - first, _all(_get(values, place)))


@part_of_kernel
def _go_down(row: Any, splits: Any, start: Any, stop: Any, t: Any, scratch: Any) -> None:
    """Fill `one` by edge, `way` by split, and the first rows of `lanes`, of which each split has two.

    These are the product of all factors on the way but that of the split's own player, and the inverse of the latter.
    """
    lanes, one, way, _ = scratch
    for i in range(stop - start):
        split = splits[start + i]
        right, still = _goes_right(row, split), _get(one, split.before)
        _put(one, 1 + 2 * i + right, still)
        _put(one, 2 + 2 * i - right, 0.0)
        _put(way, i, split.right if right else split.left)
        above = _load(lanes, (split.edge + 1) & -2) * _factor(split.edge, split.zero, t, one)
        if split.before != ROOT:
            inverse = _all(1.0) / _factor(split.before, split.zero_before, t, one)
            _store(lanes, 2 * i + 3, inverse)
            above = above * inverse
        _store(lanes, 2 * i + 2, above)


@part_of_kernel
def _credit_pairs(row: Any, splits: Any, tree: Any, values: Any, t: Any, scratch: Any, phi: Any, places: Any) -> None:
    """Go down to the splits into two leaves, add what these contribute to `phi`, and note the sums below."""
    lanes, one, _, sums = scratch
    width = values.shape[1]
    start, base = tree.split + tree.inner, tree.inner * width
    first = (tree.leaf + tree.alone) * width
    for i in range(tree.splits - tree.inner):
        split = splits[start + i]
        right, still = _goes_right(row, split), _get(one, split.before)
        above = _load(lanes, (split.edge + 1) & -2) * _factor(split.edge, split.zero, t, one)
        for k in range(width):
            at = first + 2 * i * width + k
            left_value, right_value = _get(values, at), _get(values, at + width)
            cold = split.zero_left * left_value + split.zero_right * right_value
            change = still * (right_value if right else left_value) - cold
            below = _add_product(t, _all(change), _all(cold))
            place = places + split.place + k
            if split.before == ROOT:
                _store(phi, place, _add_product(above, _all(change), _load(phi, place)))
            else:
                inverse = _all(1.0) / _factor(split.before, split.zero_before, t, one)
                below = below * inverse
                gain = (_all(change) - _all(still - split.zero_before) * below) * inverse
                _store(phi, place, _add_product(above, gain, _load(phi, place)))
            _store(sums, base + i * width + k, below)


@part_of_kernel
def _join(split: Any, i: Any, k: Any, t: Any, scratch: Any) -> Any:
    """The sum below the i-th split from those below its children, and what its player gains of it."""
    lanes, one, way, sums = scratch
    cold = _all(split.zero_left) * _load(sums, split.left + k)
    cold = _add_product(_all(split.zero_right), _load(sums, split.right + k), cold)
    hot = _load(sums, _get(way, i) + k)
    if split.before == ROOT:
        gain = hot - cold
        below = _add_product(t, gain, cold)
    else:
        still = _get(one, split.before)
        gain = _all(still) * hot - cold
        below = _add_product(t, gain, cold) * _load(lanes, 2 * i + 3)
        gain = gain - _all(still - split.zero_before) * below
    return below, gain


@part_of_kernel
def _credit_others(splits: Any, tree: Any, width: Any, t: Any, scratch: Any, phi: Any, places: Any) -> None:
    """Go up, and add to `phi` what the splits contribute that are not into two leaves."""
    lanes, _, _, sums = scratch
    for i in range(tree.inner - 1, -1, -1):
        split = splits[tree.split + i]
        above = _load(lanes, 2 * i + 2)
        for k in range(width):
            below, gain = _join(split, i, k, t, scratch)
            _store(sums, i * width + k, below)
            place = places + split.place + k
            _store(phi, place, _add_product(above, gain, _load(phi, place)))


@part_of_kernel
def _scratch(arrays: Any) -> Any:
    """`lanes`, `one` and `way` of Scratch, and `sums`, which are a part of the first."""
    lanes, one, way = arrays
    lanes = lanes[_skipped(lanes) :]
    _put(one, ROOT, 1.0)
    return lanes, one, way, lanes[(2 * way.shape[0] + 2) * BLOCK :]


ROWS_AT_ONCE = 16
"""Rows that take their turns at a tree while it is in the processor's cache."""


def _tree_shap(rows: Any, model: Any, arrays: Any, out: Any) -> None:
    """Fill `out`, shape (rows, features, outputs), with all trees' SHAP values.

    `model` has splits, leaves and trees of Paths, and the points of `quadrature`. `arrays` come from `Scratch`, with
    more lanes for the sums of one row or several.
    """
    splits, values, trees, points = model
    width, outputs, features = values.shape[1], out.shape[2], out.shape[1]
    scratch = _scratch(arrays)
    lanes, _, way, sums = scratch
    phi = sums[(2 * way.shape[0] + 1) * width * BLOCK :]
    entries = features * outputs
    at_once = phi.shape[0] // BLOCK // entries
    for first in range(0, rows.shape[0], at_once):
        chunk = min(at_once, rows.shape[0] - first)
        for place in range(chunk * entries):
            _store(phi, place, _all(0.0))
        for n in range(trees.shape[0]):
            tree = trees[n]
            first_value = tree.leaf * width
            _place_leaves(values, first_value, first_value + tree.alone * width, tree.splits * width, sums)
            blocks = _blocks(tree.players)
            for block in range(blocks):
                at = (blocks * (blocks - 1) // 2 + block) * 2
                t = _load(points, at)
                _store(lanes, 0, _load(points, at + 1))
                for r in range(chunk):
                    row, places = rows[first + r], r * entries + tree.output
                    _go_down(row, splits, tree.split, tree.split + tree.inner, t, scratch)
                    _credit_pairs(row, splits, tree, values, t, scratch, phi, places)
                    _credit_others(splits, tree, width, t, scratch, phi, places)
        for r in range(chunk):
            for place in range(entries):
                _put(out, (first + r) * entries + place, _sum(_load(phi, r * entries + place)))


class Scratch:
    """Makes scratch arrays, as large as the largest tree needs."""

    def __init__(self, paths: Paths) -> None:
        self.splits = int(paths.trees["splits"].max())
        self._lanes = 2 * self.splits + 2 + (2 * self.splits + 1) * paths.leaves.shape[1]

    def arrays(self, more: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
        """`lanes`, with so many more than a walk needs, `one` by edge and `way` by split."""
        lanes = np.empty((self._lanes + more + 1) * BLOCK)
        return lanes, np.empty(2 * self.splits + 1), np.empty(self.splits, np.int32)


@part_of_kernel
def _add_interactions(
    splits: Any, i: Any, players: Any, credit: Any, force: Any, marks: Any, pairs: Any, output: Any
) -> None:
    """Add the interactions of the i-th split with those above it to `pairs`, shape (features, features, outputs)."""
    seen, mark = marks
    own, place, features = players[i], splits[i].place, pairs.shape[1]
    below, edge = i, splits[i].edge
    while edge != ROOT:
        above = (edge - 1) // 2
        split, player = splits[above], players[above]
        if player != own and _get(seen, player) != mark:  # the last split by its player
            _put(seen, player, mark)
            if split.place != place:
                half = 0.5 * _sum(credit * _load(force, below))
                for at in (place * features + split.place, split.place * features + place):
                    _put(pairs, at + output, _get(pairs, at + output) + half)
        below, edge = above, split.edge


def _tree_interactions(rows: Any, model: Any, players: Any, arrays: Any, seen: Any, out: Any) -> None:
    """Add all trees' interactions to `out`, shape (rows, features, features, outputs), but for the diagonal.

    `model` is that of `_tree_shap`. `arrays` come from `Scratch`, with as many more lanes as it has splits. `players`
    are those of the splits, and `seen` has a zero for each.
    """
    splits, values, trees, points = model
    width = values.shape[1]
    scratch = _scratch(arrays)
    lanes, one, way, sums = scratch
    force = sums[(2 * way.shape[0] + 1) * width * BLOCK :]
    mark = 0
    for n in range(trees.shape[0]):
        tree = trees[n]
        leaf, stop = tree.leaf * width, tree.split + tree.splits
        own, names = splits[tree.split : stop], players[tree.split : stop]
        _place_leaves(values, leaf, leaf + tree.leaves * width, tree.splits * width, sums)
        blocks = _blocks(tree.players)
        for block in range(blocks):
            at = (blocks * (blocks - 1) // 2 + block) * 2
            t = _load(points, at)
            _store(lanes, 0, _load(points, at + 1))
            for r in range(rows.shape[0]):
                _go_down(rows[r], own, 0, tree.splits, t, scratch)
                for i in range(tree.splits):
                    edge, zero = own[i].edge, own[i].zero
                    _store(force, i, _all(_get(one, edge) - zero) / _factor(edge, zero, t, one))
                for i in range(tree.splits - 1, -1, -1):
                    split, above = own[i], _load(lanes, 2 * i + 2)
                    for k in range(width):
                        below, gain = _join(split, i, k, t, scratch)
                        _store(sums, i * width + k, below)
                        mark += 1
                        _add_interactions(own, i, names, above * gain, force, (seen, mark), out[r], tree.output + k)


SIDES = np.dtype([("threshold", "f8"), ("column", "u2"), ("missing_right", "u1")], align=True)
"""What SPLIT says of where a row goes."""
SMALL = np.dtype([("value", "i8"), ("split", "i4"), ("splits", "i4"), ("entry", "i4"), ("entries", "i4")], align=True)
"""A tree with a table of its values by pattern: its first value, of which there are as many as `entries` for a pattern,
and the first of the places where these go; its first split and their number."""


def _add_patterns(rows: Any, trees: Any, splits: Any, values: Any, entries: Any, out: Any) -> None:
    """Add to `out`, shape (rows, features, outputs), what trees have in their tables for the sides that a row takes."""
    size = out.shape[1] * out.shape[2]
    for first in range(0, rows.shape[0], ROWS_AT_ONCE):
        for n in range(trees.shape[0]):
            tree = trees[n]
            for r in range(first, min(first + ROWS_AT_ONCE, rows.shape[0])):
                pattern = 0
                for i in range(tree.splits):
                    pattern |= _goes_right(rows[r], splits[tree.split + i]) << i
                for k in range(tree.entries):
                    place = r * size + _get(entries, tree.entry + k)
                    _put(out, place, _get(out, place) + _get(values, tree.value + pattern * tree.entries + k))


TOGETHER: Any = types.Tuple
MODEL = TOGETHER((records(SPLIT), MATRIX, records(TREE), MATRIX))
ARRAYS = TOGETHER((writable(types.float64, 1), writable(types.float64, 1), writable(types.int32, 1)))
PLAYERS, SEEN = read_only(types.int32, 1), writable(types.int64, 1)

TREE_SHAP = Kernel(_tree_shap, MATRIX, MODEL, ARRAYS, writable(types.float64, 3), allocates=False)

ADD_PATTERNS = Kernel(
    _add_patterns, MATRIX, records(SMALL), records(SIDES), NUMBERS, PLAYERS, writable(types.float64, 3), allocates=False
)

TREE_INTERACTIONS = Kernel(
    _tree_interactions, MATRIX, MODEL, PLAYERS, ARRAYS, SEEN, writable(types.float64, 4), allocates=False
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
