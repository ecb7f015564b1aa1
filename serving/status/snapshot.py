"""The figures of all processes at one moment, taken once for all who ask within half a second."""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from registry.registry import Registry
from serving.errors import StoreUnavailable
from serving.jobs.job import Counts
from serving.jobs.store import JobStore
from serving.process.kernel import RUNNER, SCHEDULER, WEB, Memory, child_pids, name_of, read_age, read_memory
from serving.schedules.timetable import Timetable
from serving.shared.book import Book, Page
from serving.shared.metrics import RESPONSES, Metrics
from serving.shared.pressure import Pressure, Reading
from serving.shared.reloads import Reloads

FRESH_SECONDS = 0.5
"""However many look on, the kernel adds up the pages of every process only so often."""

JOBS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `requests` are those it has answered."""

    pid: int
    kind: str
    age_seconds: float
    memory: Memory
    requests: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All figures, as of `time`. `jobs` are of all instances that share a store; None when it is away."""

    time: datetime
    pages: list[Page]
    processes: list[Process]
    jobs: Counts | None
    reloads: int
    refused: int
    pressure: Reading
    schedules: list[dict[str, Any]]
    versions: tuple[tuple[str, str], ...]
    """Models and their versions that are loaded."""

    def of(self, kind: str) -> list[Process]:
        """The processes of a kind: master, web or runner."""
        return [process for process in self.processes if process.kind == kind]


class Figures:
    """Takes snapshots, for one event loop."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        registry: Registry,
        store: JobStore,
        reloads: Reloads,
        pressure: Pressure,
        timetable: Timetable,
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._reloads = reloads
        self._pressure = pressure
        self._timetable = timetable
        self._versions = tuple((model.name, model.version) for model in registry)
        self._lock = asyncio.Lock()
        self._taken = -math.inf
        self._last: Snapshot | None = None

    async def take(self) -> Snapshot:
        """Figures that are at most FRESH_SECONDS old."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._taken > FRESH_SECONDS:
                self._last = await self._take()
                self._taken = time.monotonic()
            return self._last

    async def _take(self) -> Snapshot:
        now = datetime.now(UTC)
        self._metrics.publish()
        jobs = await self._count_jobs()
        pages = self._metrics.book.read()
        # some milliseconds a process: too long for the event loop
        processes = await asyncio.to_thread(partial(_processes, self._metrics.book, pages))
        return Snapshot(
            time=now,
            pages=pages,
            processes=processes,
            jobs=jobs,
            reloads=self._reloads.finished,
            refused=len(self._reloads.last().refused),
            pressure=self._pressure.read(),
            schedules=await self._timetable.rows(),
            versions=self._versions,
        )

    async def _count_jobs(self) -> Counts | None:
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(JOBS_SECONDS):
                return await self._store.counts()
        return None


def _processes(book: Book, pages: list[Page]) -> list[Process]:
    """The master, its workers and its runners; without a master, this process."""
    slots = {pid: slot for slot, pid in book.pids().items()}
    kinds = _kinds()
    responses = next(page.rows for page in pages if page.sheet.families == RESPONSES)
    found = []
    for pid, kind in kinds.items():
        with suppress(OSError):  # gone in between, or not ours to look at
            requests = int(responses[slots[pid]].sum()) if pid in slots else 0
            found.append(Process(pid, kind, read_age(pid), read_memory(pid), requests))
    return found


def _kinds() -> dict[int, str]:
    """Master, workers and runners. Without a master nobody has given this process its name."""
    own, master = os.getpid(), os.getppid()
    kinds: dict[int, str] = {}
    with suppress(OSError):
        if name_of(own) != WEB:
            return {own: WEB}
        kinds[master] = "master"
        for pid in child_pids(master):
            with suppress(OSError):
                kinds[pid] = name_of(pid)
    return {pid: kind for pid, kind in kinds.items() if kind in ("master", WEB, RUNNER, SCHEDULER)}
