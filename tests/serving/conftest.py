"""What the tests of stores share: opening them, a clock, and waiting for what is about to happen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds for what takes milliseconds when the machine is idle."""


class WallClock:
    """Seconds since the epoch that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Closeable(Protocol):
    """A store, whatever it stores."""

    async def close(self) -> None: ...


class Opener:
    """Opens the same stores again and again, as if each time in another process or instance, and closes them."""

    def __init__(self, kind: str, directory: Path, url: str) -> None:
        self.kind = kind
        self.clock = WallClock()
        """SQLite's; Redis has its own."""
        self.directory = directory
        self.url = url
        self._opened: list[Closeable] = []

    def open_either(self, sqlite: Callable[..., Closeable], redis: Callable[..., Closeable], **options: Any) -> Any:
        """One of the kind that is asked for, with the options that both have."""
        if self.kind == "redis":
            store = redis(self.url, timeout=PATIENCE, **options)
        else:
            store = sqlite(self.directory, busy_seconds=PATIENCE, clock=self.clock, **options)
        self._opened.append(store)
        return store

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


async def until(attempt: Callable[[], Awaitable[T | None]]) -> T:
    """The first result that is neither None nor False; fails after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if result := await attempt():
                return result
            await asyncio.sleep(0.002)
