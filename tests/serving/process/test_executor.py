"""Calls in processes that are killed, on both event loops: every way for a call to end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from functools import partial

import pytest

from harness.processes import PATIENCE
from serving.errors import CallFailed, DeadlineExceeded, MemoryExceeded, Overloaded
from serving.process.executor import Executor
from serving.process.kernel import child_pids
from tests.serving.process.executor_functions import reverse
from tests.serving.process.executors import MB, Gate, count_descriptors, gone_now, in_a_worker, until, zygote


@in_a_worker()
async def test_a_call_answers_what_the_function_does_here_byte_for_byte(executor: Executor) -> None:
    for payload in (b"", b"\0", bytes(range(256)), os.urandom(8 * MB)):
        assert await executor.run("reverse", payload, timeout=PATIENCE) == reverse(payload)


@in_a_worker()
async def test_calls_one_after_the_other_are_run_by_one_process(executor: Executor) -> None:
    assert child_pids(zygote()) == [], "none is forked before it is needed"
    pids = {await executor.run("tell_pid", b"", timeout=PATIENCE) for _ in range(3)}
    assert pids == {str(pid).encode() for pid in child_pids(zygote())}


@in_a_worker()
async def test_a_call_that_holds_the_gil_is_killed_at_its_deadline_and_the_next_one_is_in_time(
    executor: Executor,
) -> None:
    for hang in ("spin", "sleep_with_the_gil"):
        before = int(await executor.run("tell_pid", b"", timeout=PATIENCE))
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"longer than 0\.1 s"):
            await executor.run(hang, b"", timeout=0.1)
        after = int(await executor.run("tell_pid", b"", timeout=PATIENCE))
        assert time.monotonic() - started < PATIENCE, "it would have hung for longer"
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
        assert int(await executor.run("tell_pid", b"", timeout=PATIENCE)) != pid


@in_a_worker()
async def test_a_call_that_is_not_even_read_is_killed_at_its_deadline(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", b"", timeout=PATIENCE))
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        await executor.run("reverse", bytes(32 * MB), timeout=0.1)
    await until(partial(gone_now, pid))
    assert await executor.run("reverse", b"ab", timeout=PATIENCE) == b"ba"


@in_a_worker()
async def test_processes_that_were_replaced_leave_neither_descriptors_nor_zombies(executor: Executor) -> None:
    open_ones = []
    for _ in range(5):
        with pytest.raises(CallFailed):
            await executor.run("exit_at_once", b"", timeout=PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await executor.run("spin", b"", timeout=0.01)
        await executor.run("tell_pid", b"", timeout=PATIENCE)  # the zygote has followed every order before
        await until(lambda: len(child_pids(zygote())) == 1)
        open_ones.append([count_descriptors(pid) for pid in (os.getpid(), zygote())])
    assert open_ones == [open_ones[0]] * 5


@in_a_worker()
async def test_an_exception_is_told_with_its_traceback_and_the_process_lives_on(executor: Executor) -> None:
    pid = await executor.run("tell_pid", b"", timeout=PATIENCE)
    with pytest.raises(CallFailed, match=r"^ValueError: there is no such thing\n") as caught:
        await executor.run("fail", b"", timeout=PATIENCE)
    assert "in fail\n" in caught.value.__notes__[0]
    with pytest.raises(CallFailed, match=r"^SystemExit: 0\n"):
        await executor.run("leave", b"", timeout=PATIENCE)
    assert await executor.run("tell_pid", b"", timeout=PATIENCE) == pid


@in_a_worker()
async def test_a_process_that_dies_fails_its_call_only_and_says_how_it_died(executor: Executor) -> None:
    for key, payload, how in (
        ("exit_at_once", b"", "exited with status 7"),
        ("crash", b"%d" % signal.SIGSEGV, "was ended by signal 11, Segmentation fault"),
        ("crash", b"%d" % signal.SIGKILL, "was killed, perhaps because memory ran out"),
    ):
        with pytest.raises(CallFailed, match=how):
            await executor.run(key, payload, timeout=PATIENCE)
        assert await executor.run("reverse", b"ab", timeout=PATIENCE) == b"ba"


@in_a_worker()
async def test_a_process_that_dies_between_two_calls_is_noticed_and_fails_none(executor: Executor) -> None:
    pid = int(await executor.run("tell_pid", b"", timeout=PATIENCE))
    os.kill(pid, signal.SIGKILL)
    await until(next(iter(executor._calls.idle)).ended.done)
    assert int(await executor.run("tell_pid", b"", timeout=PATIENCE)) != pid


@in_a_worker(memory=64 * MB)
async def test_a_call_that_needs_more_memory_than_it_may_fails_and_its_process_is_replaced(executor: Executor) -> None:
    for key, payload in (("allocate", b"%d" % (100 * MB)), ("allocate", b"%d" % (1 << 45)), ("hoard", b"")):
        pid = await executor.run("tell_pid", b"", timeout=PATIENCE)
        with pytest.raises(MemoryExceeded):
            await executor.run(key, payload, timeout=PATIENCE)
        assert await executor.run("tell_pid", b"", timeout=PATIENCE) != pid
    assert int(await executor.run("allocate", b"%d" % (32 * MB), timeout=PATIENCE)) == 32 * MB


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
        await executor.run("reverse", b"", timeout=timeout)
        order.append(name)

    with ExitStack() as stack:
        gate = Gate(stack)
        running = gate.call(executor)
        await gate.reached()
        impatient = asyncio.create_task(ask("impatient", 0.05))
        first = asyncio.create_task(ask("first", PATIENCE))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await executor.run("reverse", b"", timeout=PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await impatient
        second = asyncio.create_task(ask("second", PATIENCE))
        await asyncio.sleep(0)
        await gate.open(b"on")
        assert await running == b"on", "the deadline of one that waits kills nobody"
        await asyncio.gather(first, second)
    assert order == ["first", "second"]
