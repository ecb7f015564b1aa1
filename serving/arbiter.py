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


class EarlyReplacingArbiter(Arbiter):  # type: ignore[misc]
    """Counts retiring workers as gone, up to SURGE of them."""

    @classmethod
    def adopt(cls, arbiter: Arbiter) -> None:
        """Turn a stock arbiter into one of these: gunicorn has no setting for its class, and no state is added."""
        arbiter.__class__ = cls

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
