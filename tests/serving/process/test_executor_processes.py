"""The processes of an executor, on both event loops: who is there when, with what, and who is left."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest

from harness.processes import PATIENCE, eventually, gone, is_running
from harness.service import ROOT
from serving.errors import ExecutorGone
from serving.process.executor import Executor
from serving.process.kernel import child_pids, read_memory
from tests.serving.process.executor_functions import FUNCTIONS
from tests.serving.process.executors import (
    MB,
    Gate,
    gone_now,
    in_a_worker,
    kernel_says,
    play,  # noqa: F401 - in the other process
    until,
    zygote,
)


@in_a_worker(processes=2)
async def test_without_its_zygote_an_executor_says_so_at_once_and_its_worker_is_unwell(executor: Executor) -> None:
    with ExitStack() as stack:
        gate = Gate(stack)
        assert executor.reason_to_replace() is None
        await executor.run("tell_pid", b"", timeout=PATIENCE)
        running = gate.call(executor)
        await gate.reached()
        pids = child_pids(zygote())
        os.kill(zygote(), signal.SIGKILL)
        with pytest.raises(ExecutorGone):
            await running
        with pytest.raises(ExecutorGone):
            await executor.run("tell_pid", b"", timeout=PATIENCE)
        assert executor.reason_to_replace() == "the zygote of its executors has ended"
        await until(lambda: not any(map(is_running, pids)))
        executor.stop()


@in_a_worker()
async def test_an_idle_worker_notices_that_its_zygote_has_ended(executor: Executor) -> None:
    os.kill(zygote(), signal.SIGKILL)
    await until(lambda: executor.reason_to_replace() is not None)
    with pytest.raises(ExecutorGone):
        await executor.run("tell_pid", b"", timeout=PATIENCE)
    executor.stop()


@in_a_worker()
async def test_a_stop_ends_a_call_that_hangs(executor: Executor) -> None:
    with ExitStack() as stack:
        gate = Gate(stack)
        running = gate.call(executor)
        await gate.reached()
        pids = [zygote(), *child_pids(zygote())]
        executor.stop()
        assert not any(map(is_running, pids))
        with pytest.raises(ExecutorGone):
            await running


@in_a_worker()
async def test_a_stop_before_the_last_end_was_heard_of_is_quiet(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", b"", timeout=PATIENCE))
    os.kill(pid, signal.SIGKILL)
    # without a turn of the loop, so that the zygote's message is not read
    assert eventually(lambda: child_pids(zygote()) == [])
    executor.stop()


@in_a_worker()
async def test_signals_that_end_a_worker_do_not_reach_its_executors(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", b"", timeout=PATIENCE))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for process in (zygote(), pid):
            os.kill(process, number)
    assert int(await executor.run("tell_pid", b"", timeout=PATIENCE)) == pid
    assert {os.getpgid(process) for process in (zygote(), pid)} == {zygote(), pid}


@in_a_worker()
async def test_executors_are_the_first_that_the_kernel_kills(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", b"", timeout=PATIENCE))
    assert kernel_says(pid, "oom_score_adj") == "1000"
    assert [kernel_says(process, "comm") for process in (zygote(), pid)] == ["zygote", "executor"]


@in_a_worker()
async def test_nothing_of_the_workers_sockets_is_held_by_its_executors(unused: Executor) -> None:
    unused.stop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        executor = Executor(FUNCTIONS)
        executor.start()
        await executor.run("reverse", b"", timeout=PATIENCE)
        found = (await executor.run("list_descriptors", b"", timeout=PATIENCE)).decode().split()
        address = listener.getsockname()
    with socket.socket() as probe:
        assert probe.connect_ex(address) == errno.ECONNREFUSED
    assert len([name for name in found if name.startswith("socket:")]) == 1
    assert {name for name in found if not name.startswith("socket:")} == {"/dev/null"}
    executor.stop()


@in_a_worker()
async def test_memory_of_the_worker_is_shared(unused: Executor) -> None:
    unused.stop()
    large = np.ones(200 * MB, np.uint8)
    executor = Executor({"add_up": lambda _payload: str(large.sum()).encode()})
    executor.start()
    assert await executor.run("add_up", b"", timeout=PATIENCE) == str(200 * MB).encode()
    pids = [zygote(), *child_pids(zygote())]
    memories = [read_memory(pid) for pid in pids]
    assert [memory.rss > 200 * MB for memory in memories] == [True, True]
    assert [memory.private < 20 * MB for memory in memories] == [True, True]
    executor.stop()


@in_a_worker(reuse=False)
async def test_a_process_that_is_not_to_be_used_again_ends_with_its_call(executor: Executor) -> None:
    pids = {int(await executor.run("tell_pid", b"", timeout=PATIENCE)) for _ in range(3)}
    assert len(pids) == 3
    await until(lambda: all(gone_now(pid) for pid in pids))


@in_a_worker()
async def test_without_functions_nothing_is_forked(unused: Executor) -> None:
    unused.stop()
    executor = Executor({})
    executor.start()
    assert child_pids(os.getpid()) == []
    assert executor.reason_to_replace() is None
    with pytest.raises(KeyError):
        await executor.run("reverse", b"", timeout=PATIENCE)
    executor.stop()


@in_a_worker()
async def test_a_second_start_does_nothing(executor: Executor) -> None:
    pid = zygote()
    executor.start()
    assert zygote() == pid


async def hang_for_ever(executor: Executor) -> None:
    """What the worker does that is killed: one executor is idle, one hangs."""
    await asyncio.gather(*(executor.run("tell_pid", b"", timeout=PATIENCE) for _ in range(2)))
    hanging = asyncio.create_task(executor.run("spin", b"", timeout=PATIENCE * 10))
    print("hangs", flush=True)  # noqa: T201 - to the test
    await hanging


def test_of_a_worker_that_is_killed_nothing_is_left() -> None:
    code = f"import {__name__} as here; here.play(here.hang_for_ever, {{'processes': 2}})"
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "hangs\n"
        zygotes = child_pids(worker.pid)
        executors = [pid for zygote in zygotes for pid in child_pids(zygote)]
        worker.kill()
    assert (len(zygotes), len(executors)) == (1, 2)
    assert gone([*zygotes, *executors])
