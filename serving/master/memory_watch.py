"""What the watchdog is shown: the memory of all processes of a master, read as seldom as will do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from serving.master.memory import CRITICAL, Alert, Member, Watchdog
from serving.master.memory_limits import find_cgroup
from serving.process.kernel import Memory, child_pids, name_of, read_memory, read_rss
from serving.shared.pressure import Pressure

LOOK_SECONDS = 1.0
STALE_SECONDS = 10.0
"""Shared pages change hands without a sign."""

CHANGED_BYTES = 1024 * 1024
EXECUTOR = "executor"


class Census:
    """Memory by process, read anew when the resident size has changed: that costs 0.01 ms to see, to read 7 ms."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, float, Memory]] = {}

    def measure(self, pid: int) -> Memory | None:
        """None when it is gone."""
        with suppress(OSError):
            rss, now = read_rss(pid), time.monotonic()
            known = self._known.get(pid)
            if known is None or abs(rss - known[0]) > CHANGED_BYTES or now - known[1] > STALE_SECONDS:
                self._known[pid] = known = (rss, now, read_memory(pid))
            return known[2]
        return None

    def forget_all_but(self, pids: set[int]) -> None:
        """Of processes that are gone."""
        self._known = {pid: known for pid, known in self._known.items() if pid in pids}


class MemoryWatch:
    """The memory of one gunicorn master, its workers and runners, and theirs."""

    def __init__(
        self,
        pressure: Pressure,
        *,
        limit: int,
        share: int,
        processes: int,
        replace: Callable[[int], None],
        alert: Alert,
    ) -> None:
        """`limit` in bytes, 0 for that of the cgroup; `share`, of one of `processes`, 0 for an equal part."""
        self._cgroup = None if limit else find_cgroup()
        self._limit = limit or (self._cgroup.limit if self._cgroup is not None else 0)
        self._share = share
        self._processes = processes
        self._census = Census()
        self._next_look = 0.0
        self._watchdog = Watchdog(pressure, limit=self._limit, share=share, replace=replace, kill=_kill, alert=alert)
        self.measure_master()

    def measure_master(self) -> None:
        """Divide what the master leaves, once it holds other models."""
        with suppress(OSError):
            left = self._limit * CRITICAL - read_memory(os.getpid()).held
            # one more while an old one drains
            self._watchdog.share = self._share or max(0, int(left / (self._processes + 1)))

    def look(self, workers: Mapping[int, bool], runners: Mapping[int, bool]) -> None:
        """Once a second however often it is called. Both say of each process whether it is leaving."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        children = {pid: _descendants(pid) for pid in (*workers, *runners)}
        everybody = {os.getpid(), *children, *(pid for below in children.values() for pid in below)}
        memories = {pid: memory for pid in everybody if (memory := self._census.measure(pid)) is not None}
        self._census.forget_all_but(everybody)
        members = [
            Member(
                pid,
                private=memories[pid].private,
                children=sum(memories[child].private for child in children[pid] if child in memories),
                leaving=workers.get(pid, False) or runners.get(pid, False),
                calls={child: memories[child].private for child in children[pid] if child in memories and _calls(child)}
                if pid not in workers
                else {},
            )
            for pid in children
            if pid in memories
        ]
        self._watchdog.look(self._used(memories), members)

    def _used(self, memories: Mapping[int, Memory]) -> int:
        if self._cgroup is not None:
            with suppress(OSError):
                return self._cgroup.used()
        return sum(memory.held for memory in memories.values())


def _descendants(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        with suppress(OSError):  # gone in between, or a system that does not tell
            below = child_pids(waiting.pop())
            found += below
            waiting += below
    return found


def _calls(pid: int) -> bool:
    try:
        return name_of(pid) == EXECUTOR
    except OSError:
        return False


def _kill(pid: int) -> None:
    """Looked at again through a descriptor, because its id may by now be that of another process."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if _calls(pid):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
