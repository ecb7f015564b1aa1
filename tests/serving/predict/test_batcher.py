"""Batches, threads and refusals, on a model that the test holds in its hand."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import sys
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from registry.errors import ModelFailed
from registry.estimator import Outputs
from registry.explain.explanation import Selection
from registry.registry import load_registry
from registry.rows.features import Feature, Rows
from serving.errors import Overloaded
from serving.predict.batcher import (
    BATCH_SECONDS,
    MAX_ROWS,
    PATIENT_ROWS,
    SWITCH_SECONDS,
    Batch,
    Batcher,
    BatchJob,
    BatchQueue,
    BatchResult,
)
from serving.predict.operation import Operation

INLINE = 100


class Oracle:
    """Answers the first feature of a row; remembers who asked for how many rows, and can be kept waiting."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()
        self.asked = threading.Semaphore(0)

    def __call__(self, rows: Rows) -> Outputs:
        self.batches.append(len(rows))
        self.threads.add(threading.current_thread().name)
        self.asked.release()
        assert self.go_on.wait(30)
        if (rows[:, 0] == -1).any():
            raise ValueError("a row that the model cannot stand")
        return rows[:, :1]

    def length(self, rows: Rows) -> Outputs:
        """The lengths of texts."""
        return self(np.array([[float(len(text))] for text in rows[:, 0]]))


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
def operation(models: Path, oracle: Oracle) -> Operation:
    return Operation(dataclasses.replace(load_registry(models).get("diabetes"), compute=oracle), "predict")


@contextmanager
def started(
    operation: Operation, *, inline_rows: int, threads: int = 1, queue_seconds: float = 1.0
) -> Iterator[Batcher]:
    batcher = Batcher(threads=threads, queue_seconds=queue_seconds)
    batcher.prepare(operation, inline_rows)
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.stop()


def rows(*values: float) -> Rows:
    return np.tile(np.array(values)[:, None], (1, 10))


def asked_together(batcher: Batcher, operation: Operation, *values: float) -> list[BatchResult | BaseException]:
    async def ask() -> list[BatchResult | BaseException]:
        return await asyncio.gather(*(batcher.run(operation, rows(value)) for value in values), return_exceptions=True)

    return asyncio.run(ask())


def test_requests_of_one_turn_are_one_batch_and_each_gets_its_own_answer(operation: Operation, oracle: Oracle) -> None:
    with started(operation, inline_rows=INLINE) as batcher:
        answers = asked_together(batcher, operation, 1.5, 2.5, 3.5)
    assert [ran.answers for ran in answers if isinstance(ran, BatchResult)] == [[b"1.5"], [b"2.5"], [b"3.5"]]
    assert oracle.batches == [3]
    assert oracle.threads == {threading.current_thread().name}


def test_more_rows_than_may_block_the_loop_are_run_in_several_turns(operation: Operation, oracle: Oracle) -> None:
    with started(operation, inline_rows=2) as batcher:
        answers = asked_together(batcher, operation, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert all(isinstance(ran, BatchResult) for ran in answers)
    assert oracle.batches == [2, 2, 1]


def test_a_request_of_more_rows_goes_to_a_thread(operation: Operation, oracle: Oracle) -> None:
    with started(operation, inline_rows=1) as batcher:
        ran = asyncio.run(batcher.run(operation, rows(1.0, 2.0)))
    assert ran.answers == [b"1.0", b"2.0"]
    assert all(name.startswith("inference") for name in oracle.threads)


def test_a_text_much_longer_than_usual_goes_to_a_thread(models: Path, oracle: Oracle) -> None:
    model = load_registry(models).get("diabetes")
    manifest = msgspec.structs.replace(
        model.manifest, features=(Feature(name="note", kind="text"),), background=(("four",), ("sixsix",))
    )
    operation = Operation(dataclasses.replace(model, manifest=manifest, compute=oracle.length), "predict")
    with started(operation, inline_rows=10) as batcher:
        for characters, is_quick in ((52, True), (53, False)):
            text = np.array([["x" * characters]], dtype=object)
            assert batcher.is_quick(operation, text) == is_quick
            assert asyncio.run(batcher.run(operation, text)).answers == [str(float(characters)).encode()]
            assert any(name.startswith("inference") for name in oracle.threads) != is_quick


def test_what_arrives_while_the_threads_are_busy_is_the_next_batch(operation: Operation, oracle: Oracle) -> None:
    async def ask(batcher: Batcher) -> None:
        first = await held(batcher, operation, oracle)
        others = [asyncio.create_task(batcher.run(operation, rows(value))) for value in (2.0, 3.0, 4.0)]
        await turn()
        oracle.go_on.set()
        await asyncio.gather(first, *others)

    with started(operation, inline_rows=0) as batcher:
        for count in (1, 10):
            batcher._queues[operation].cost.learn(count, 0.01 + 1e-6 * count)
        asyncio.run(ask(batcher))
    assert oracle.batches == [1, 3]


def test_a_thread_takes_its_next_batch_by_itself_while_the_loop_is_busy(operation: Operation, oracle: Oracle) -> None:
    async def ask(batcher: Batcher) -> None:
        first = await held(batcher, operation, oracle)
        second = asyncio.create_task(batcher.run(operation, rows(2.0)))
        await turn()
        oracle.go_on.set()
        assert oracle.asked.acquire(timeout=30), "and the loop stands still meanwhile"
        assert [ran.answers for ran in await asyncio.gather(first, second)] == [[b"1.0"], [b"2.0"]]

    with started(operation, inline_rows=0) as batcher:
        asyncio.run(ask(batcher))


def test_every_idle_thread_is_given_a_batch_of_what_arrives_together(operation: Operation, oracle: Oracle) -> None:
    async def ask(batcher: Batcher) -> None:
        oracle.go_on.clear()
        asked = [asyncio.create_task(batcher.run(operation, rows(value))) for value in (1.0, 2.0, 3.0)]
        for _ in range(2):
            assert await asyncio.to_thread(oracle.asked.acquire, timeout=30)
        assert oracle.batches == [1, 1]
        oracle.go_on.set()
        assert [ran.answers for ran in await asyncio.gather(*asked)] == [[b"1.0"], [b"2.0"], [b"3.0"]]

    with started(operation, inline_rows=0, threads=2) as batcher:
        cost = batcher._queues[operation].cost
        for count in (1, 2):
            cost.learn(count, 0.1 * count)
        assert cost.batch_rows(BATCH_SECONDS, MAX_ROWS) == 1
        asyncio.run(ask(batcher))


def test_what_is_answered_is_let_go_without_a_garbage_collection(operation: Operation) -> None:
    async def ask(batcher: Batcher) -> weakref.ref[Rows]:
        asked = rows(1.0)
        await batcher.run(operation, asked)
        return weakref.ref(asked)

    async def is_let_go(batcher: Batcher) -> None:
        kept = await ask(batcher)
        await until(lambda: kept() is None)

    with started(operation, inline_rows=0) as batcher:
        gc.disable()
        try:
            asyncio.run(is_let_go(batcher))
        finally:
            gc.enable()


def test_who_has_an_answer_is_not_refused_because_of_what_was_answered(operation: Operation) -> None:
    async def ask(batcher: Batcher) -> None:
        for _ in range(100):
            batcher._queues[operation].cost.learn(1, 1000.0)  # many seconds, as it is expected
            assert (await batcher.run(operation, rows(1.0))).answers == [b"1.0"]
            assert batcher._expected_wait(batcher._queues[operation]) == 0

    with started(operation, inline_rows=0) as batcher:
        asyncio.run(ask(batcher))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, BaseException])
def test_a_thread_survives_whatever_a_model_raises(
    operation: Operation, oracle: Oracle, error: type[BaseException]
) -> None:
    def raising(_rows: Rows) -> Outputs:
        raise error("out of here")

    failing = Operation(dataclasses.replace(operation.model, compute=raising), "predict")

    async def ask(batcher: Batcher) -> None:
        async with asyncio.timeout(30):
            asked = [batcher.run(failing, rows(value)) for value in (1.0, 2.0)]
            failures = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(failure) for failure in failures] == [ModelFailed] * 2
            assert (await batcher.run(operation, rows(3.0))).answers == [b"3.0"]

    with started(operation, inline_rows=0) as batcher:
        batcher.prepare(failing, 0)
        asyncio.run(ask(batcher))


def test_a_job_given_up_while_a_thread_takes_it_is_counted(
    operation: Operation, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has seen that somebody waits, and has not yet said that it has the job."""
    looked, given_up = threading.Event(), threading.Event()
    take = BatchQueue._take

    def take_slowly(queue: BatchQueue, waiting: deque[BatchJob], most: int) -> Batch | None:
        batch = take(queue, waiting, most)
        if batch is not None and batch.size == 2:
            looked.set()
            given_up.wait(0.5)  # for as long as it has the lock nobody can give up
        return batch

    async def ask(batcher: Batcher) -> None:
        first = await held(batcher, operation, oracle)
        abandoned = asyncio.create_task(batcher.run(operation, rows(2.0, 3.0)))
        await turn()
        oracle.go_on.set()
        assert looked.wait(30)
        oracle.go_on.clear()
        abandoned.add_done_callback(lambda _: given_up.set())
        abandoned.cancel()
        await first
        await until(lambda: batcher.reason_to_replace() is not None)
        oracle.go_on.set()
        await until(lambda: batcher.reason_to_replace() is None)

    monkeypatch.setattr(BatchQueue, "_take", take_slowly)
    with started(operation, inline_rows=0) as batcher:
        asyncio.run(ask(batcher))


def test_rows_that_are_too_many_to_put_together_are_run_alone(
    operation: Operation, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def concatenate(_parts: object) -> Rows:
        raise MemoryError

    monkeypatch.setattr("serving.predict.batcher.np", SimpleNamespace(concatenate=concatenate))
    with started(operation, inline_rows=0) as batcher:
        answers = asked_together(batcher, operation, 1.0, 2.0)
        assert [ran.answers for ran in answers if isinstance(ran, BatchResult)] == [[b"1.0"], [b"2.0"]]
        assert batcher._queues[operation].cost.weight == 0, "that tells nothing of batches"
    assert oracle.batches == [1, 1]


def test_a_row_that_breaks_the_model_fails_only_its_own_request(operation: Operation) -> None:
    for inline_rows in (0, INLINE):
        with started(operation, inline_rows=inline_rows) as batcher:
            good, bad, also_good = asked_together(batcher, operation, 1.0, -1.0, 2.0)
        assert isinstance(bad, ModelFailed)
        assert isinstance(good, BatchResult)
        assert isinstance(also_good, BatchResult)
        assert (good.answers, also_good.answers) == ([b"1.0"], [b"2.0"])


def test_a_result_that_is_not_finite_fails_only_its_own_request(operation: Operation) -> None:
    with started(operation, inline_rows=INLINE) as batcher:
        good, bad = asked_together(batcher, operation, 1.0, float("inf"))
    assert isinstance(good, BatchResult)
    assert isinstance(bad, ModelFailed)


def test_a_request_that_would_wait_too_long_is_refused_at_once_and_others_are_not(
    operation: Operation, oracle: Oracle
) -> None:
    async def ask(batcher: Batcher) -> None:
        batcher._queues[operation].cost.learn(1, 10.0)  # ten seconds a row, as it has turned out
        running = await held(batcher, operation, oracle)
        waiting = []
        for value in range(PATIENT_ROWS):
            waiting.append(asyncio.create_task(batcher.run(operation, rows(float(value)))))
            await turn()
        with pytest.raises(Overloaded):
            await batcher.run(operation, rows(9.0))
        oracle.go_on.set()
        assert len(await asyncio.gather(running, *waiting)) == PATIENT_ROWS + 1

    with started(operation, inline_rows=0, queue_seconds=0.1) as batcher:
        asyncio.run(ask(batcher))


CLIENTS = 20


async def fill(batcher: Batcher, operation: Operation, count: int, seconds: float) -> list[asyncio.Task[BatchResult]]:
    """Requests of one row that wait, each with so many seconds until its deadline."""
    waiting = []
    for value in range(count):
        waiting.append(asyncio.create_task(batcher.run(operation, rows(float(value)), seconds=seconds)))
        await turn()
    assert not any(task.done() for task in waiting)
    return waiting


def test_a_slow_model_has_as_many_requests_waiting_as_clients_have_patience(
    operation: Operation, oracle: Oracle
) -> None:
    async def ask(batcher: Batcher) -> None:
        batcher._queues[operation].cost.learn(1, 0.03)
        running = await held(batcher, operation, oracle)
        waiting = await fill(batcher, operation, CLIENTS - 1, seconds=30.0)
        for seconds in (0.1, 0.0):
            with pytest.raises(Overloaded):  # it could not be answered before its deadline
                await batcher.run(operation, rows(9.0), seconds=seconds)
        for _ in range(3):
            waiting.append(asyncio.create_task(batcher.run(operation, rows(1.0), admitted=True)))
        await turn()
        with pytest.raises(Overloaded):  # more than QUEUE_SECONDS in proportion
            await batcher.run(operation, rows(9.0), seconds=30.0)
        oracle.go_on.set()
        assert len(await asyncio.gather(running, *waiting)) == CLIENTS + 3

    with started(operation, inline_rows=0, queue_seconds=0.1) as batcher:
        asyncio.run(ask(batcher))


def test_a_quick_model_is_not_refused_because_many_wait_for_a_slow_one(operation: Operation, oracle: Oracle) -> None:
    quick = dataclasses.replace(operation)

    async def ask(batcher: Batcher) -> None:
        batcher._queues[operation].cost.learn(1, 0.03)
        batcher._queues[quick].cost.learn(1, 0.001)
        running = await held(batcher, operation, oracle)
        waiting = await fill(batcher, operation, CLIENTS - 1, seconds=30.0)
        waiting += await fill(batcher, quick, 2, seconds=30.0)
        oracle.go_on.set()
        assert len(await asyncio.gather(running, *waiting)) == CLIENTS + 2

    with started(operation, inline_rows=0, queue_seconds=0.1) as batcher:
        batcher.prepare(quick, 0)
        asyncio.run(ask(batcher))


def test_threads_that_work_for_nobody_any_more_are_stuck_until_they_come_back(
    operation: Operation, oracle: Oracle
) -> None:
    async def ask(batcher: Batcher) -> None:
        abandoned = await held(batcher, operation, oracle)
        assert batcher.reason_to_replace() is None
        abandoned.cancel()
        await until(lambda: batcher.reason_to_replace() is not None)
        with pytest.raises(Overloaded):
            await batcher.run(operation, rows(2.0))
        oracle.go_on.set()
        await until(lambda: batcher.reason_to_replace() is None)
        assert (await batcher.run(operation, rows(2.0))).answers == [b"2.0"]

    with started(operation, inline_rows=0) as batcher:
        asyncio.run(ask(batcher))


def test_a_request_that_is_given_up_while_it_waits_is_never_run(operation: Operation, oracle: Oracle) -> None:
    async def ask(batcher: Batcher) -> None:
        running = await held(batcher, operation, oracle)
        waiting = asyncio.create_task(batcher.run(operation, rows(2.0)))
        await turn()
        waiting.cancel()
        oracle.go_on.set()
        await running
        assert (await batcher.run(operation, rows(3.0))).answers == [b"3.0"]

    with started(operation, inline_rows=0) as batcher:
        asyncio.run(ask(batcher))
    assert oracle.batches == [1, 1]


def test_requests_that_want_different_answers_are_not_one_batch(operation: Operation, oracle: Oracle) -> None:
    async def ask(batcher: Batcher) -> None:
        selections = (Selection(), Selection(), Selection(top=1))
        await asyncio.gather(*(batcher.run(operation, rows(1.0), selection) for selection in selections))

    with started(operation, inline_rows=INLINE) as batcher:
        asyncio.run(ask(batcher))
    assert oracle.batches == [2, 1]


async def held(batcher: Batcher, operation: Operation, oracle: Oracle) -> asyncio.Task[BatchResult]:
    """A request that a thread is at, until the oracle may go on."""
    oracle.go_on.clear()
    task = asyncio.create_task(batcher.run(operation, rows(1.0)))
    await asyncio.to_thread(oracle.asked.acquire)
    return task


def turn() -> Awaitable[None]:
    """Let everything that is ready run."""
    return asyncio.sleep(0.001)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await turn()


def test_the_loop_waits_less_for_the_gil_than_python_has_it_wait(operation: Operation) -> None:
    sys.setswitchinterval(0.005)
    with started(operation, inline_rows=0):
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
