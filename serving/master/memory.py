"""The master watches memory: it measures all processes, asks them to trim, and replaces the largest when it is short.

Context: a box of 512 MB kills the process that asks for the last page, which is rarely the one that wasted memory.
Decision: the master looks once a second, because it alone sees all processes, has time, and replaces workers anyway, by
the drain that also follows their last request: no request is lost. Consequence: memory is not watched while the master
loads models for a reload.

Executors that compute jobs go first: a job is retried, and no client waits for an answer. One process at a time is
replaced, and only if that frees enough; when no such process is left, one alert says so until memory is calm again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import structlog

from serving.process.kernel import Memory, descendants, name_of, read_memory, read_rss
from serving.service import Shared
from serving.settings import Settings
from serving.shared.pressure import Pressure, Reading, Stage

log = structlog.get_logger(__name__)

MB = 1024 * 1024

HIGH_SHARE = 0.85
CRITICAL_SHARE = 0.92
CALM_SHARE = 0.80
"""Shares of the limit from which processes trim, the largest is replaced, and all is well again."""

WORTHWHILE_BYTES = 24 * MB
"""A fresh worker has 6 to 14 MB of its own: replacing a process with less than this gains nothing."""

TRIM_SECONDS = 30.0
COOL_DOWN_SECONDS = 60.0
"""Between two replacements of processes that exceed their share, while there is still enough for all."""

SETTLE_SECONDS = 2.0
"""Between any two replacements: the effect of the last one has to show first."""

ALERT_AGAIN_SECONDS = 3600.0
"""Between two alerts about processes that exceed their share."""

LOOK_SECONDS = 1.0
STALE_SECONDS = 10.0
"""A measurement is repeated after so long: shared pages change hands without a change of size."""

CHANGED_BYTES = 1024 * 1024
EXECUTOR = "executor"

UNLIMITED_BYTES = 1 << 60
"""A cgroup of version 1 without a limit shows a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Member:
    """A process that can be replaced: bytes that only it holds, and those that only its children hold."""

    pid: int
    private: int
    children: int = 0
    leaving: bool = False
    executors: Mapping[int, int] = field(default_factory=dict)
    """Private bytes of a runner's executors, by pid. They may be killed: the jobs go on after that."""

    @property
    def whole(self) -> int:
        """Bytes of the process and its children."""
        return self.private + self.children


class Watchdog:
    """Decides when processes trim and which one is replaced or killed; the callbacks do it."""

    def __init__(
        self,
        pressure: Pressure,
        *,
        limit: int,
        share: int,
        replace: Callable[[int], None],
        kill: Callable[[int], None],
        alert: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bytes: `limit` for all processes, `share` for one (0: no bound).

        `replace` begins to replace a member, `kill` ends an executor. `alert` takes a kind, for machines, and a
        sentence; it must return soon and never raise.
        """
        self._pressure = pressure
        self._limit = limit
        self.share = share
        self._replace = replace
        self._kill = kill
        self._alert = alert
        self._clock = clock
        self._stage: Stage = "calm"
        self._alerted: set[str] = set()
        self._next_trim = self._next_for_share = self._next_share_alert = self._next_replacement = float("-inf")

    def look(self, used: int, members: Sequence[Member]) -> None:
        """Act on `used` bytes in all and on what each member holds."""
        self._judge(used)
        self._pressure.write(Reading(used, self._limit, self.share, self._stage))
        now = self._clock()
        if self._stage != "calm" and now >= self._next_trim:
            self._next_trim = now + TRIM_SECONDS
            self._pressure.trims += 1
        if now < self._next_replacement:
            return
        if self._stage == "critical":
            self._relieve(members)
        elif self.share and now >= self._next_for_share and not any(member.leaving for member in members):
            self._keep_to_share(members)

    def _judge(self, used: int) -> None:
        share = used / self._limit if self._limit else 0.0
        if share >= HIGH_SHARE:
            self._stage = "critical" if share >= CRITICAL_SHARE else "high"
            self._alert_once("memory-high", f"Memory is high: {used // MB} of {self._limit // MB} MB are used")
        elif share < CALM_SHARE and self._stage != "calm":
            self._stage = "calm"
            self._alerted.clear()
            log.info("Memory is calm again", used_bytes=used, limit_bytes=self._limit)
        elif self._stage == "critical":
            self._stage = "high"

    def _relieve(self, members: Sequence[Member]) -> None:
        executors = {pid: private for member in members for pid, private in member.executors.items()}
        largest = max(executors, key=executors.__getitem__, default=0)
        if largest and executors[largest] >= WORTHWHILE_BYTES:
            self._kill_executor(largest, executors[largest])
            return
        if any(member.leaving for member in members):
            return
        worst = max(members, key=lambda member: member.whole, default=None)
        if worst is None or worst.whole < WORTHWHILE_BYTES:
            self._alert_once("memory-futile", "Memory is short, and replacing processes would not help")
            return
        self._begin(worst, "the box is short of memory")

    def _keep_to_share(self, members: Sequence[Member]) -> None:
        worst = max(members, key=lambda member: member.private, default=None)
        if worst is None or worst.private < max(self.share, WORTHWHILE_BYTES):
            return
        now = self._clock()
        self._next_for_share = now + COOL_DOWN_SECONDS
        self._begin(worst, "it exceeds its share")
        if now >= self._next_share_alert:
            self._next_share_alert = now + ALERT_AGAIN_SECONDS
            message = f"A process has {worst.private / MB:.0f} MB of its own; its share is {self.share / MB:.0f} MB"
            self._alert("memory-share", message)

    def _begin(self, member: Member, reason: str) -> None:
        self._next_replacement = self._clock() + SETTLE_SECONDS
        log.warning("Process replaced to free memory", pid=member.pid, private_bytes=member.whole, reason=reason)
        self._replace(member.pid)

    def _kill_executor(self, pid: int, private: int) -> None:
        self._next_replacement = self._clock() + SETTLE_SECONDS
        log.warning("Executor killed to free memory", pid=pid, private_bytes=private)
        self._kill(pid)

    def _alert_once(self, kind: str, message: str) -> None:
        """Alert, and not again before memory has been calm."""
        if kind not in self._alerted:
            self._alerted.add(kind)
            self._alert(kind, message)


class MemoryWatch:
    """Shows the watchdog the processes of one master: workers, runners, and their children."""

    def __init__(self, settings: Settings, shared: Shared, *, processes: int, replace: Callable[[int], None]) -> None:
        """Without MAX_MEMORY_MB the limit is that of the cgroup; an equal part of it is each process's share."""
        limit = settings.max_memory_mb * MB
        self._cgroup = None if limit else find_cgroup()
        self._limit = limit or (self._cgroup.limit if self._cgroup is not None else 0)
        self._share = settings.max_worker_memory_mb * MB
        self._processes = processes
        self._known: dict[int, tuple[int, float, Memory]] = {}
        self._next_look = 0.0
        self._watchdog = Watchdog(
            shared.pressure,
            limit=self._limit,
            share=self._share,
            replace=replace,
            kill=_kill,
            alert=shared.alerts.alert,
        )
        self.measure_master()

    def measure_master(self) -> None:
        """Divide what the master leaves of the limit; called again when it holds other models."""
        with suppress(OSError):
            left = self._limit * CRITICAL_SHARE - read_memory(os.getpid()).held
            # one more while an old one drains
            self._watchdog.share = self._share or max(0, int(left / (self._processes + 1)))

    def look(self, workers: Mapping[int, bool], runners: Mapping[int, bool]) -> None:
        """Measure and act, at most once a second. Both map the pid of a process to whether it is leaving."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        children = {pid: descendants(pid) for pid in (*workers, *runners)}
        memories = self._measure({os.getpid(), *children, *chain(*children.values())})
        members = []
        for pid, leaving in (*workers.items(), *runners.items()):
            if pid in memories:
                private = {child: memories[child].private for child in children[pid] if child in memories}
                executors = {child: private[child] for child in private if pid in runners and _is_executor(child)}
                members.append(Member(pid, memories[pid].private, sum(private.values()), leaving, executors))
        self._watchdog.look(self._used(memories), members)

    def _measure(self, pids: set[int]) -> dict[int, Memory]:
        """The memory of those that live. It takes 7 ms to read, so only if the resident size (0.01 ms) has changed."""
        before, self._known = self._known, {}
        for pid in pids:
            with suppress(OSError):
                rss, now = read_rss(pid), time.monotonic()
                known = before.get(pid)
                if known is None or abs(rss - known[0]) > CHANGED_BYTES or now - known[1] > STALE_SECONDS:
                    known = rss, now, read_memory(pid)
                self._known[pid] = known
        return {pid: memory for pid, (_, _, memory) in self._known.items()}

    def _used(self, memories: Mapping[int, Memory]) -> int:
        if self._cgroup is not None:
            with suppress(OSError):
                return self._cgroup.used()
        return sum(memory.held for memory in memories.values())


def _is_executor(pid: int) -> bool:
    try:
        return name_of(pid) == EXECUTOR
    except OSError:
        return False


def _kill(pid: int) -> None:
    """Kill an executor. The descriptor comes first: by now the pid may be that of another process."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if _is_executor(pid):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup with a memory limit, of version 1 or 2."""

    path: Path
    v2: bool
    limit: int

    def used(self) -> int:
        """Bytes that cannot be reclaimed; the page cache, which fills any limit, is left out. Raises OSError."""
        wanted = ("anon", "shmem") if self.v2 else ("total_rss", "total_shmem")
        found = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return sum(int(found.get(name, 0)) for name in wanted)


def find_cgroup(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Cgroup | None:
    """The tightest of the cgroups around this process; None if none has a visible limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    found = [cgroup for line in lines for cgroup in _limited(line, root)]
    return min(found, key=lambda cgroup: cgroup.limit, default=None)


def _limited(line: str, root: Path) -> list[Cgroup]:
    """The cgroups with a limit along the path in a line `number:controllers:path` of /proc/self/cgroup."""
    _, _, rest = line.partition(":")
    controllers, _, inside = rest.partition(":")
    v2 = controllers == ""
    if not v2 and "memory" not in controllers.split(","):
        return []
    top = root if v2 else root / "memory"
    # a container may see its own cgroup as the top, while the path is the one outside
    here = top / inside.lstrip("/")
    found = []
    for path in dict.fromkeys((here, *here.parents)):
        limit = _read_limit(path / ("memory.max" if v2 else "memory.limit_in_bytes"))
        if limit is not None:
            found.append(Cgroup(path, v2, limit))
        if path == top:
            break
    return found


def _read_limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < UNLIMITED_BYTES else None
