"""Gunicorn's master with two differences: a worker that announces its end is replaced at once, not afterwards, and the
master also looks after job runners, the scheduler, memory and the model directory.

Stock gunicorn forks a replacement when the old worker has gone. While a worker drains, for seconds, the others would
carry its load, and with all of them draining nobody would accept a connection.
"""

from __future__ import annotations

import os
import signal
from collections import ChainMap
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import Application
from gunicorn.arbiter import Arbiter

from serving.master.children import Runners
from serving.master.memory import MemoryWatch
from serving.master.reload import Interrupted, ModelWatch
from serving.process.child import ENDING

SURGE = 1
"""Workers that may run besides the configured number while others drain: memory for one more, not for twice as many."""

COUNTED = (signal.SIGTTIN, signal.SIGTTOU)
"""Signals that each count: a worker more, a worker less. Of all others, one does what many ask for."""

ORDER: dict[int, int] = {signal.SIGCHLD: 0, signal.SIGHUP: 2}
"""Ended workers are reaped before, and models reloaded after, everything else (1)."""


class ServiceApplication(Application):  # type: ignore[misc]
    """Gunicorn in this process. It is given the app itself, so it looks up no module where it was started.

    GUNICORN_CMD_ARGS overrides the configuration, as it does for the `gunicorn` command.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        """`load` builds the app."""
        self.load = load
        super().__init__()

    def load_config(self) -> None:
        """Called at the start and at every reload."""
        self.load_config_from_file("python:serving.master.gunicorn_conf")
        for name, value in vars(self.cfg.parser().parse_args(self.cfg.get_cmd_args_from_env())).items():
            if name in self.cfg.settings and value is not None:
                self.cfg.set(name, value)
        os.chdir(self.cfg.chdir)


class _OldWorkersDrain(Exception):
    """A reload has got as far as waiting for old workers."""


class EarlyReplacingArbiter(Arbiter):  # type: ignore[misc]
    """Counts retiring workers as gone, up to SURGE of them."""

    WORKER_BOOT_ERROR, APP_LOAD_ERROR = 203, 204
    """The statuses that stop the service; gunicorn's own, 3 and 4, a model's code may end a worker with."""

    runners: tuple[Runners, ...] = ()
    memory: MemoryWatch | None = None
    watch: ModelWatch | None = None
    reloading = False

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Return the signals to handle now, joined and in order; one that ends the service leaves no time for others.

        Several are there when a reload has taken its time: one more reload serves all who asked meanwhile.
        """
        received: list[int] = super().wait_for_signals(timeout)
        ending = [number for number in received if number in ENDING]
        if ending:
            return [min(ending, key=lambda number: number == signal.SIGTERM)]  # the others are more urgent
        joined = dict.fromkeys(number for number in received if number not in COUNTED)
        counted = [number for number in received if number in COUNTED]
        return sorted([*joined, *counted], key=lambda number: ORDER.get(number, 1))

    def reload(self) -> None:
        """Reload as gunicorn does, but without its wait for the old workers, which keeps it from ending them twice.

        `retire` ends each worker once. While gunicorn waits, it replaces nobody, and a worker that has asked for the
        next reload waits for its master, which waits for the worker. A signal that ends the service ends the reload.
        """
        self.reloading = True
        try:
            super().reload()
        except (_OldWorkersDrain, Interrupted):
            pass
        finally:
            self.reloading = False

    def manage_workers(self) -> None:
        """Fork missing workers, end surplus ones, and look after everything else; called at least once a second."""
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
            self.memory.look(web, ChainMap(*(runners.leaving for runners in self.runners)))
        if self.watch is not None and self.watch.changed():
            self.SIG_QUEUE.put_nowait(signal.SIGHUP)

    def spawn_worker(self) -> int:
        """Fork a worker; a signal that ends it right away is kept until it can be handled.

        Until the worker has handlers of its own (`DrainingWorker.init_signals`) it has the master's, which queue a
        signal for a master that it is not.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            pid: int = super().spawn_worker()
        except SystemExit as error:
            if os.getpid() == self.pid:
                raise
            os._exit(error.code if isinstance(error.code, int) else 1)  # a reload, far below, is the master's to end
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def replace(self, pid: int) -> None:
        """End a worker or a runner; the next look finds it missing and forks another."""
        if pid in self.WORKERS:
            self.retire(self.WORKERS[pid])
        for runners in self.runners:
            runners.replace_one(pid)

    def retire(self, worker: Any) -> None:
        """Have a worker drain and end, once."""
        worker.retiring = True
        self.kill_worker(worker.pid, signal.SIGTERM)

    def reap_workers(self) -> None:
        """Reap runners first: gunicorn waits for any child, and forgets those that it does not know."""
        self.tend_runners()
        super().reap_workers()
        if self.reloading:  # the first thing that gunicorn's wait does
            raise _OldWorkersDrain

    def tend(self) -> None:
        """Replace what has ended while a reload tries a version, whose process is not to be reaped here."""
        for pid, worker in list(self.WORKERS.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self.WORKERS[pid]
                self.log.error("Worker (pid:%s) ended during a reload", pid)
                worker.tmp.close()
                self.cfg.child_exit(self, worker)
        self.murder_workers()
        self.manage_workers()

    def tend_runners(self) -> None:
        """Replace runners that have ended."""
        for runners in self.runners:
            runners.tend()

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 - the signature is gunicorn's
        """Stop everything; runners return their jobs while workers drain."""
        for runners in self.runners:
            runners.begin_stop()
        super().stop(graceful)
        for runners in self.runners:
            runners.stop()
