"""The cost of running a model: measured at the start if it may run on the event loop, else learnt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from registry.estimator import quickest
from registry.explain.explanation import Selection
from serving.predict.operation import Operation

INLINE_SECONDS = 0.001
"""A hand-over to a thread costs 0.06 to 0.09 ms, and the event loop may be blocked for a few milliseconds at most."""

MAX_INLINE_ROWS = 1024
SAMPLE_ROWS = 64  # at most, to measure what rows cost

HAND_OVER_SECONDS = 0.0002
"""The cost of a batch on a thread besides the model's own time."""

ENOUGH = 0.9
"""The share of an endless batch's saving at which further rows would only wait for each other."""

DECAY = 0.95
"""The weight that a batch keeps after the next one has run."""


@dataclass(slots=True)
class Cost:
    """The seconds that batches of one model take: a fixed part and a part for each row, learnt as they run.

    A least-squares line through the batches seen, of which older ones count less and less.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_rows: float = 0.0
    rows_seconds: float = 0.0
    largest: int = 0
    """Rows of the largest batch so far."""

    def learn(self, rows: int, seconds: float) -> None:
        """Add a batch."""
        self.weight = 1.0 + DECAY * self.weight
        self.rows = rows + DECAY * self.rows
        self.seconds = seconds + DECAY * self.seconds
        self.rows_rows = rows * rows + DECAY * self.rows_rows
        self.rows_seconds = rows * seconds + DECAY * self.rows_seconds
        self.largest = max(self.largest, rows)

    def expect(self, rows: int) -> float:
        """Seconds that a batch of so many rows will take; 0 before the first batch."""
        fixed, each = self._line()
        return fixed + each * rows

    def rows_in(self, seconds: float, most: int) -> int:
        """Return the number of rows for `seconds`: 1 at first, at most `most` and twice as many as were tried."""
        if not self.weight:
            return 1
        return max(1, min(most, 2 * self.largest, self._rows_in(seconds, most)))

    def batch_rows(self, seconds: float, most: int) -> int:
        """Return the number of waiting rows to run together: as many as fit into `seconds` and help, at most `most`.

        A batch saves the fixed part once for each further row, up to ENOUGH of what an endless batch would save. As
        long as nothing is known, all are run together.
        """
        if not self.weight:
            return most
        fixed, each = self._line()
        if each <= 0:
            return most
        helpful = ENOUGH / (1 - ENOUGH) * (fixed + HAND_OVER_SECONDS) / each
        if self._is_of_one_size():
            helpful = max(helpful, 2 * self.rows / self.weight)
        return max(1, min(self._rows_in(seconds, most), int(min(most, helpful))))

    def part_rows(self, seconds: float, most: int) -> int:
        """Return the number of rows of one request to run before others have their turn."""
        return min(self.rows_in(seconds, most), self.batch_rows(seconds, most))

    def _rows_in(self, seconds: float, most: int) -> int:
        fixed, each = self._line()
        return most if each <= 0 else int(min(most, (seconds - fixed) / each))

    def _is_of_one_size(self) -> bool:
        """True when the batches seen tell nothing about larger ones."""
        mean = self.rows / self.weight
        return self.rows_rows / self.weight - mean**2 <= 0.01 * mean**2

    def _line(self) -> tuple[float, float]:
        """The fixed part and the part for each row."""
        if not self.weight:
            return 0.0, 0.0
        mean_rows, mean_seconds = self.rows / self.weight, self.seconds / self.weight
        each = mean_seconds / mean_rows
        if not self._is_of_one_size():
            covariance = self.rows_seconds / self.weight - mean_rows * mean_seconds
            variance = self.rows_rows / self.weight - mean_rows**2
            each = min(each, max(0.0, covariance / variance))  # the fixed part is never negative
        return mean_seconds - each * mean_rows, each


def measure_inline_rows(operation: Operation) -> int:
    """Estimate the number of rows within INLINE_SECONDS, from the quickest answers to one row and to several."""
    if not operation.may_run_inline:
        return 0
    model, selection = operation.model, Selection(space=operation.space, interactions=operation.interactions)
    rows = model.background
    one = rows[:1]
    seconds_of_one = quickest(lambda: operation.answer(one, selection))
    if seconds_of_one > INLINE_SECONDS:
        return 0
    # several rows of a slow model would take long, and few rows tell as much
    count = min(SAMPLE_ROWS, 2 + int(4 * INLINE_SECONDS / max(seconds_of_one, 1e-9)))
    many = np.resize(rows, (count, rows.shape[1]))
    seconds_of_many = quickest(lambda: operation.answer(many, selection))
    each = max((seconds_of_many - seconds_of_one) / (count - 1), 1e-9)
    fixed = max(seconds_of_one - each, 0.0)
    return max(0, min(MAX_INLINE_ROWS, int((INLINE_SECONDS - fixed) / each)))
