"""Gunicorn's master, with one habit changed: a worker that says it is about to end is replaced at once, not after.

Stock gunicorn forks a replacement when the old worker has gone. While a worker drains, for seconds, the others would
carry its load, and with all of them draining nobody would accept a connection.
"""

from __future__ import annotations

import signal
from typing import Any

from gunicorn.arbiter import Arbiter

SURGE = 1
"""Workers that may be there besides the configured number while others drain: memory for one more, not for twice."""


class _OldWorkersDrain(Exception):
    """A reload has got so far that only old workers are waited for."""


def _stop_waiting() -> None:
    raise _OldWorkersDrain


class EarlyReplacingArbiter(Arbiter):  # type: ignore[misc]
    """Counts retiring workers as gone, up to SURGE of them."""

    @classmethod
    def adopt(cls, arbiter: Arbiter) -> None:
        """Turn a stock arbiter into one of these: gunicorn has no setting for its class, and no state is added."""
        arbiter.__class__ = cls

    def reload(self) -> None:
        """As gunicorn does, but without its wait for the old workers to be gone, against terminating them twice.

        `retire` knows whom it has told. While gunicorn waits, it replaces nobody, and a worker that has asked for the
        next reload waits for its master, which waits for the worker.
        """
        self.reap_workers = _stop_waiting  # all that gunicorn does in that wait
        try:
            super().reload()
        except _OldWorkersDrain:
            pass
        finally:
            del self.reap_workers

    def manage_workers(self) -> None:
        """Fork what is missing, end what is too much."""
        workers = sorted(self.WORKERS.values(), key=lambda worker: worker.age)
        active = [worker for worker in workers if not worker.retiring]
        room = self.num_workers + SURGE - len(workers)
        for _ in range(min(self.num_workers - len(active), room)):
            self.spawn_worker()
        for worker in active[: max(0, len(active) - self.num_workers)]:
            self.retire(worker)

    def retire(self, worker: Any) -> None:
        """Tell a worker to drain and end, once."""
        worker.retiring = True
        self.kill_worker(worker.pid, signal.SIGTERM)
