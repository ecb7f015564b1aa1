"""Durations counted in buckets that grow by a fifth: a quantile read from them is at most a tenth off.

The layout is that of HDR histograms, four buckets to every doubling; where a duration falls is found by bisection.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

SHORTEST = 50e-6
BUCKETS_A_DOUBLING = 4
DOUBLINGS = 21

BOUNDS = tuple(SHORTEST * 2 ** (step / BUCKETS_A_DOUBLING) for step in range(BUCKETS_A_DOUBLING * DOUBLINGS + 1))
"""Upper bounds in seconds, 50 us to 105 s; what takes longer falls into one more bucket."""

BUCKETS = len(BOUNDS) + 1

COARSE = BOUNDS[::BUCKETS_A_DOUBLING]
"""Those that are told to Prometheus, which keeps a series for each."""


def quantile(counts: Sequence[float], share: float) -> float | None:
    """The duration in seconds that a `share` of all did not exceed, from the counts of BUCKETS; None for nothing."""
    wanted = share * sum(counts)
    if not wanted:
        return None
    reached = 0.0
    for bucket, count in enumerate(counts):
        if count and reached + count >= wanted:
            low = BOUNDS[bucket - 1] if bucket else 0.0
            high = BOUNDS[min(bucket, len(BOUNDS) - 1)]
            return low + (high - low) * (wanted - reached) / count
        reached += count
    return BOUNDS[-1]


def cumulate(counts: Sequence[float]) -> list[tuple[float, float]]:
    """How many did not exceed each of the COARSE bounds, and at last how many there were."""
    reached = list(accumulate(counts))
    return [*zip(COARSE, reached[::BUCKETS_A_DOUBLING], strict=False), (float("inf"), reached[-1])]
