"""Calls in processes that are killed, on both event loops: every way for a call to end, and who is left then."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from serving.errors import CallFailed, DeadlineExceeded, ExecutorGone, MemoryExceeded, Overloaded
from serving.executor import Executor
from serving.executor.frames import Rows
from serving.processes import child_pids, read_memory
from tests.processes import eventually, gone, is_running
from tests.serving.executor_functions import FUNCTIONS, scale

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 30.0
MB = 1024 * 1024
ROWS: Rows = np.array([[1.0, 2.0], [3.0, 4.0]])

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
        assert executor.unwell() is None


class Gate:
    """A FIFO that a call waits at."""

    def __init__(self, stack: ExitStack) -> None:
        self.path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "gate"
        os.mkfifo(self.path)
        self._stack = stack
        self._end = -1

    def call(self, executor: Executor, *, timeout: float = PATIENCE) -> asyncio.Task[bytes]:
        return asyncio.create_task(executor.run("read_gate", ROWS, {"gate": str(self.path)}, timeout=timeout))

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


@in_a_worker()
async def test_a_call_answers_what_the_function_does_here_bit_for_bit(executor: Executor) -> None:
    noise = np.random.default_rng(0).normal(size=(10_000, 50))
    strange = np.array([[np.nan, np.inf, -np.inf, -0.0, 5e-324]])
    for rows in (ROWS, strange, np.empty((0, 3)), noise, noise[::2, ::-1], np.asfortranarray(noise)):
        for parameters in ({}, {"factor": 1 / 3}):
            assert await executor.run("scale", rows, parameters, timeout=PATIENCE) == scale(rows, parameters)


@in_a_worker()
async def test_calls_one_after_the_other_are_run_by_one_process(executor: Executor) -> None:
    assert child_pids(zygote()) == [], "none is forked before it is needed"
    pids = {await executor.run("tell_pid", ROWS, timeout=PATIENCE) for _ in range(3)}
    assert pids == {str(pid).encode() for pid in child_pids(zygote())}


@in_a_worker()
async def test_a_call_that_holds_the_gil_is_killed_at_its_deadline_and_the_next_one_is_in_time(
    executor: Executor,
) -> None:
    for hang in ("spin", "sleep_with_the_gil"):
        before = int(await executor.run("tell_pid", ROWS, timeout=PATIENCE))
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"longer than 0\.1 s"):
            await executor.run(hang, ROWS, timeout=0.1)
        after = int(await executor.run("tell_pid", ROWS, timeout=1.0))
        assert time.monotonic() - started < 1.0
        assert before != after
        await until(partial(gone_now, before))


@in_a_worker()
async def test_a_call_that_is_cancelled_is_killed(executor: Executor) -> None:
    with ExitStack() as stack:
        gate = Gate(stack)
        call = gate.call(executor)
        await gate.reached()
        (pid,) = child_pids(zygote())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: child_pids(zygote()) == [])
        assert int(await executor.run("tell_pid", ROWS, timeout=PATIENCE)) != pid


@in_a_worker()
async def test_a_call_that_is_not_even_read_is_killed_at_its_deadline(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", ROWS, timeout=PATIENCE))
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        await executor.run("scale", np.zeros((1000, 4000)), timeout=0.1)
    await until(partial(gone_now, pid))
    assert await executor.run("scale", ROWS, timeout=PATIENCE) == ROWS.tobytes()


@in_a_worker()
async def test_processes_that_were_replaced_leave_neither_descriptors_nor_zombies(executor: Executor) -> None:
    open_ones = []
    for _ in range(5):
        with pytest.raises(CallFailed):
            await executor.run("exit_at_once", ROWS, timeout=PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await executor.run("spin", ROWS, timeout=0.01)
        await executor.run("tell_pid", ROWS, timeout=PATIENCE)  # the zygote has followed every order before
        await until(lambda: len(child_pids(zygote())) == 1)
        open_ones.append([count_descriptors(pid) for pid in (os.getpid(), zygote())])
    assert open_ones == [open_ones[0]] * 5


@in_a_worker()
async def test_an_exception_is_told_with_its_traceback_and_the_process_lives_on(executor: Executor) -> None:
    pid = await executor.run("tell_pid", ROWS, timeout=PATIENCE)
    with pytest.raises(CallFailed, match=r"^ValueError: there is no such thing\n") as caught:
        await executor.run("fail", ROWS, timeout=PATIENCE)
    assert "in fail\n" in caught.value.__notes__[0]
    with pytest.raises(CallFailed, match=r"^SystemExit: 0\n"):
        await executor.run("leave", ROWS, timeout=PATIENCE)
    assert await executor.run("tell_pid", ROWS, timeout=PATIENCE) == pid


@in_a_worker()
async def test_a_process_that_dies_fails_its_call_only_and_says_how_it_died(executor: Executor) -> None:
    for key, parameters, how in (
        ("exit_at_once", {}, "exited with status 7"),
        ("crash", {"signal": signal.SIGSEGV}, "was ended by signal 11, Segmentation fault"),
        ("crash", {"signal": signal.SIGKILL}, "was killed, perhaps because memory ran out"),
    ):
        with pytest.raises(CallFailed, match=how):
            await executor.run(key, ROWS, parameters, timeout=PATIENCE)
        assert await executor.run("scale", ROWS, timeout=PATIENCE) == ROWS.tobytes()


@in_a_worker()
async def test_a_process_that_dies_between_two_calls_is_noticed_and_fails_none(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", ROWS, timeout=PATIENCE))
    os.kill(pid, signal.SIGKILL)
    await until(executor._idle[0].ended.done)
    assert int(await executor.run("tell_pid", ROWS, timeout=PATIENCE)) != pid


@in_a_worker(memory=64 * MB)
async def test_a_call_that_needs_more_memory_than_it_may_fails_and_its_process_is_replaced(executor: Executor) -> None:
    for key, parameters in (("allocate", {"size": 100 * MB}), ("allocate", {"size": 1 << 45}), ("hoard", {})):
        pid = await executor.run("tell_pid", ROWS, timeout=PATIENCE)
        with pytest.raises(MemoryExceeded):
            await executor.run(key, ROWS, parameters, timeout=PATIENCE)
        assert await executor.run("tell_pid", ROWS, timeout=PATIENCE) != pid
    assert int(await executor.run("allocate", ROWS, {"size": 32 * MB}, timeout=PATIENCE)) == 32 * MB


@in_a_worker(processes=2)
async def test_two_processes_run_two_calls_at_once(executor: Executor) -> None:
    with ExitStack() as first, ExitStack() as second:
        gates = Gate(first), Gate(second)
        calls = [gate.call(executor) for gate in gates]
        for gate in gates:
            await gate.reached()
        await gates[1].open(b"second")
        assert await calls[1] == b"second"
        await gates[0].open(b"first")
        assert await calls[0] == b"first"
        assert len(child_pids(zygote())) == 2


@in_a_worker(waiting=2)
async def test_calls_wait_in_their_order_and_no_more_than_may_within_their_deadlines(executor: Executor) -> None:
    order = []

    async def ask(name: str, timeout: float) -> None:
        await executor.run("scale", ROWS, timeout=timeout)
        order.append(name)

    with ExitStack() as stack:
        gate = Gate(stack)
        running = gate.call(executor)
        await gate.reached()
        impatient = asyncio.create_task(ask("impatient", 0.05))
        first = asyncio.create_task(ask("first", PATIENCE))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await executor.run("scale", ROWS, timeout=PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await impatient
        second = asyncio.create_task(ask("second", PATIENCE))
        await asyncio.sleep(0)
        await gate.open(b"on")
        assert await running == b"on", "the deadline of one that waits kills nobody"
        await asyncio.gather(first, second)
    assert order == ["first", "second"]


@in_a_worker(processes=2)
async def test_without_its_zygote_an_executor_says_so_at_once_and_its_worker_is_unwell(executor: Executor) -> None:
    with ExitStack() as stack:
        gate = Gate(stack)
        assert executor.unwell() is None
        await executor.run("tell_pid", ROWS, timeout=PATIENCE)
        running = gate.call(executor)
        await gate.reached()
        pids = child_pids(zygote())
        os.kill(zygote(), signal.SIGKILL)
        with pytest.raises(ExecutorGone):
            await running
        with pytest.raises(ExecutorGone):
            await executor.run("tell_pid", ROWS, timeout=PATIENCE)
        assert executor.unwell() == "the zygote of its executors has ended"
        await until(lambda: not any(map(is_running, pids)))
        executor.stop()


@in_a_worker()
async def test_an_idle_worker_notices_that_its_zygote_has_ended(executor: Executor) -> None:
    os.kill(zygote(), signal.SIGKILL)
    await until(lambda: executor.unwell() is not None)
    with pytest.raises(ExecutorGone):
        await executor.run("tell_pid", ROWS, timeout=PATIENCE)
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
    pid = int(await executor.run("tell_pid", ROWS, timeout=PATIENCE))
    os.kill(pid, signal.SIGKILL)
    # without a turn of the loop, so that the zygote's message is not read
    assert eventually(lambda: child_pids(zygote()) == [])
    executor.stop()


@in_a_worker()
async def test_signals_that_end_a_worker_do_not_reach_its_executors(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", ROWS, timeout=PATIENCE))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for process in (zygote(), pid):
            os.kill(process, number)
    assert int(await executor.run("tell_pid", ROWS, timeout=PATIENCE)) == pid
    assert {os.getpgid(process) for process in (zygote(), pid)} == {zygote(), pid}


@in_a_worker()
async def test_executors_are_the_first_that_the_kernel_kills(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", ROWS, timeout=PATIENCE))
    assert kernel_says(pid, "oom_score_adj") == "1000"
    assert [kernel_says(process, "comm") for process in (zygote(), pid)] == ["zygote", "executor"]


@in_a_worker()
async def test_nothing_of_the_workers_sockets_is_held_by_its_executors(unused: Executor) -> None:
    unused.stop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        executor = Executor(FUNCTIONS)
        executor.start()
        await executor.run("scale", ROWS, timeout=PATIENCE)
        found = (await executor.run("list_descriptors", ROWS, timeout=PATIENCE)).decode().split()
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
    executor = Executor({"add_up": lambda _rows, _parameters: str(large.sum()).encode()})
    executor.start()
    assert await executor.run("add_up", ROWS, timeout=PATIENCE) == str(200 * MB).encode()
    pids = [zygote(), *child_pids(zygote())]
    memories = [read_memory(pid) for pid in pids]
    assert [memory.rss > 200 * MB for memory in memories] == [True, True]
    assert [memory.private < 20 * MB for memory in memories] == [True, True]
    executor.stop()


@in_a_worker(reuse=False)
async def test_a_process_that_is_not_to_be_used_again_ends_with_its_call(executor: Executor) -> None:
    pids = {int(await executor.run("tell_pid", ROWS, timeout=PATIENCE)) for _ in range(3)}
    assert len(pids) == 3
    await until(lambda: all(gone_now(pid) for pid in pids))


@in_a_worker()
async def test_without_functions_nothing_is_forked(unused: Executor) -> None:
    unused.stop()
    executor = Executor({})
    executor.start()
    assert child_pids(os.getpid()) == []
    assert executor.unwell() is None
    with pytest.raises(KeyError):
        await executor.run("scale", ROWS, timeout=PATIENCE)
    executor.stop()


@in_a_worker()
async def test_a_second_start_does_nothing(executor: Executor) -> None:
    pid = zygote()
    executor.start()
    assert zygote() == pid


async def hang_for_ever(executor: Executor) -> None:
    """What the worker does that is killed: one executor is idle, one hangs."""
    await asyncio.gather(*(executor.run("tell_pid", ROWS, timeout=PATIENCE) for _ in range(2)))
    hanging = asyncio.create_task(executor.run("spin", ROWS, timeout=PATIENCE * 10))
    print("hangs", flush=True)  # noqa: T201 - to the test
    await hanging


def test_of_a_worker_that_is_killed_nothing_is_left() -> None:
    code = "from tests.serving.test_executor import hang_for_ever as f, play; play(f, {'processes': 2})"
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "hangs\n"
        zygotes = child_pids(worker.pid)
        executors = [pid for zygote in zygotes for pid in child_pids(zygote)]
        worker.kill()
    assert (len(zygotes), len(executors)) == (1, 2)
    assert gone([*zygotes, *executors])
