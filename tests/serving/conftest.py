"""What the tests of stores share: a clock, and waiting for what is about to happen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds for what takes milliseconds when the machine is idle."""


class WallClock:
    """Seconds since the epoch that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


async def until(attempt: Callable[[], Awaitable[T | None]]) -> T:
    """The first result that is neither None nor False; fails after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if result := await attempt():
                return result
            await asyncio.sleep(0.002)
