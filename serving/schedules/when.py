"""The times of a schedule, by a cron expression in a time zone or at intervals, and those of them that are due."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
INTERVAL = re.compile(r"([1-9][0-9]{0,5})([smh])")
MAX_INTERVAL_SECONDS = 86_400
CRON_FIELDS = 5
NEVER = float("inf")

MAX_COUNTED_FIRINGS = 10_000
"""Missed firings that are counted one by one."""


@dataclass(frozen=True, slots=True)
class Cron:
    """Five fields as in Debian's cron, which also defines what happens when the clocks change.

    A fixed hour that a change skips fires when the change is over; one that it repeats fires once. Where minutes or
    hours begin with a star, every time that the wall clock shows counts.
    """

    expression: str
    zone: ZoneInfo

    def after(self, moment: float) -> float:
        """The first firing later than `moment`, in whole seconds since the epoch; NEVER if there is none."""
        try:
            times = (at.timestamp() for at in CronSim(self.expression, datetime.fromtimestamp(moment, self.zone)))
            # in the second of two equal hours CronSim still gives the first one's times
            return next((at for at in times if at > moment), NEVER)
        except (OverflowError, ValueError):  # later than any date
            return NEVER

    def __str__(self) -> str:
        return f"{self.expression} in {self.zone.key}"


@dataclass(frozen=True, slots=True)
class Every:
    """Multiples of an interval since the epoch, so that all instances agree."""

    seconds: int

    def after(self, moment: float) -> float:
        """The first firing later than `moment`, in whole seconds since the epoch."""
        return (moment // self.seconds + 1) * self.seconds

    def __str__(self) -> str:
        return f"every {self.seconds}s"


When: TypeAlias = Cron | Every


@dataclass(frozen=True, slots=True)
class Due:
    """The firings between the last one and now."""

    upto: float
    """The time of the latest of them."""
    fires: bool
    """True if the latest firing is within its grace; otherwise it is missed."""
    missed: int = 0
    """Firings later than their grace."""
    coalesced: int = 0
    """Firings within their grace that the latest one replaces."""


def find_due(when: When, last: float, now: float, grace: float) -> Due | None:
    """Return the firings due after `last`, or None. Only the latest of those within `grace` seconds takes place.

    Counting stops after MAX_COUNTED_FIRINGS missed ones, so that a long absence delays nothing.
    """
    upto, missed, recent = last, 0, 0
    at = when.after(last)
    while at <= now:
        upto = at
        if now - at > grace:
            missed += 1
        else:
            recent += 1
        at = when.after(at if missed != MAX_COUNTED_FIRINGS else max(at, now - grace))
    if upto == last:
        return None
    return Due(upto, fires=recent > 0, missed=missed, coalesced=max(0, recent - 1))


def parse_cron(expression: str, zone: str) -> Cron:
    """Raises ValueError, which describes the fault of the expression or the zone."""
    if len(expression.split()) != CRON_FIELDS:
        raise ValueError(f"{expression!r} is not a cron expression of {CRON_FIELDS} fields")
    try:
        cron = Cron(expression, ZoneInfo(zone))
        CronSim(expression, datetime.fromtimestamp(0, cron.zone))
    except CronSimError as error:
        raise ValueError(f"{expression!r} is not a cron expression: {error}") from None
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"unknown time zone {zone!r}") from None
    if cron.after(0) == NEVER:
        raise ValueError(f"{expression!r} never fires")
    return cron


def parse_every(interval: str) -> Every:
    """An interval like `30s`, `5m` or `2h`, up to a day. Raises ValueError."""
    found = INTERVAL.fullmatch(interval)
    seconds = int(found[1]) * UNIT_SECONDS[found[2]] if found else 0
    if not 0 < seconds <= MAX_INTERVAL_SECONDS:
        raise ValueError(f"every {interval!r} must be like 30s, 5m or 2h, up to 24h")
    return Every(seconds)
