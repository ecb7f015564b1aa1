"""One measurement alone says how busy the machine is; the quickest of some says what the thing itself takes."""

from __future__ import annotations

from pathlib import Path
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
    monkeypatch.setattr(estimator, "held_up", lambda: 0.0)
    assert estimator.quickest(call) == pytest.approx(quickest)
    assert len(durations) - len(left) == calls


def test_waiting_for_a_processor_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = 100.0, 7.0

    def call() -> None:
        nonlocal now, waited
        now, waited = now + 3.0, waited + 2.5

    monkeypatch.setattr(estimator, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(estimator, "held_up", lambda: waited)
    assert estimator.quickest(call) == pytest.approx(0.5)
    assert estimator.clock() == pytest.approx(now - waited)


def test_kernel_that_does_not_tell_of_waiting_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert estimator.held_up() >= 0
    monkeypatch.setattr(estimator, "SCHEDULE", tmp_path / "none")
    assert estimator.held_up() == 0.0
