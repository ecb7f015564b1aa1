"""A Dask cluster on this machine, over TCP, in processes of its own: `python -m harness.cluster 2`.

It says its scheduler's address, then does what it is told on its standard input, and ends with that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent
KILL = "kill"
QUIET = {
    "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical",
}


class DaskCluster:
    """A scheduler and some workers of one thread each. A context manager."""

    def __init__(self, workers: int, environ: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "harness.cluster", str(workers)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | QUIET | dict(environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> DaskCluster:
        self.address = self._hear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.communicate(timeout=60)

    def kill_worker(self) -> int:
        """SIGKILL to one of the workers, which comes back after a while; its process id."""
        self._say(KILL)
        return int(self._hear())

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    from serving.process.child import limit_numeric_threads

    limit_numeric_threads(os.environ)
    from distributed import LocalCluster

    count = int(sys.argv[1])
    with LocalCluster(
        n_workers=count, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        for turn, line in enumerate(sys.stdin):
            if line.strip() == KILL:
                pid = cluster.workers[turn % count].pid
                os.kill(pid, signal.SIGKILL)
                print(pid, flush=True)


if __name__ == "__main__":
    main()
