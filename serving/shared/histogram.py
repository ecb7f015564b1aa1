"""Durations counted in buckets that grow by a fifth: a quantile read from them is off by at most a tenth.

The layout is that of HDR histograms, four buckets to every doubling; the bucket of a duration is found by bisection.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

SHORTEST_SECONDS = 50e-6
BUCKETS_A_DOUBLING = 4
DOUBLINGS = 21

BOUNDS = tuple(
    SHORTEST_SECONDS * 2 ** (step / BUCKETS_A_DOUBLING) for step in range(BUCKETS_A_DOUBLING * DOUBLINGS + 1)
)
"""Upper bounds in seconds, 50 us to 105 s; longer durations fall into one more bucket."""

BUCKETS = len(BOUNDS) + 1

COARSE_BOUNDS = BOUNDS[::BUCKETS_A_DOUBLING]
"""The bounds exposed to Prometheus, which keeps a series for each."""


def quantile(counts: Sequence[float], share: float) -> float | None:
    """The duration in seconds that a `share` of all did not exceed, from the counts of BUCKETS; None if all are 0."""
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
    """The number of durations up to each of COARSE_BOUNDS, and last their total under infinity."""
    reached = list(accumulate(counts))
    return [*zip(COARSE_BOUNDS, reached[::BUCKETS_A_DOUBLING], strict=False), (float("inf"), reached[-1])]
