"""The memory pressure of the service: its master measures it, all of its processes read it."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from typing import Literal

from serving.shared.numbers import Number, Numbers

Stage = Literal["calm", "high", "critical"]

STAGES: tuple[Stage, ...] = ("calm", "high", "critical")


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes in use that cannot be reclaimed, and the limit; 0 means unknown. `share` is the limit of one process."""

    used: int
    limit: int
    share: int
    stage: Stage


class Pressure(Numbers):
    """To be made before the fork; only the master writes."""

    _used = Number()
    _limit = Number()
    _share = Number()
    _stage = Number()
    trims = Number()
    """The number of times that the master has asked every process to give back memory that it does not need."""

    def read(self) -> Reading:
        return Reading(self._used, self._limit, self._share, STAGES[self._stage])

    def write(self, reading: Reading) -> None:
        self._used, self._limit, self._share = reading.used, reading.limit, reading.share
        self._stage = STAGES.index(reading.stage)


class Trimmer:
    """Collects garbage and trims the heap, once each time the master asks for it."""

    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self._heeded = 0

    def heed(self) -> None:
        """Trim if asked to. Objects from before the fork are frozen: the collector copies none of their pages."""
        asked = self._pressure.trims
        if asked != self._heeded:
            self._heeded = asked
            gc.collect()
            give_back()


def give_back() -> None:
    """Return free heap to the system (glibc only); takes a few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
