"""An executor in a process of its own, for a test to play with."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from harness.processes import PATIENCE, is_running
from harness.service import ROOT
from serving.process.executor import Executor
from serving.process.kernel import child_pids
from tests.serving.process.executor_functions import FUNCTIONS

MB = 1024 * 1024

Scenario = Callable[[Executor], Awaitable[None]]


def in_a_worker(**options: Any) -> Callable[[Scenario], Callable[[], None]]:
    """Plays a test in a process of its own, with one thread, which pytest has not always; `options` are Executor's."""

    def decorate(scenario: Scenario) -> Callable[[], None]:
        def test(*, here: bool = False) -> None:
            if here:
                play(scenario, options)
                return
            code = f"from {scenario.__module__} import {scenario.__name__} as test; test(here=True)"
            command = [sys.executable, "-W", "error", "-c", code]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stderr == ""

        return test

    return decorate


def play(scenario: Scenario, options: dict[str, Any]) -> None:
    """On uvloop, as in production, then on asyncio, each with a fresh executor that leaves nobody behind."""

    async def main(executor: Executor) -> None:
        try:
            await scenario(executor)
        finally:
            executor.stop()

    for run in (uvloop.run, asyncio.run):
        executor = Executor(FUNCTIONS, **options)
        executor.start()
        run(main(executor))
        assert child_pids(os.getpid()) == []
        assert executor.reason_to_replace() is None


class Gate:
    """A FIFO that a call waits at."""

    def __init__(self, stack: ExitStack) -> None:
        self.path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "gate"
        os.mkfifo(self.path)
        self._stack = stack
        self._end = -1

    def call(self, executor: Executor, *, timeout: float = PATIENCE) -> asyncio.Task[bytes]:
        return asyncio.create_task(executor.run("read_gate", str(self.path).encode(), timeout=timeout))

    async def reached(self) -> None:
        await until(self._has_reader)

    def _has_reader(self) -> bool:
        try:
            self._end = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO until somebody reads
            return False
        self._stack.callback(os.close, self._end)
        return True

    async def open(self, message: bytes = b"") -> None:
        os.write(self._end, message)
        self._stack.pop_all().close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what other processes do sets no event here
            await asyncio.sleep(0.001)


def gone_now(pid: int) -> bool:
    return not is_running(pid)


def kernel_says(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text().strip()


def count_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def zygote() -> int:
    (pid,) = child_pids(os.getpid())
    return pid
