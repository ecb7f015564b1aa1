"""Starts the real service for benchmarks and tests, on a free port, and ends it by its process id."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.process.kernel import RUNNER, SCHEDULER, WEB, child_pids, name_of

ROOT = Path(__file__).parent.parent
CONFIGURATION = "serving/master/gunicorn_conf.py"
FORKSERVE = Path(sys.executable).with_name("forkserve")
COMMAND = (sys.executable, "-m", "gunicorn", "-c", CONFIGURATION, "main:app")
LISTENING = re.compile(r"Listening at: (http://[^ ]+) \((\d+)\)")
START_SECONDS = 60
ADMIN_TOKEN = "a-token-only-for-tests"
SECRET_KEY = "a-secret-only-for-tests"
"""What all services here sign with, as those that share a Redis have to."""


class Service:
    """A running gunicorn with its workers. A context manager: ends it with SIGTERM and waits."""

    def __init__(self, environ: Mapping[str, str], command: Sequence[str] = COMMAND, directory: Path = ROOT) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        inherited = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
        self._data = tempfile.TemporaryDirectory(prefix="forkserve-data-")
        self._worker_count = int(environ.get("WEB_CONCURRENCY", 2))
        has_runners = CONFIGURATION in command and "worker" in environ.get("ROLES", "worker")
        self._runner_count = int(environ.get("JOB_RUNNERS", 1)) if has_runners else 0
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=inherited | {"PORT": "0", "DATA_DIR": self._data.name, "SECRET_KEY": SECRET_KEY} | dict(environ),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # of its own group, so that a Ctrl-C in the terminal reaches only the benchmark, which then ends it
            start_new_session=True,
        )

    def __enter__(self) -> Service:
        try:
            self.address = self._wait_for_start()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _wait_for_start(self) -> str:
        """The address, once every worker has said that it serves."""
        address, missing = "", self._worker_count
        for line in follow(self, START_SECONDS):
            if found := LISTENING.search(line):
                address, self.master = found[1], int(found[2])
            missing -= '"event":"Worker started"' in line
            if address and not missing:
                self._wait_for_runners()
                return address
        raise RuntimeError(f"the service did not start:\n{self.log()}")

    def _wait_for_runners(self) -> None:
        """Until they have their name, by which they are known."""
        deadline = time.monotonic() + START_SECONDS
        while len(self.runners) < self._runner_count and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it, wait for it and give its exit status; ended already, only the status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(60)
        self._data.cleanup()
        if not self._log.closed:
            self._whole_log = self.log()
            self._log.close()
        return status

    def log(self) -> str:
        """All it has written so far, in whole lines: a line that is just being written may be read by half."""
        if self._log.closed:
            return self._whole_log
        return self.log_after(0).decode()

    def log_after(self, start: int) -> bytes:
        """The whole lines that it has written so far after its first `start` bytes."""
        written = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size - start, start)
        return written[: written.rfind(b"\n") + 1]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines whose event begins so."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"].startswith(event)]

    @property
    def data(self) -> str:
        """Its DATA_DIR, unless its environment names another."""
        return self._data.name

    @property
    def workers(self) -> list[int]:
        """Process ids of the web workers."""
        return [pid for pid, name in self._children() if name == WEB]

    @property
    def runners(self) -> list[int]:
        """Process ids of the job runners."""
        return [pid for pid, name in self._children() if name == RUNNER]

    @property
    def schedulers(self) -> list[int]:
        """Process ids of the schedulers: one, or none."""
        return [pid for pid, name in self._children() if name == SCHEDULER]

    def _children(self) -> list[tuple[int, str]]:
        found = []
        for pid in child_pids(self.master):
            with suppress(OSError):  # it ends at this very moment
                found.append((pid, name_of(pid)))
        return found

    def get(self, path: str) -> Any:
        """The JSON that a path answers."""
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.load(answer)


def follow(service: Service, seconds: float) -> Iterator[str]:
    """Lines of its log as they come, until it ends or `seconds` are over."""
    deadline, seen = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        ended = service.process.poll() is not None
        lines = service.log().split("\n")[:-1]
        yield from lines[seen:]
        seen = len(lines)
        if ended:
            return
        time.sleep(0.02)


@contextmanager
def demo_models() -> Iterator[Path]:
    """A directory with freshly trained demo models."""
    from examples.train import train_all

    with tempfile.TemporaryDirectory(prefix="forkserve-models-") as directory:
        for _ in train_all(Path(directory)):
            pass
        yield Path(directory)
