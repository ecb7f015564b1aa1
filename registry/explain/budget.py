"""The time that a sampled explanation may take: how many evaluations fit into a request, or that only jobs have time.

The time of one real explanation decides, that of a background row; an estimate comes first, so that a hopeless model
holds nothing up. The decision is recorded with the version and kept, so that it does not change between two loads:
only a model that is many times slower or faster here than where it was added is decided upon again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from registry.estimator import Compute, clock, quickest
from registry.explain.sampling import call_rows, rows_per_explanation, sampling_explainer
from registry.explain.shap_values import Budget, CannotExplain, Contributions, Explainer, Space
from registry.rows.features import Rows

MAX_REQUEST_SECONDS = 1.0
"""A model whose row takes longer to explain is explained in jobs only."""

AIM_SECONDS = 0.5
"""A row is explained with fewer evaluations where all of them would take longer."""

JOB_SECONDS = 10.0
"""The same, where only jobs have time."""

FAR_SLOWER = 4.0
FAR_FASTER = 8.0
"""Times by which an estimate must be beyond the limit, or below it, to overrule what was recorded."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A function to be explained by sampling, in a space, and the background rows."""

    function: Compute
    background: Rows
    space: Space

    def explainer(self, asked: int, recorded: Budget | None) -> Explainer:
        """The explainer within the budget that was recorded, if it still holds, or else within a new one.

        Raises CannotExplain.
        """
        budget = recorded if recorded is not None and self._holds(recorded, asked) else self._decide(asked)
        made = sampling_explainer(self.function, self.background, self.space, budget.evaluations)
        return replace(made, jobs_only=budget.jobs_only, budget=budget)

    def _holds(self, recorded: Budget, asked: int) -> bool:
        if recorded.asked != asked:
            return False
        expected = self._cost().seconds(self.background, recorded.evaluations)
        if recorded.jobs_only:
            return expected > MAX_REQUEST_SECONDS / FAR_FASTER
        return expected <= MAX_REQUEST_SECONDS * FAR_SLOWER

    def _decide(self, asked: int) -> Budget:
        cost, background = self._cost(), self.background
        choices = _choices(background, asked)
        for evaluations in choices:
            last = evaluations == choices[-1]
            # an estimate errs, but hardly by more than this
            if cost.seconds(background, evaluations) > FAR_SLOWER * MAX_REQUEST_SECONDS:
                continue
            if self._seconds(evaluations) <= (MAX_REQUEST_SECONDS if last else AIM_SECONDS):
                return Budget(asked, evaluations, jobs_only=False)
        fitting = (one for one in choices if cost.seconds(background, one) <= JOB_SECONDS)
        return Budget(asked, next(fitting, choices[-1]), jobs_only=True)

    def _cost(self) -> _CallCost:
        one = quickest(lambda: self.function(self.background[:1]))
        rows = len(self.background)
        whole = quickest(lambda: self.function(self.background)) if rows > 1 else one
        per_row = max(0.0, whole - one) / max(1, rows - 1)
        return _CallCost(max(0.0, one - per_row), per_row)

    def _seconds(self, evaluations: int) -> float:
        """The time of one explanation; infinite where it takes longer than a request may. Raises CannotExplain."""
        row = self.background[len(self.background) // 2][None]
        ends = math.inf

        def bounded(rows: Rows) -> Rows:
            if clock() > ends:
                raise _TooSlow
            return self.function(rows)

        explain = sampling_explainer(bounded, self.background, self.space, evaluations).explain
        ends = clock() + MAX_REQUEST_SECONDS
        found: list[Contributions] = []
        try:
            seconds = quickest(lambda: found.append(explain(row)))
        except _TooSlow:
            return math.inf
        if not np.isfinite(found[-1].values).all():
            raise CannotExplain("it gives no finite numbers for rows whose values come from several others")
        return seconds


class _TooSlow(Exception):
    """An explanation has taken longer than a request may."""


@dataclass(frozen=True, slots=True)
class _CallCost:
    """Seconds that a call of a function takes, without its rows and for each row."""

    per_call: float
    per_row: float

    def seconds(self, background: Rows, evaluations: int) -> float:
        """An estimate of the time of one explanation."""
        rows = rows_per_explanation(background, evaluations)
        calls = math.ceil(rows / call_rows(background.shape[1]))
        return calls * self.per_call + rows * self.per_row


def _choices(background: Rows, asked: int) -> list[int]:
    """Evaluations from `asked` down to the fewest, by halves; those that make no difference are left out."""
    choices = [asked]
    evaluations = asked
    while evaluations > 1:
        evaluations //= 2
        if rows_per_explanation(background, evaluations) < rows_per_explanation(background, choices[-1]):
            choices.append(evaluations)
    return choices
