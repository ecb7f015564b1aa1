"""How short of memory the service is, as its master sees it, in memory that all of its processes share."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Literal

Stage = Literal["calm", "high", "critical"]

STAGES: tuple[Stage, ...] = ("calm", "high", "critical")
USED, LIMIT, STAGE, TRIMS, SHARE = range(5)


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes in use that cannot be thrown out, and how many there may be; 0 for what nobody knows.

    `share` is what one process may have for itself.
    """

    used: int
    limit: int
    share: int
    stage: Stage


class Pressure:
    """Made before the fork; only the master writes."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 8 * 8)).cast("Q")

    def read(self) -> Reading:
        numbers = self._numbers
        return Reading(numbers[USED], numbers[LIMIT], numbers[SHARE], STAGES[numbers[STAGE]])

    def write(self, reading: Reading) -> None:
        self._numbers[USED], self._numbers[LIMIT] = reading.used, reading.limit
        self._numbers[SHARE], self._numbers[STAGE] = reading.share, STAGES.index(reading.stage)

    def ask_to_trim(self) -> None:
        """Have every process give back what it does not need."""
        self._numbers[TRIMS] += 1

    @property
    def trims(self) -> int:
        """How often that was asked for."""
        return self._numbers[TRIMS]
