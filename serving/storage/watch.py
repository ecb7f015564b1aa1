"""Whether a store can be written, for who asks how the service is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from serving.errors import StoreUnavailable

State = Literal["ok", "unavailable"]

PATIENCE_SECONDS = 1.0
"""A proxy that asks for the health waits for some seconds only."""

FRESH_SECONDS = 5.0


class StoreWatch:
    """Asks the store now and then, not for everybody who asks."""

    def __init__(self, look: Callable[[], Awaitable[object]]) -> None:
        """`look` raises StoreUnavailable."""
        self._ask = look
        self._state: State = "ok"
        self._asked = -FRESH_SECONDS

    async def state(self) -> State:
        """As it was within the last seconds."""
        if time.monotonic() - self._asked > FRESH_SECONDS:
            self._asked = time.monotonic()
            self._state = await self._look()
        return self._state

    async def _look(self) -> State:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._ask()
        except (StoreUnavailable, TimeoutError):
            return "unavailable"
        return "ok"
