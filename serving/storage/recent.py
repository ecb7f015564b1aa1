"""Results that are too expensive to compute for every caller: computed now and then, shared in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Literal, TypeVar

from serving.errors import StoreUnavailable

T = TypeVar("T")

State = Literal["ok", "unavailable"]

PROBE_SECONDS = 1.0
"""A probe that takes longer has failed: a proxy waits only some seconds for the health check."""

STATE_SECONDS = 5.0


class Recent(Generic[T]):
    """The result of an asynchronous function, at most `seconds` old. Belongs to one event loop."""

    def __init__(self, compute: Callable[[], Awaitable[T]], seconds: float) -> None:
        """If `compute` raises, so does `get`, and the next call tries again."""
        self._compute = compute
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._result: tuple[float, T] | None = None

    async def get(self) -> T:
        """The last result, or a new one; concurrent callers wait for the same."""
        async with self._lock:
            if self._result is None or time.monotonic() - self._result[0] > self._seconds:
                result = await self._compute()
                self._result = time.monotonic(), result
            return self._result[1]


def watch_store(probe: Callable[[], Awaitable[object]]) -> Recent[State]:
    """Caches whether a store is writable, for the health check; `probe` raises StoreUnavailable."""

    async def state() -> State:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await probe()
        except (StoreUnavailable, TimeoutError):
            return "unavailable"
        return "ok"

    return Recent(state, STATE_SECONDS)
