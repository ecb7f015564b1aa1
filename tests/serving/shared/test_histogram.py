"""Quantiles from buckets, held against numpy's over the durations themselves."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest

from serving.shared.histogram import BOUNDS, BUCKETS, COARSE_BOUNDS, cumulate, quantile


def count(seconds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    counts = [0.0] * BUCKETS
    for duration in seconds.tolist():
        counts[bisect_left(BOUNDS, duration)] += 1
    return counts


@pytest.mark.parametrize("median", [0.0001, 0.004, 0.3, 9.0])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_quantiles_are_at_most_a_tenth_off(median: float, share: float) -> None:
    seconds = np.random.default_rng(1).lognormal(np.log(median), 0.5, 20_000)
    found = quantile(count(seconds), share)
    assert found == pytest.approx(float(np.quantile(seconds, share)), rel=0.1)


def test_nothing_has_no_quantile() -> None:
    assert quantile([0.0] * BUCKETS, 0.5) is None


def test_what_takes_for_ever_is_counted_and_told_as_the_longest() -> None:
    counts = count(np.array([1e9]))
    assert quantile(counts, 0.5) == BOUNDS[-1]
    assert cumulate(counts)[-2:] == [(COARSE_BOUNDS[-1], 0.0), (float("inf"), 1.0)]


def test_coarse_buckets_hold_what_did_not_exceed_them() -> None:
    seconds = np.random.default_rng(2).lognormal(np.log(0.01), 2.0, 5_000)
    for bound, counted in cumulate(count(seconds)):
        assert counted == (seconds <= bound).sum()
