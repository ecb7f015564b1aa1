"""When a schedule fires: at the times of a cron expression in a time zone, or every so many seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

UNITS = {"s": 1, "m": 60, "h": 3600}
LENGTH = re.compile(r"([1-9][0-9]{0,5})([smh])")
LONGEST = 86_400
FIELDS = 5
NEVER = float("inf")


class When(Protocol):
    """Times in seconds since the epoch, all of them whole, and the same for everybody who asks."""

    def after(self, moment: float) -> float:
        """The first time that is later than `moment`; NEVER if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Cron:
    """Five fields as in Debian's cron, which also says what happens when clocks are changed.

    A fixed hour that a change skips is made up for when the change is over, and one that it repeats counts once. Where
    minutes or hours begin with a star, as often as the clock on the wall shows it.
    """

    expression: str
    zone: ZoneInfo

    def after(self, moment: float) -> float:
        try:
            times = (at.timestamp() for at in CronSim(self.expression, datetime.fromtimestamp(moment, self.zone)))
            # of an hour that comes twice it gives the first one, even to who is in the second
            return next((at for at in times if at > moment), NEVER)
        except (OverflowError, ValueError):  # later than a date can be
            return NEVER

    def __str__(self) -> str:
        return f"{self.expression} in {self.zone.key}"


@dataclass(frozen=True, slots=True)
class Every:
    """Every so many seconds of the epoch, so that all instances mean the same times."""

    seconds: int

    def after(self, moment: float) -> float:
        return (moment // self.seconds + 1) * self.seconds

    def __str__(self) -> str:
        return f"every {self.seconds}s"


def parse_cron(expression: str, zone: str) -> Cron:
    """Raises ValueError, saying what is wrong with it."""
    if len(expression.split()) != FIELDS:
        raise ValueError(f"{expression!r} is no cron expression of {FIELDS} fields")
    try:
        cron = Cron(expression, ZoneInfo(zone))
        CronSim(expression, datetime.fromtimestamp(0, cron.zone))
    except CronSimError as error:
        raise ValueError(f"{expression!r} is no cron expression: {error}") from None
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{zone!r} is no time zone that is known here") from None
    if cron.after(0) == NEVER:
        raise ValueError(f"{expression!r} never comes")
    return cron


def parse_every(length: str) -> Every:
    """Of `30s`, `5m` or `2h`, up to a day. Raises ValueError."""
    found = LENGTH.fullmatch(length)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"every {length!r} must be like 30s, 5m or 2h, up to 24h")
    return Every(seconds)
