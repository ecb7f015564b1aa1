"""Sliding windows over totals that only grow: what was counted in a window is the difference of two totals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from serving.monitoring.bins import Numbers
from serving.shared.numbers import shared_floats, shared_integers

WINDOW = re.compile(r"([1-9][0-9]{0,4})([mhd])")
UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}
MAX_WINDOW_SECONDS = 31 * 86_400.0
MAX_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class Window:
    """A time that ends now."""

    name: str
    seconds: float


def parse_windows(texts: Iterable[str]) -> tuple[Window, ...]:
    """Parse windows such as `1h` and `1d`. Raises ValueError."""
    windows = tuple(map(_parse, dict.fromkeys(texts)))
    if len(windows) > MAX_WINDOWS:
        raise ValueError(f"must be at most {MAX_WINDOWS} windows")
    return windows


def _parse(text: str) -> Window:
    found = WINDOW.fullmatch(text)
    seconds = int(found[1]) * UNITS[found[2]] if found else math.inf
    if seconds > MAX_WINDOW_SECONDS:
        raise ValueError("must be windows of minutes, hours or days, such as 1h,1d, none longer than 31d")
    return Window(text, seconds)


class Snapshots:
    """The newest snapshots of totals, in shared memory, each with a stamp; who uses it holds the lock."""

    def __init__(self, snapshots: int, width: int) -> None:
        """Made before the fork."""
        self._stamps = np.frombuffer(shared_floats(snapshots), np.float64)
        self._totals = np.frombuffer(shared_floats(snapshots * width), np.float64).reshape(snapshots, width)
        self._added = shared_integers(1)

    def add(self, stamp: float, totals: Numbers) -> None:
        """Add a snapshot whose stamp is no smaller than those before; the oldest one makes room for it."""
        place = self._added[0] % len(self._stamps)
        self._stamps[place], self._totals[place] = stamp, totals
        self._added[0] += 1

    @property
    def newest(self) -> float:
        """The stamp of the newest snapshot."""
        return float(self._stamps[(self._added[0] - 1) % len(self._stamps)])

    def before(self, stamp: float) -> tuple[float, Numbers]:
        """The newest snapshot that is no newer than `stamp`, else the oldest that there is: its stamp and totals."""
        stamps = self._stamps[: self._added[0]].tolist()
        found = max((one for one in stamps if one <= stamp), default=min(stamps))
        return found, self._totals[stamps.index(found)]
