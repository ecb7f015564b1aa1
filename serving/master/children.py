"""The job runners and the scheduler of one master: forked from it, so that they share its models, and replaced.

Context: the runners have to see what the master has loaded, and nobody but their parent learns how they ended.
Decision: the master forks them itself, from where it looks after its web workers; it never waits for them. Consequence:
what is called here must be quick, and a runner's end is noticed within a second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from serving.master.memory import MemoryWatch
from serving.process.child import IGNORED, be_early_out_of_memory, fork, isolate
from serving.process.kernel import MESSENGER, RUNNER, SCHEDULER
from serving.shared.book import Book

log = structlog.get_logger(__name__)

FORK_SECONDS = 1.0
"""Between two forks in the same place: a runner that cannot live costs the master little."""

STOP_SECONDS = 5.0
"""A runner has so long to give its job back; else the job's lease runs out."""

NICE = 10
"""Web workers come first wherever there is not enough of the processor for all."""

OOM_SCORE = 800
"""Jobs go before web workers (500), and are resumed."""


LOST = {RUNNER: "Runner is lost", SCHEDULER: "Scheduler is lost", MESSENGER: "Messenger is lost"}


@dataclass(slots=True)
class _Place:
    """Where one runner lives, and after it the next."""

    pid: int = 0
    forked: float = -FORK_SECONDS
    leaving: bool = False
    """It has been told to end."""
    slot: int = 0
    """In the book of figures."""


class Runners:
    """A number of processes of one kind. To be used in a process with one thread, their parent."""

    def __init__(
        self, work: Callable[[], None], count: int, book: Book, *, name: str = RUNNER, keep: int | None = None
    ) -> None:
        """A runner calls `work`, which ends at SIGTERM; what it measures goes into the book.

        `name` is what the kernel calls it. Of the parent's descriptors it may `keep` one.
        """
        self._work = work
        self._book = book
        self._name = name
        self._keep = sys.stdout.fileno() if keep is None else keep
        self._places = [_Place() for _ in range(count)]
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """Those that live, as far as is known."""
        return [place.pid for place in self._places if place.pid]

    @property
    def leaving(self) -> dict[int, bool]:
        """The same, and whether they have been told to end."""
        return {place.pid: place.leaving for place in self._places if place.pid}

    def tend(self) -> None:
        """Look after them: reap those that have ended, fork those that are missing. To be called every second."""
        for place in self._places:
            self._reap(place)
            if not (place.pid or self._stopping) and time.monotonic() - place.forked >= FORK_SECONDS:
                self._fork(place)

    def replace(self) -> None:
        """Have all of them give back their jobs and end; `tend` forks others, of what the master is by then."""
        self._signal(signal.SIGTERM)
        for place in self._places:
            place.forked = -FORK_SECONDS

    def replace_one(self, pid: int) -> None:
        """The same of one of them."""
        for place in self._places:
            if place.pid == pid:
                self._send(place, signal.SIGTERM)

    def begin_stop(self) -> None:
        """Have all of them give back their jobs and end, and fork no more."""
        self._stopping = True
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """The same, and wait for it; who is late is killed."""
        self.begin_stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self.pids and time.monotonic() < deadline:
            self.tend()
            time.sleep(0.01)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for place in self._places:
            self._send(place, number)

    def _send(self, place: _Place, number: signal.Signals) -> None:
        self._reap(place)  # a process id is not given to another process before its parent has looked
        if place.pid:
            place.leaving = True
            os.kill(place.pid, number)

    def _reap(self, place: _Place) -> None:
        if not place.pid:
            return
        try:
            ended, status = os.waitpid(place.pid, os.WNOHANG)
        except ChildProcessError:  # somebody has waited for any child, and got this one
            ended, status = place.pid, 0
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, -signal.SIGTERM):  # who has no job yet ends by that signal itself
                log.warning(LOST[self._name], pid=place.pid, code=code)
            place.pid = 0
            self._book.release(place.slot, self._name)

    def _fork(self, place: _Place) -> None:
        place.forked, place.leaving = time.monotonic(), False
        place.slot = self._book.assign()
        parent = os.getpid()
        try:
            place.pid = fork(lambda: self._live(parent, place.slot))
        except OSError as error:
            self._book.release(place.slot, self._name)
            log.warning(f"{self._name.capitalize()} cannot be forked", error=str(error))

    def _live(self, parent: int, slot: int) -> None:
        # SIGTERM ends it at once as long as it has no job
        isolate(parent=parent, keep=self._keep, name=self._name, ignored=set(IGNORED) - {signal.SIGTERM})
        be_early_out_of_memory(OOM_SCORE)
        os.nice(NICE)
        self._book.enter(slot)
        self._work()


def supervise(kinds: Sequence[Runners], memory: MemoryWatch | None = None) -> None:
    """Tend runners, and their memory, until SIGTERM or SIGINT, where there is no gunicorn to do it."""
    waited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    arrived = None
    while arrived is None or arrived.si_signo == signal.SIGCHLD:
        for runners in kinds:
            runners.tend()
        if memory is not None:
            memory.look({}, {pid: leaving for runners in kinds for pid, leaving in runners.leaving.items()})
        arrived = signal.sigtimedwait(waited, FORK_SECONDS)
    for runners in kinds:
        runners.begin_stop()
    for runners in kinds:
        runners.stop()
