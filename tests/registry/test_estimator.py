"""One measurement alone says how busy the machine is; the quickest of some says what the thing itself takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from registry import estimator


@pytest.mark.parametrize(
    ("durations", "quickest", "calls"),
    [
        ([0.2, 0.004, 0.1, 0.003, 0.005, 0.001], 0.003, 5),
        ([0.3, 0.4, 0.1], 0.3, 2),
        ([9.0, 0.1], 9.0, 1),
    ],
)
def test_a_call_that_was_held_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch, durations: list[float], quickest: float, calls: int
) -> None:
    now, left = 100.0, list(durations)

    def call() -> None:
        nonlocal now
        now += left.pop(0)

    monkeypatch.setattr(estimator, "time", SimpleNamespace(perf_counter=lambda: now))
    assert estimator.quickest(call) == pytest.approx(quickest)
    assert len(durations) - len(left) == calls
