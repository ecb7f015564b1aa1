"""Writes behind the answer's back what may be late, again and again while the source is away."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice

import structlog

from serving.entities.record import Outcome
from serving.entities.store import BATCH, Source
from serving.errors import DataQueueFull, StoreUnavailable

MAX_WAITING = 10_000
RETRY_SECONDS = 1.0
CLOSING_SECONDS = 2.0

log = structlog.get_logger(__name__)


class OutcomeWriter:
    """Outcomes of many requests, written together. What waits is lost with its process: it is only for who says so."""

    def __init__(
        self,
        source: Source,
        *,
        max_waiting: int = MAX_WAITING,
        retry_seconds: float = RETRY_SECONDS,
        closing_seconds: float = CLOSING_SECONDS,
    ) -> None:
        self._source = source
        self._max_waiting = max_waiting
        self._retry_seconds = retry_seconds
        self._closing_seconds = closing_seconds
        self._waiting: deque[Outcome] = deque()
        self._writing: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Outcomes that are not yet written; for metrics."""
        return len(self._waiting)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Take them all, or none and raise DataQueueFull; never waits."""
        if len(self._waiting) + len(outcomes) > self._max_waiting:
            raise DataQueueFull
        self._waiting.extend(outcomes)
        if self._writing is None or self._writing.done():
            # a task for each burst: an idle worker has none, and none exists before the fork
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Write what is left, for `closing_seconds` at most; drop the rest and say so."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=self._closing_seconds)
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
            self._writing = None
        if self._waiting:
            log.error("Outcomes are lost", outcomes=len(self._waiting))
            self._waiting.clear()

    async def _write(self) -> None:
        away = False
        while self._waiting:
            batch = list(islice(self._waiting, BATCH))
            try:
                await self._source.add_outcomes(batch)
            except StoreUnavailable as error:
                if not away:
                    log.warning("Outcomes have to wait", outcomes=len(self._waiting), reason=str(error))
                away = True
                await asyncio.sleep(self._retry_seconds)
                continue
            away = False
            # only now: a batch that was sent twice is kept once
            for _ in batch:
                self._waiting.popleft()
