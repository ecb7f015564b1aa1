"""The time of a real explanation decides how many evaluations a row gets, and whether requests are explained at all."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from registry import estimator
from registry.explain import budget
from registry.explain.budget import Sampled
from registry.explain.shap_values import Budget, CannotExplain
from registry.rows.features import Rows

BACKGROUND = np.random.default_rng(0).normal(size=(100, 12))


class SlowModel:
    """A function on whose clock a call, and each row of it, takes some time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, per_row: float, per_call: float = 0.0) -> None:
        self.now, self.per_row, self.per_call = 0.0, per_row, per_call
        monkeypatch.setattr(budget, "clock", lambda: self.now)
        monkeypatch.setattr(estimator, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(estimator, "held_up", lambda: 0.0)

    def __call__(self, rows: Rows) -> Rows:
        self.now += self.per_call + self.per_row * len(rows)
        return rows.sum(axis=1, keepdims=True)

    def decide(self, asked: int = 500, recorded: Budget | None = None) -> Budget:
        explainer = Sampled(self, BACKGROUND, "value").explainer(asked, recorded)
        assert explainer.budget is not None
        assert (explainer.jobs_only, explainer.evaluations) == (
            explainer.budget.jobs_only,
            explainer.budget.evaluations,
        )
        return explainer.budget


def test_quick_model_gets_all_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SlowModel(monkeypatch, 1e-6).decide() == Budget(500, 500, jobs_only=False)


def test_overhead_of_a_call_is_not_counted_for_each_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4 ms times 500 evaluations would be two seconds; they are 50 calls
    assert SlowModel(monkeypatch, 1e-6, 4e-3).decide() == Budget(500, 500, jobs_only=False)


@pytest.mark.parametrize(("per_row", "evaluations"), [(4e-5, 125), (2e-4, 31)])
def test_slower_model_gets_fewer_evaluations(per_row: float, evaluations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SlowModel(monkeypatch, per_row).decide() == Budget(500, evaluations, jobs_only=False)


def test_model_that_is_too_slow_even_so_is_for_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SlowModel(monkeypatch, 1e-3).decide() == Budget(500, 62, jobs_only=True)


def test_hopeless_model_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SlowModel(monkeypatch, 0.1)
    assert model.decide().jobs_only
    assert model.now < 60  # seven calls for the background; an explanation would take minutes


@pytest.mark.parametrize("jobs_only", [True, False])
@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_recorded_decision_does_not_change_sides(
    factor: float, monkeypatch: pytest.MonkeyPatch, *, jobs_only: bool
) -> None:
    recorded = SlowModel(monkeypatch, 1e-3 if jobs_only else 1e-4).decide()
    assert recorded.jobs_only == jobs_only
    slower = SlowModel(monkeypatch, factor * (1e-3 if jobs_only else 1e-4))
    assert slower.decide(recorded=recorded) == recorded


@pytest.mark.parametrize(("before", "now", "jobs_only"), [(1e-4, 1e-1, True), (1e-2, 1e-6, False)])
def test_decision_that_is_off_by_far_is_made_anew(
    before: float, now: float, monkeypatch: pytest.MonkeyPatch, *, jobs_only: bool
) -> None:
    recorded = SlowModel(monkeypatch, before).decide()
    assert recorded.jobs_only != jobs_only
    assert SlowModel(monkeypatch, now).decide(recorded=recorded).jobs_only == jobs_only


def test_other_setting_is_decided_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SlowModel(monkeypatch, 1e-6)
    assert model.decide(1000, model.decide(500)) == Budget(1000, 1000, jobs_only=False)


def test_model_without_numbers_for_mixed_rows_is_not_explained() -> None:
    def function(rows: Rows) -> Rows:
        known = (rows[:, None] == BACKGROUND).all(axis=2).any(axis=1)
        return np.where(known, 1.0, np.nan)[:, None]

    with pytest.raises(CannotExplain, match="no finite numbers"):
        Sampled(function, BACKGROUND, "value").explainer(500, None)
