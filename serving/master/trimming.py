"""Giving back to the system what a process does not need."""

from __future__ import annotations

import ctypes
import gc

from serving.shared.pressure import Pressure


def give_back() -> None:
    """Return free heap to the system (glibc only); a few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Trimmer:
    """Collects garbage and trims the heap when the master asks for it, once each time."""

    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self._heeded = 0

    def heed(self) -> None:
        """What was there at the fork is frozen: the collector reads it, but does not write to it and so copies none."""
        asked = self._pressure.trims
        if asked != self._heeded:
            self._heeded = asked
            gc.collect()
            give_back()
