"""Gunicorn's master, with two habits changed: a worker that says it is about to end is replaced at once, not after,
and job runners, the scheduler and memory are looked after along with the workers.

Stock gunicorn forks a replacement when the old worker has gone. While a worker drains, for seconds, the others would
carry its load, and with all of them draining nobody would accept a connection.
"""

from __future__ import annotations

import signal
from typing import Any

from gunicorn.arbiter import Arbiter

from serving.master.children import Runners
from serving.master.memory import MemoryWatch

SURGE = 1
"""Workers that may be there besides the configured number while others drain: memory for one more, not for twice."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals by which a worker is told to end."""


class _OldWorkersDrain(Exception):
    """A reload has got so far that only old workers are waited for."""


class EarlyReplacingArbiter(Arbiter):  # type: ignore[misc]
    """Counts retiring workers as gone, up to SURGE of them."""

    runners: tuple[Runners, ...] = ()
    memory: MemoryWatch | None = None
    reloading = False

    @classmethod
    def adopt(cls, arbiter: Arbiter) -> None:
        """Turn a stock arbiter into one of these: gunicorn has no setting for its class."""
        arbiter.__class__ = cls

    def reload(self) -> None:
        """As gunicorn does, but without its wait for the old workers to be gone, against terminating them twice.

        `retire` knows whom it has told. While gunicorn waits, it replaces nobody, and a worker that has asked for the
        next reload waits for its master, which waits for the worker.
        """
        self.reloading = True
        try:
            super().reload()
        except _OldWorkersDrain:
            pass
        finally:
            self.reloading = False

    def manage_workers(self) -> None:
        """Fork what is missing, end what is too much."""
        workers = sorted(self.WORKERS.values(), key=lambda worker: worker.age)
        active = [worker for worker in workers if not worker.retiring]
        room = self.num_workers + SURGE - len(workers)
        for _ in range(min(self.num_workers - len(active), room)):
            self.spawn_worker()
        for worker in active[: max(0, len(active) - self.num_workers)]:
            self.retire(worker)
        self.tend_runners()
        if self.memory is not None:
            web = {pid: worker.retiring for pid, worker in self.WORKERS.items()}
            others = {pid: leaving for runners in self.runners for pid, leaving in runners.leaving.items()}
            self.memory.look(web, others)

    def spawn_worker(self) -> int:
        """As gunicorn does, but nobody who ends a worker that is just beginning goes unheard.

        Until it has handlers of its own (`DrainingWorker.init_signals`) it has the master's, which keep a signal for a
        master that it is not.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            pid: int = super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def replace(self, pid: int) -> None:
        """Have a worker or a runner end; the next look finds it missing and forks another."""
        if pid in self.WORKERS:
            self.retire(self.WORKERS[pid])
        for runners in self.runners:
            runners.replace_one(pid)

    def retire(self, worker: Any) -> None:
        """Tell a worker to drain and end, once."""
        worker.retiring = True
        self.kill_worker(worker.pid, signal.SIGTERM)

    def reap_workers(self) -> None:
        """Runners first: gunicorn waits for any child, and forgets those that it does not know."""
        if self.reloading:  # this is all that it does while it waits there
            raise _OldWorkersDrain
        self.tend_runners()
        super().reap_workers()

    def tend_runners(self) -> None:
        """Replace those that have ended."""
        for runners in self.runners:
            runners.tend()

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 - the signature is gunicorn's
        """Runners give back their jobs while workers drain."""
        for runners in self.runners:
            runners.begin_stop()
        super().stop(graceful)
        for runners in self.runners:
            runners.stop()
