"""Work that no caller waits for: done by one task, which exists only while there is some."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


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
