"""Lets other clients have their turn while one request's body keeps the event loop busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TURN_SECONDS = 0.005
"""Seconds that one request may keep the event loop at a stretch."""


class Turns:
    """Long work is cut into pieces, far smaller than TURN_SECONDS; `pause` comes between them."""

    def __init__(self, check_client: Callable[[], None] = lambda: None) -> None:
        """`check_client` raises an error, which ends the work, when there is nobody left to answer."""
        self._check_client = check_client
        self._since = time.perf_counter()

    async def pause(self) -> None:
        """Let others have their turn if the last time was TURN_SECONDS ago. Raises what `check_client` raises."""
        if time.perf_counter() - self._since >= TURN_SECONDS:
            await asyncio.sleep(0)
            self._check_client()
            self._since = time.perf_counter()
