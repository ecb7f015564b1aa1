"""Work beside requests: a task that no caller waits for, and results that callers share for some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from serving.errors import StoreUnavailable
from serving.storage.guard import ServerUnavailable


class BackgroundTask:
    """Runs `work` in a task whenever it is woken, unless it is running already. Belongs to one event loop.

    An idle process has no such task, and none exists before the fork.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], *, closing_seconds: float) -> None:
        """`work` ends when nothing is left to do; `close` gives it `closing_seconds` for that."""
        self._work = work
        self._closing_seconds = closing_seconds
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is work; never waits."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Let the work end for a moment, then cancel it."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=self._closing_seconds)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


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


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """Whether a store can be written, and if not, why; or what may become of what it keeps."""

    state: State
    reason: str = ""


async def no_risk() -> str | None:
    """Of a store that loses nothing."""
    return None


def watch_store(
    probe: Callable[[], Awaitable[object]], risk: Callable[[], Awaitable[str | None]] = no_risk
) -> Recent[StoreHealth]:
    """Caches whether a store is writable, for the health check; `probe` raises StoreUnavailable."""

    async def health() -> StoreHealth:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await probe()
                return StoreHealth("ok", await risk() or "")
        except TimeoutError:
            return StoreHealth("unavailable", "no answer in time")
        except StoreUnavailable as error:
            # of a server that does not answer only its name: clients need not know its address
            is_away = isinstance(error.__cause__, ServerUnavailable)
            return StoreHealth("unavailable", str(error).partition(":")[0] if is_away else str(error))

    return Recent(health, STATE_SECONDS)
