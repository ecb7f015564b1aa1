"""Which firings are due, and what becomes of those that nobody was there for."""

from __future__ import annotations

from dataclasses import dataclass

from serving.schedules.when import When

MOST_COUNTED = 10_000
"""Firings of a long absence that are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Due:
    """The firings between the last one and now."""

    upto: float
    """The time of the latest of them."""
    fires: bool
    """Whether that one is still to be done; else it is one of those missed."""
    missed: int = 0
    """Those too long ago."""
    coalesced: int = 0
    """Those that were recent enough, but for which the latest one stands."""


def find_due(when: When, last: float, now: float, grace: float) -> Due | None:
    """What is due after `last`, or None. Of those within `grace` seconds only the latest is done.

    An absence of more than MOST_COUNTED firings is not counted to its end, so that nobody waits for that.
    """
    upto, missed, recent = last, 0, 0
    at = when.after(last)
    while at <= now:
        upto = at
        if now - at > grace:
            missed += 1
        else:
            recent += 1
        at = when.after(at if missed != MOST_COUNTED else max(at, now - grace))
    if upto == last:
        return None
    return Due(upto, fires=recent > 0, missed=missed, coalesced=max(0, recent - 1))
