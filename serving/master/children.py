"""The job runners and the scheduler of one master: forked from it, so that they share its models, and replaced.

Context: runners need the models that the master has loaded, and only a parent learns how a process ended. Decision: the
master forks them itself, in the loop that looks after its web workers, and never waits for them. Consequence: the calls
here must be quick, and the end of a runner is noticed within a second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import structlog

from serving.app import Application, build, build_scheduler, build_shared
from serving.master import prefork
from serving.master.memory import MemoryWatch
from serving.master.reload import Interrupted, ModelWatch, reload
from serving.process.child import ENDING, IGNORED, be_early_out_of_memory, fork_isolated
from serving.process.kernel import MESSENGER, RECORDER, RUNNER, SCHEDULER
from serving.settings import Settings
from serving.shared.book import Book
from serving.telemetry.alerts import Alerts

log = structlog.get_logger(__name__)

FORK_SECONDS = 1.0
"""Between two forks in the same place: a runner that ends at once costs the master little."""

STOP_SECONDS = 5.0
"""A runner has this long to return its job; otherwise the job waits until its lease expires."""

NICE = 10
"""Web workers come first when all processors are busy."""

OOM_SCORE = 800
"""The kernel kills runners before web workers (500): their jobs are resumed."""

DIED = {
    RUNNER: "Runner died",
    SCHEDULER: "Scheduler died",
    MESSENGER: "Messenger died",
    RECORDER: "Recorder died",
}


@dataclass(slots=True)
class _Place:
    """A slot for one runner at a time."""

    pid: int = 0
    forked: float = -FORK_SECONDS
    leaving: bool = False
    """True if it has been asked to end."""
    slot: int = 0
    """Its row in the book of metrics."""


class Runners:
    """Several processes of one kind, used in their parent, which must have a single thread."""

    def __init__(
        self, work: Callable[[], None], count: int, book: Book, *, name: str = RUNNER, keep: int | None = None
    ) -> None:
        """A runner calls `work`, which returns at SIGTERM, and counts its metrics in `book`.

        `name` is the name of its process. Of the parent's descriptors it may `keep` one, besides standard output.
        """
        self._work = work
        self._book = book
        self._name = name
        self._keep = sys.stdout.fileno() if keep is None else keep
        self._places = [_Place() for _ in range(count)]
        self._stopping = False

    @property
    def leaving(self) -> dict[int, bool]:
        """By pid, true if the process has been asked to end; without those that are known to have ended."""
        return {place.pid: place.leaving for place in self._places if place.pid}

    def tend(self) -> None:
        """Reap processes that have ended and fork missing ones; to be called every second."""
        for place in self._places:
            self._reap(place)
            if not (place.pid or self._stopping) and time.monotonic() - place.forked >= FORK_SECONDS:
                self._fork(place)

    def replace(self) -> None:
        """Have all return their jobs and end; `tend` forks others from the master as it is then."""
        self._signal(signal.SIGTERM)
        for place in self._places:
            place.forked = -FORK_SECONDS

    def replace_one(self, pid: int) -> None:
        """Have one process return its job and end; `tend` forks another."""
        for place in self._places:
            if place.pid == pid:
                self._send(place, signal.SIGTERM)

    def begin_stop(self) -> None:
        """Have all return their jobs and end, and fork no more. A recorder works until `stop`: workers still answer."""
        self._stopping = True
        if self._name != RECORDER:
            self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stop all processes and wait; kill those that exceed STOP_SECONDS."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.leaving and time.monotonic() < deadline:
            self.tend()
            time.sleep(0.01)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for place in self._places:
            self._send(place, number)

    def _send(self, place: _Place, number: signal.Signals) -> None:
        self._reap(place)  # the kernel does not reuse a pid before the parent has reaped it
        if place.pid:
            place.leaving = True
            os.kill(place.pid, number)

    def _reap(self, place: _Place) -> None:
        if not place.pid:
            return
        try:
            ended, status = os.waitpid(place.pid, os.WNOHANG)
        except ChildProcessError:  # another wait, for any child, has reaped this one
            ended, status = place.pid, 0
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, -signal.SIGTERM):  # before its first job the signal itself ends it
                log.warning(DIED[self._name], pid=place.pid, code=code)
            place.pid = 0
            self._book.release(place.slot, self._name)

    def _fork(self, place: _Place) -> None:
        place.forked, place.leaving = time.monotonic(), False
        place.slot = self._book.assign()
        # before its first job SIGTERM ends it at once
        ignored = set(IGNORED) - {signal.SIGTERM}
        try:
            place.pid = fork_isolated(lambda: self._live(place.slot), keep=self._keep, name=self._name, ignored=ignored)
        except OSError as error:
            self._book.release(place.slot, self._name)
            log.warning(f"Cannot fork a {self._name}", error=str(error))

    def _live(self, slot: int) -> None:
        be_early_out_of_memory(OOM_SCORE)
        os.nice(NICE)
        self._book.enter(slot)
        self._work()


class RunnerMaster:
    """The master of `forkserve worker`: looks after runners, the scheduler and alerts where there is no gunicorn."""

    def __init__(self, settings: Settings, alerts: Alerts) -> None:
        """Loads the models, unless ROLES includes only the scheduler; forks nothing yet.

        Raises RegistryError, InvalidSetting, InvalidRedisUrl, CannotServe.
        """
        self._watch = ModelWatch(settings.model_dir) if settings.watch_models else None
        self._app: Application | None = None
        if "worker" in settings.roles or "scheduler" not in settings.roles:
            self._app = build(settings, alerts)
            shared, self._scheduler = self._app.service.shared, self._app.service.scheduler
        else:
            shared = build_shared(settings, alerts)
            self._scheduler = build_scheduler(settings, shared)
        self._settings = settings
        self._shared = shared
        self.kinds = tuple(self._make_kinds())
        """Empty if there is nothing to do."""

    def _make_kinds(self) -> Iterator[Runners]:
        """The processes that ROLES asks for, and one that sends alerts, as web workers do elsewhere."""
        settings, book, alerts = self._settings, self._shared.book, self._shared.alerts
        fires = "scheduler" in settings.roles and bool(settings.schedules)
        if self._app is not None:
            yield Runners(self._run_jobs, settings.job_runners, book, keep=alerts.descriptor)
        if fires:
            yield Runners(self._fire_schedules, 1, book, name=SCHEDULER, keep=alerts.descriptor)
        if (fires or self._app is not None) and alerts.outlet is not None:
            yield Runners(alerts.run, 1, book, name=MESSENGER, keep=alerts.outlet)

    def _run_jobs(self) -> None:
        assert self._app is not None
        self._app.service.runner.run()

    def _fire_schedules(self) -> None:
        self._scheduler.run()

    def run(self) -> None:
        """Look after all of them until a signal of ENDING. SIGHUP, or a change in the model directory, is a reload."""
        waited = {*ENDING, signal.SIGHUP, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, waited)
        if self._app is not None:
            self._shared.reloads.open()
        memory = MemoryWatch(
            self._settings, self._shared, processes=self._settings.job_runners, replace=self._replace_one
        )
        arrived = 0
        while arrived not in ENDING:
            if arrived == signal.SIGHUP or (self._watch is not None and self._watch.changed()):
                try:
                    self._reload(memory)
                except Interrupted as stop:
                    arrived = stop.number
                    break
            self._tend(memory)
            received = signal.sigtimedwait(waited, FORK_SECONDS)
            arrived = 0 if received is None else received.si_signo
        for runners in self.kinds:
            runners.begin_stop()
        for runners in self.kinds:
            runners.stop()
        log.info("Runner master stopped", signal=signal.Signals(arrived).name)

    def _tend(self, memory: MemoryWatch) -> None:
        for runners in self.kinds:
            runners.tend()
        memory.look({}, ChainMap(*(runners.leaving for runners in self.kinds)))

    def _reload(self, memory: MemoryWatch) -> None:
        if self._app is None:
            return
        if self._watch is not None:
            self._watch.note()
        self._app = reload(self._app, partial(self._tend, memory))
        self._scheduler = self._app.service.scheduler
        prefork.settle()
        memory.measure_master()
        for runners in self.kinds:
            runners.replace()

    def _replace_one(self, pid: int) -> None:
        for runners in self.kinds:
            runners.replace_one(pid)
