"""How rows are counted in the bins of a manifest, and how far their shares are from those of the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from registry.kernels.counting import ABOVE, BELOW, CELLS, COUNT, MISSING, OTHER, UNSEEN
from registry.outputs import Layout
from registry.rows.features import Feature
from registry.store.distributions import Distribution, describe
from serving.monitoring.bins import MIN_SHARE, Bins, Column

RNG = np.random.default_rng(11)
CODED = ("category", "boolean")


def column_of(sample: Sequence[float], **feature: Any) -> Column:
    """The column of a feature that had these values in the sample."""
    described = Feature(name="a", **({"kind": "number"} | feature))
    rows = np.asarray(sample, np.float64).reshape(-1, 1)
    found = describe([described], rows, Layout(("value",)), np.zeros((len(rows), 1)))
    return Column("a", 0, found.features["a"], described, described.kind in CODED)


def count(column: Column, cells: ArrayLike) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The counts of a column after it has seen these cells."""
    bins = Bins((column,), 1000)
    counts = np.zeros(bins.size)
    COUNT.load()(np.array(cells, np.float64).reshape(-1, 1), np.empty((0, 1)), bins.table, counts)
    return counts


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=30, max_size=60), st.lists(finite, max_size=30))
def test_cells_fall_into_the_bins_of_a_histogram(sample: list[float], cells: list[float]) -> None:
    try:
        column = column_of(sample)
    except KeyError:
        return  # there is no room for ten bins
    if not column.is_binned:
        return
    usual, found = column.usual, count(column, [*sample, *cells])
    bounds = usual.low, usual.high
    expected, _ = np.histogram(np.clip([*sample, *cells], *bounds), np.linspace(*bounds, 11))
    assert found[:10].tolist() == expected.tolist()
    assert found[10:].sum() == found[BELOW] + found[ABOVE]


def test_values_at_an_edge_are_counted_as_in_the_sample() -> None:
    sample = np.round(RNG.integers(0, 31, 3000) * 0.1, 1)
    column = column_of(sample.tolist())
    shares = count(column, sample.tolist())[:10] / len(sample)
    assert shares * 1000 == pytest.approx(column.usual.shares, abs=0.51)


def test_what_lies_outside_of_the_sample_is_counted_beside_its_bin() -> None:
    column = column_of(np.linspace(0.0, 1.0, 100).tolist(), seen=(0.0, 1.0))
    found = count(column, [-0.5, 0.5, 1.5, 2.5, math.nan])
    assert (found[BELOW], found[ABOVE], found[MISSING]) == (1, 2, 1)
    assert found[:10].sum() == 4


def test_numbers_that_the_sample_never_had_are_unseen() -> None:
    column = column_of([0.0] * 20 + [1.0] * 20, seen=(0.0, 1.0))
    found = count(column, [0.0, 1.0, 1.0, 0.5, 7.0])
    assert found[:3].tolist() == [1, 2, 0]
    assert (found[UNSEEN], found[OTHER], found[ABOVE]) == (2, 0, 1)


def test_rare_categories_are_others_and_only_unlisted_ones_unseen() -> None:
    sample = [0.0] * 50 + [1.0] * 40 + [2.0] * 3
    column = column_of(sample, kind="category", categories=("a", "b", "c"), open=True)
    found = count(column, [0.0, 2.0, 3.0, 3.0, math.nan])
    assert found[:2].tolist() == [1, 0]
    assert (found[OTHER], found[UNSEEN], found[MISSING]) == (1, 2, 1)
    assert found[BELOW] == found[ABOVE] == 0


def test_a_boolean_that_was_always_the_same_is_another_value_not_an_unseen_one() -> None:
    found = count(column_of([1.0] * 50, kind="boolean"), [0.0, 1.0])
    assert (found[0], found[OTHER], found[UNSEEN]) == (1, 1, 0)


def plain_psi(expected: Sequence[float], live: Sequence[float]) -> float:
    """The index as the textbooks write it."""
    expected = [max(share / sum(expected), MIN_SHARE) for share in expected]
    live = [max(share / sum(live), MIN_SHARE) for share in live]
    return sum((new - old) * math.log(new / old) for old, new in zip(expected, live, strict=True))


shares = st.lists(st.integers(0, 100), min_size=1, max_size=10).filter(any)


@given(shares, st.data())
def test_the_index_is_that_of_a_plain_implementation(old: list[int], data: st.DataObject) -> None:
    new = data.draw(st.lists(st.integers(0, 1000), min_size=len(old) + 2, max_size=len(old) + 2).filter(any))
    usual = Distribution(values=tuple(map(float, range(len(old)))), shares=tuple(old), missing=0)
    bins = Bins((Column("a", 0, usual, None, is_coded=True),), 1000)
    counts = np.zeros(CELLS)
    counts[: len(old)], counts[OTHER], counts[MISSING] = new[:-2], new[-2], new[-1]
    expected = [*old, max(0, 1000 - sum(old)), 0]
    (rows,), (psi,) = bins.measure(counts)
    assert psi == pytest.approx(plain_psi(expected, new), abs=1e-12)
    assert rows == sum(new)


def test_unseen_values_and_missing_ones_raise_the_index() -> None:
    column = column_of([0.0] * 50 + [1.0] * 50, kind="category", categories=("a", "b"), open=True)
    bins, usual = Bins((column,), 100), [0.0, 1.0] * 100

    def psi(cells: list[float]) -> float:
        return float(bins.measure(count(column, cells))[1][0])

    assert psi(usual) == pytest.approx(0.0, abs=1e-3)
    assert psi([*usual, *[2.0] * 40]) > 0.5
    assert psi([*usual, *[math.nan] * 40]) > 0.5
    assert psi([]) == 0.0


@pytest.mark.parametrize("sample_rows", [100, 1000, 10_000])
def test_the_limit_is_above_chance_and_below_a_change_of_one_standard_deviation(sample_rows: int) -> None:
    rows, many = 500, 2000
    population = RNG.normal(size=50_000)
    sample = RNG.choice(population, sample_rows)
    column = column_of(sample.tolist())
    bins = Bins((column,), sample_rows)
    found = [float(bins.measure(count(column, RNG.choice(population, rows)))[1][0]) for _ in range(many)]
    limit = float(bins.chance(np.array([float(rows)]))[0])
    assert max(found) < limit
    shifted = [float(bins.measure(count(column, RNG.choice(population, rows) + 1.0))[1][0]) for _ in range(100)]
    assert min(shifted) > limit
