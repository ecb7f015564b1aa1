"""The service under a real memory limit of 512 MB: `python -m bench.cgroup`.

Needs a memory cgroup that it may write to (v1 or v2; usually root). Judged by what the kernel counts: processes killed,
resident anonymous memory, and major faults, which tell of code that was thrown out and read again. The page cache fills
any limit and says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.table import Table
from harness.processes import hammer
from harness.service import COMMAND, Service, demo_models
from registry.registry import load_registry
from serving.cli.client import Tally, post

MB = 1024 * 1024
LIMIT = 512 * MB
ENTER = 'echo $$ > "$0" && exec "$@"'
"""A shell moves itself into the cgroup before it becomes the service, so that every page is counted from the first."""


@dataclass(frozen=True)
class Cgroup:
    """A memory cgroup of our own, of either version."""

    path: Path
    v2: bool

    @property
    def procs(self) -> Path:
        return self.path / "cgroup.procs"

    def limit(self, size: int) -> None:
        """Set the limit; swap does not count as a way out."""
        if self.v2:
            (self.path / "memory.max").write_text(str(size))
            (self.path / "memory.swap.max").write_text("0")
        else:
            (self.path / "memory.limit_in_bytes").write_text(str(size))

    def killed(self) -> int:
        """Processes that the kernel has killed for want of memory."""
        return self._read("memory.events" if self.v2 else "memory.oom_control", "oom_kill")

    def resident(self) -> int:
        """Anonymous memory in bytes, which the kernel cannot drop and read again."""
        return self._read("memory.stat", "anon" if self.v2 else "total_rss")

    def major_faults(self) -> int:
        """Pages that had to be read from disk."""
        return self._read("memory.stat", "pgmajfault" if self.v2 else "total_pgmajfault")

    def empty(self) -> None:
        """End what is still inside: a service that was killed half-way leaves workers that take a moment to notice."""
        while pids := self.procs.read_text().split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)

    def _read(self, file: str, key: str) -> int:
        lines = (self.path / file).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == key)


@contextmanager
def memory_cgroup() -> Iterator[Cgroup]:
    """A fresh memory cgroup, removed afterwards; ends the benchmark where none may be made."""
    for parent, v2 in ((Path("/sys/fs/cgroup/memory"), False), (Path("/sys/fs/cgroup"), True)):
        path = parent / f"forkserve-bench-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        cgroup = Cgroup(path, v2)
        try:
            if (path / ("memory.max" if v2 else "memory.limit_in_bytes")).exists():
                yield cgroup
                return
        finally:
            cgroup.empty()
            path.rmdir()
    sys.exit("no memory cgroup can be made here; run it as root on a machine with memory cgroups")


def measure(table: Table, models: Path, workers: int, *, preload: bool, requests: int) -> int:
    """One row: start, load, count; gives the number of killed processes of a preloaded service."""
    environ = {
        "MODEL_DIR": str(models),
        "WEB_CONCURRENCY": str(workers),
        "PRELOAD": str(preload).lower(),
        "PRELOAD_MODULES": "shap",
        "ACCESS_LOG": "false",
    }
    with memory_cgroup() as cgroup:
        cgroup.limit(LIMIT)
        command = ("/bin/sh", "-c", ENTER, str(cgroup.procs), *COMMAND)
        tally: Tally | None = None
        peak = 0
        service = Service(environ, command)
        try:
            with service:
                messages = [
                    post(
                        f"{service.address}/v1/models/{model.name}:predict",
                        json.dumps({"instances": [model.manifest.example]}).encode(),
                    )
                    for model in load_registry(models).live()
                ]
                tally = uvloop.run(hammer(service.address, messages, requests=requests, connections=8 * workers))
                peak = cgroup.resident()
        except RuntimeError:
            pass  # it did not start: counted below
        killed, faults = cgroup.killed(), cgroup.major_faults()
    kind = "shared" if preload else "one each"
    failed = "did not start" if tally is None else tally.failed
    table.add(workers, kind, killed, failed, f"{peak / MB:.0f}", faults)
    return killed if preload else 0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 12])
    arguments.add_argument("--requests", type=int, default=8000, help="of each row")
    options = arguments.parse_args()
    table = Table("workers", "models", "killed", "requests failed", "anonymous (MB)", "major faults")
    killed = 0
    with demo_models() as models:
        for workers in options.workers:
            for preload in (True, False):
                killed += measure(table, models, workers, preload=preload, requests=options.requests)
    print(table)
    sys.exit(1 if killed else 0)


if __name__ == "__main__":
    main()
