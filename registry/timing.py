"""How long something takes when nothing else gets in its way."""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 5

ENOUGH_SECONDS = 0.5
"""What takes so long is not tried again: it is slow, held up or not."""


def quickest(call: Callable[[], object]) -> float:
    """Seconds of the quickest of some calls: what was slower was held up by something else on the machine."""
    seconds: list[float] = []
    while len(seconds) < TRIES and sum(seconds) < ENOUGH_SECONDS:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
