"""Looks after memory in the master: says that it is short, has processes give some back, replaces the largest.

Context: a box of 512 MB kills whoever asks for the last page, and what asks for it is rarely what wasted it. Decision:
the master looks once a second, because it alone sees all processes, has time, and replaces workers anyway, by the same
drain as after their last request: none is lost. Consequence: nobody looks while the master loads models at a reload.

The processes in which jobs call their models go first: a job is tried again, and no client waits for an answer.
Never more than one at a time, and never for nothing: a process that has little for itself is left alone, and when no
other is left, that is said once, until memory has been calm again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from serving.shared.pressure import Pressure, Reading, Stage

log = structlog.get_logger(__name__)

Alert: TypeAlias = Callable[[str, str], None]
"""Tells the operator: a kind, for machines, and a sentence. To return soon, and never to raise."""

MB = 1024 * 1024

HIGH = 0.85
CRITICAL = 0.92
CALM = 0.80
"""Shares of the limit: said and trimmed; replaced; over. Between the first and the last nothing is said again."""

WORTHWHILE = 24 * MB
"""A fresh worker has 6 to 14 MB for itself: who has less than this gains nothing by being replaced."""

TRIM_SECONDS = 30.0
COOL_DOWN_SECONDS = 60.0
"""Between two replacements for a process' share, while there is still enough for all."""

SETTLE_SECONDS = 2.0
"""Between any two: what the last one has freed must be seen first."""


SAY_AGAIN_SECONDS = 3600.0
"""A process that grows again and again is said so often."""


@dataclass(frozen=True, slots=True)
class Member:
    """A process that can be replaced, and what it shares with nobody; its children have that besides."""

    pid: int
    private: int
    children: int = 0
    leaving: bool = False
    calls: Mapping[int, int] = field(default_factory=dict)
    """Of a runner, the processes that call its models: they may be killed, since jobs go on after that."""

    @property
    def whole(self) -> int:
        return self.private + self.children


class Watchdog:
    """Decides; the master does."""

    def __init__(
        self,
        pressure: Pressure,
        *,
        limit: int,
        share: int,
        replace: Callable[[int], None],
        kill: Callable[[int], None],
        alert: Alert,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit` in bytes, of all; `share`, of one process: 0 for none. `replace` begins to replace a process.

        `kill` ends one of the `calls`.
        """
        self._pressure = pressure
        self._limit = limit
        self.share = share
        self._replace = replace
        self._kill = kill
        self._alert = alert
        self._clock = clock
        self._stage: Stage = "calm"
        self._told: set[str] = set()
        self._next_trim = self._next_for_share = self._next_said = self._next_replacement = float("-inf")

    def look(self, used: int, members: Sequence[Member]) -> None:
        """Judge what is used now, and by whom."""
        self._judge(used)
        self._pressure.write(Reading(used, self._limit, self.share, self._stage))
        now = self._clock()
        if self._stage != "calm" and now >= self._next_trim:
            self._next_trim = now + TRIM_SECONDS
            self._pressure.ask_to_trim()
        if now < self._next_replacement:
            return
        if self._stage == "critical":
            self._relieve(members)
        elif self.share and now >= self._next_for_share and not any(member.leaving for member in members):
            self._keep_to_share(members)

    def _judge(self, used: int) -> None:
        share = used / self._limit if self._limit else 0.0
        if share >= HIGH:
            self._stage = "critical" if share >= CRITICAL else "high"
            self._tell("memory-high", f"Memory is high: {used // MB} of {self._limit // MB} MB are used")
        elif share < CALM and self._stage != "calm":
            self._stage = "calm"
            self._told.clear()
            log.info("Memory is calm again", used_bytes=used, limit_bytes=self._limit)
        elif self._stage == "critical":
            self._stage = "high"

    def _relieve(self, members: Sequence[Member]) -> None:
        calls = [item for member in members for item in member.calls.items() if item[1] >= WORTHWHILE]
        if calls:
            self._end_call(*max(calls, key=lambda call: call[1]))
            return
        if any(member.leaving for member in members):
            return
        worst = max(members, key=lambda member: member.whole, default=None)
        if worst is None or worst.whole < WORTHWHILE:
            self._tell("memory-futile", "Memory is short, and replacing processes would not help")
            return
        self._begin(worst, "the box is short of memory")

    def _keep_to_share(self, members: Sequence[Member]) -> None:
        worst = max(members, key=lambda member: member.private, default=None)
        if worst is None or worst.private < max(self.share, WORTHWHILE):
            return
        now = self._clock()
        self._next_for_share = now + COOL_DOWN_SECONDS
        self._begin(worst, "it has grown past its share")
        if now >= self._next_said:
            self._next_said = now + SAY_AGAIN_SECONDS
            message = f"A process has {worst.private / MB:.0f} MB for itself and may have {self.share / MB:.0f}"
            self._alert("memory-share", message)

    def _begin(self, member: Member, reason: str) -> None:
        self._next_replacement = self._clock() + SETTLE_SECONDS
        log.warning("Process is replaced for its memory", pid=member.pid, private_bytes=member.whole, reason=reason)
        self._replace(member.pid)

    def _end_call(self, pid: int, private: int) -> None:
        self._next_replacement = self._clock() + SETTLE_SECONDS
        log.warning("Call of a job is killed for its memory", pid=pid, private_bytes=private)
        self._kill(pid)

    def _tell(self, kind: str, message: str) -> None:
        """Once, until memory has been high and is calm again."""
        if kind not in self._told:
            self._told.add(kind)
            self._alert(kind, message)
