"""A snapshot of all processes and what they count, shared by all callers of half a second."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from registry.registry import Registry
from serving.errors import StoreUnavailable
from serving.jobs.job import Counts
from serving.jobs.store import JobStore
from serving.process.kernel import RUNNER, SCHEDULER, WEB, Memory, child_pids, name_of, read_age, read_memory
from serving.service import Service
from serving.shared.book import Book, SheetCopy
from serving.shared.metrics import RESPONSES
from serving.shared.pressure import Reading
from serving.storage.background import Recent

FRESH_SECONDS = 0.5
"""The kernel adds up the pages of every process for a snapshot, which takes some milliseconds each."""

COUNT_JOBS_SECONDS = 1.0

MASTER = "master"
KINDS = (MASTER, WEB, RUNNER, SCHEDULER)


@dataclass(frozen=True, slots=True)
class Process:
    """A process of KINDS, with the number of requests that it has answered."""

    pid: int
    kind: str
    age_seconds: float
    memory: Memory
    requests: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The service as of `time`. `jobs` are those of all instances that share a store; None if it is unavailable."""

    time: datetime
    pages: list[SheetCopy]
    processes: list[Process]
    jobs: Counts | None
    reloads: int
    refused: int
    pressure: Reading
    schedules: list[dict[str, Any]]
    versions: Mapping[str, int]
    """The number of loaded versions of each model."""
    live: Mapping[str, str]
    """The live version of each model."""
    registry_errors: Mapping[str, int]
    """The number of versions of each model that could not be loaded."""

    def of(self, kind: str) -> list[Process]:
        """The processes of one of KINDS."""
        return [process for process in self.processes if process.kind == kind]


def recent_snapshot(service: Service) -> Recent[Snapshot]:
    """Snapshots that are at most FRESH_SECONDS old, for one event loop."""

    async def take() -> Snapshot:
        shared = service.shared
        now = datetime.now(UTC)
        service.metrics.publish()
        jobs = await _count(shared.jobs)
        pages = shared.book.read()
        # some milliseconds a process: too long for the event loop
        processes = await asyncio.to_thread(_processes, shared.book, pages)
        return Snapshot(
            time=now,
            pages=pages,
            processes=processes,
            jobs=jobs,
            reloads=shared.reloads.finished,
            refused=len(shared.reloads.last().refused),
            pressure=shared.pressure.read(),
            schedules=await service.scheduler.timetable(),
            versions=Counter(model.name for model in service.registry),
            live={model.name: model.version for model in service.registry.live()},
            registry_errors=_count_errors(service.registry),
        )

    return Recent(take, FRESH_SECONDS)


def _count_errors(registry: Registry) -> Mapping[str, int]:
    errors = dict.fromkeys((model.name for model in registry), 0)
    return errors | Counter(refusal.model for refusal in registry.refusals)


async def _count(jobs: JobStore) -> Counts | None:
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(COUNT_JOBS_SECONDS):
            return await jobs.counts()
    return None


def _processes(book: Book, pages: list[SheetCopy]) -> list[Process]:
    """All processes of KINDS below this master; without a master, this process."""
    slots = {pid: slot for slot, pid in book.pids().items()}
    responses = next(page.rows for page in pages if page.sheet.families == RESPONSES)
    found = []
    for pid, kind in _kinds().items():
        with suppress(OSError):  # gone in between, or not ours to look at
            requests = int(responses[slots[pid]].sum()) if pid in slots else 0
            found.append(Process(pid, kind, read_age(pid), read_memory(pid), requests))
    return found


def _kinds() -> dict[int, str]:
    """The kind of each process by its id. Without a master, no process has given this one its name."""
    own, master = os.getpid(), os.getppid()
    kinds: dict[int, str] = {}
    with suppress(OSError):
        if name_of(own) != WEB:
            return {own: WEB}
        kinds[master] = MASTER
        for pid in child_pids(master):
            with suppress(OSError):
                kinds[pid] = name_of(pid)
    return {pid: kind for pid, kind in kinds.items() if kind in KINDS}
