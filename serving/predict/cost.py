"""What running a model costs: measured at the start for those that may run on the event loop, learnt for the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from registry.estimator import quickest
from registry.rows.features import Rows
from serving.predict.operation import EVERYTHING, Operation

INLINE_SECONDS = 0.001
"""A hand-over to a thread costs 0.06 to 0.09 ms, and the loop may be blocked for some milliseconds at the most."""

SAMPLE = 64

MAX_INLINE_ROWS = 1024

HAND_OVER = 0.0002
"""Seconds that a batch on a thread costs besides what the model takes."""

ENOUGH = 0.9

MEMORY = 0.95
"""What a batch still counts when the next one has run."""


@dataclass(slots=True)
class Cost:
    """What batches of one model take on a thread: a part of its own and a part for each row, learnt as they run.

    A least-squares line through the batches seen, of which older ones count less and less.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_rows: float = 0.0
    rows_seconds: float = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """One more batch."""
        self.weight = 1.0 + MEMORY * self.weight
        self.rows = rows + MEMORY * self.rows
        self.seconds = seconds + MEMORY * self.seconds
        self.rows_rows = rows * rows + MEMORY * self.rows_rows
        self.rows_seconds = rows * seconds + MEMORY * self.rows_seconds

    def expect(self, rows: int) -> float:
        """Seconds for a batch of so many rows; 0 as long as none has been seen."""
        fixed, each = self._line()
        return fixed + each * rows

    def batch_rows(self, seconds: float, most: int) -> int:
        """How many rows, of at most `most`, to run together: as many as `seconds` allow, and no more than help.

        A batch saves the fixed part, once per row more. When that is ENOUGH of the way to what an endless batch would
        reach, further rows would only wait for each other. What is not known yet is tried.
        """
        if not self.weight:
            return most
        fixed, each = self._line()
        if each <= 0:
            return most
        in_time = (seconds - fixed) / each
        helpful = ENOUGH / (1 - ENOUGH) * (fixed + HAND_OVER) / each
        if self._is_of_one_size():
            helpful = max(helpful, 2 * self.rows / self.weight)
        return max(1, int(min(most, in_time, helpful)))

    def _is_of_one_size(self) -> bool:
        """True when the batches seen tell nothing of others."""
        mean = self.rows / self.weight
        return self.rows_rows / self.weight - mean**2 <= 0.01 * mean**2

    def _line(self) -> tuple[float, float]:
        """The part of its own and the part for each row."""
        if not self.weight:
            return 0.0, 0.0
        mean_rows, mean_seconds = self.rows / self.weight, self.seconds / self.weight
        each = mean_seconds / mean_rows
        if not self._is_of_one_size():
            covariance = self.rows_seconds / self.weight - mean_rows * mean_seconds
            variance = self.rows_rows / self.weight - mean_rows**2
            each = min(each, max(0.0, covariance / variance))  # no batch takes less than no time by itself
        return mean_seconds - each * mean_rows, each


def measure_inline_rows(operation: Operation) -> int:
    """How many rows are answered within INLINE_SECONDS, from the quickest answers to one row and to 64."""
    if not operation.may_run_inline:
        return 0
    rows = example_rows(operation)
    one, many = rows[:1], np.resize(rows, (SAMPLE, rows.shape[1]))
    seconds_of_one = quickest(lambda: operation.answer(one, EVERYTHING))
    if seconds_of_one > INLINE_SECONDS:
        return 0
    seconds_of_many = quickest(lambda: operation.answer(many, EVERYTHING))
    each = max((seconds_of_many - seconds_of_one) / (SAMPLE - 1), 1e-9)
    fixed = max(seconds_of_one - each, 0.0)
    return max(0, min(MAX_INLINE_ROWS, int((INLINE_SECONDS - fixed) / each)))


def example_rows(operation: Operation) -> Rows:
    """Rows that the model has seen."""
    model = operation.model
    return model.schema.rows([list(row) for row in model.manifest.background])
