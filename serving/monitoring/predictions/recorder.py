"""The recorder: one process of low priority that stores what the workers have noted, and forgets what is too old."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import structlog

from serving.errors import InvalidRequest, StoreUnavailable
from serving.monitoring.predictions.log import PredictionLog, read_record
from serving.monitoring.predictions.store import LoggedPrediction, PredictionStore
from serving.process.child import ending_event
from serving.shared.ring import Ring

POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
PRUNE_SECONDS = 60.0
SETTLE_SECONDS = 2.0

TAKEN_BYTES = 256 * 1024
"""Bytes of records that are taken from a ring at once: about 1,000 rows."""

log = structlog.get_logger(__name__)


class Recorder:
    """Reads all rings of a log, and writes to its store; there is one at a time."""

    def __init__(self, predictions: PredictionLog, store: PredictionStore) -> None:
        self.log = predictions
        self._store = store
        self._pruned = float("-inf")
        self._is_failing = False

    async def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """In any process: wait until what has been answered until now is stored, but not longer than `seconds`."""
        await asyncio.sleep(POLL_SECONDS / 4)  # workers copy at the end of a turn of their event loops
        waiting = self.log.waiting()
        deadline = time.monotonic() + seconds
        while not self.log.has_stored(waiting) and time.monotonic() < deadline:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(POLL_SECONDS / 4)

    def start(self) -> Callable[[], Awaitable[None]]:
        """In a process without a master: work in a task. Returns what ends it."""
        stopping = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self.work(stopping))

        async def stop() -> None:
            stopping.set()
            await task

        return stop

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then store what is left."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        stopping = ending_event()
        log.info("Recorder started", pid=os.getpid())
        await self.work(stopping)
        await self._store.close()
        log.info("Recorder stopped", pid=os.getpid())

    async def work(self, stopping: asyncio.Event) -> None:
        """Store what arrives until `stopping` is set, then what is left if the store can be reached."""
        while not stopping.is_set():
            pause = POLL_SECONDS
            try:
                if await self.store_some():
                    continue
                await self._prune()
            except StoreUnavailable as error:
                self._say(str(error))
                pause = RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stopping.wait()
        with suppress(StoreUnavailable):
            while await self.store_some():
                pass

    async def store_some(self) -> bool:
        """Store some records of each ring; False if there are none. Raises StoreUnavailable, and releases none then."""
        rows: list[LoggedPrediction] = []
        ends = [(ring, self._read(ring, rows)) for ring in self.log.rings.all if ring.head > ring.tail]
        if rows:
            await self._add(rows)
        for ring, end in ends:
            ring.release(end)
        return bool(rows)

    def _read(self, ring: Ring, rows: list[LoggedPrediction]) -> int:
        """Append some rows of a ring; where those end. Records of a later reload are left to a later recorder."""
        records, end = ring.read(TAKEN_BYTES)
        for record in records:
            try:
                rows += read_record(record, self.log.described, self.log.policy.redacted)
            except IndexError:
                return record.position
        return end

    async def _add(self, rows: Sequence[LoggedPrediction]) -> None:
        """Store rows; those that the store refuses, for what is in them, are counted and dropped."""
        try:
            await self._store.add(rows)
        except InvalidRequest:
            if len(rows) == 1:
                self.log.count("refused", 1)
                return
            middle = len(rows) // 2
            await self._add(rows[:middle])
            await self._add(rows[middle:])
            return
        self.log.count("stored", len(rows))
        if self._is_failing:
            self._is_failing = False
            log.info("Predictions are logged again")

    async def _prune(self) -> None:
        if time.monotonic() - self._pruned < PRUNE_SECONDS:
            return
        policy = self.log.policy
        before = datetime.now(UTC) - timedelta(days=policy.keep_days)
        if not await self._store.prune(policy.keep_rows, before):
            self._pruned = time.monotonic()

    def _say(self, reason: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning("Predictions cannot be logged", reason=reason)
