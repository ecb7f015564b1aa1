"""Runs the rows of requests that arrive together as one batch, and never waits for more of them.

What has arrived in one turn of the event loop is run together: right there when it takes less than a millisecond, else
on one of the worker's inference threads. What arrives while all threads are busy is the next batch, which a thread
takes by itself when it is done: the loop may be busy just then, refusing others. So batches grow with the load, and
without load a row is a batch of its own.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from registry.errors import ModelFailed
from registry.explain.explanation import Selection
from registry.rows.features import Rows
from serving.errors import Overloaded
from serving.predict.batch import Batch, Job, Line, Outcome, Ran
from serving.predict.operation import EVERYTHING, Operation

log = structlog.get_logger(__name__)

SWITCH_SECONDS = 0.0005
"""How long a thread that holds the GIL may keep it from one that waits. With Python's 5 ms the event loop loses as much
in each of its turns to a model that runs Python code (`python -m bench.turns`); switching costs some microseconds.
"""

PATIENCE = 4
"""Rows of a model that may wait for its thread and each other, however slow it is."""


class Batcher:
    """The batches and inference threads of one worker. Built before the fork, started after it."""

    def __init__(self, *, threads: int, queue_seconds: float) -> None:
        """A request that would wait for a thread longer than `queue_seconds` is refused, unless few are waiting."""
        self._threads = threads
        self._queue_seconds = queue_seconds
        self._lines: dict[Operation, Line] = {}
        self._lock = threading.Lock()
        """For what loop and threads share: the lines, and the two that follow."""
        self._waiting: deque[Line] = deque()
        self._running: set[Batch] = set()
        """On a thread each; the other threads are idle, and then nothing waits but for what arrives in this turn."""
        self._is_waking = False
        self._stuck: set[Batch] = set()
        self._batches = self._batch_rows = self._ever_stuck = 0
        self._pool: ThreadPoolExecutor | None = None

    def prepare(self, operation: Operation, inline_rows: int) -> None:
        """Get a line ready for an operation, of which `inline_rows` rows may be run on the event loop."""
        self._lines[operation] = Line(operation, inline_rows)

    def start(self) -> None:
        """To be called in the process that will predict: threads do not survive a fork."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="inference")

    def stop(self) -> None:
        """Let go of the threads; one that is stuck in compiled code cannot be killed and is left behind."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def figures(self) -> tuple[int, ...]:
        """Batches run since the start, rows in them, threads that got stuck; threads stuck and rows waiting now."""
        waiting = sum(line.large_rows for line in self._lines.values())
        return self._batches, self._batch_rows, self._ever_stuck, len(self._stuck), waiting

    def reason_to_replace(self) -> str | None:
        """Why this worker should be replaced, if it should."""
        if len(self._stuck) < self._threads:
            return None
        return f"all {self._threads} inference threads are stuck"

    def is_quick(self, operation: Operation, rows: int) -> bool:
        """Whether so many rows are run on the event loop, in its next turn."""
        return rows <= self._lines[operation].inline_rows

    def rows_at_once(self, operation: Operation) -> int:
        """How many rows of a request that can be divided should be asked for at a time."""
        with self._lock:
            return self._lines[operation].rows_at_once()

    async def run(
        self, operation: Operation, rows: Rows, selection: Selection = EVERYTHING, *, admitted: bool = False
    ) -> Ran:
        """The answers for the rows of one request. Raises Overloaded, ModelFailed. May be cancelled at any time.

        Rows of a request of which a part has been answered are `admitted` already.
        """
        line = self._lines[operation]
        job = Job(rows, selection, asyncio.get_running_loop().create_future())
        if len(rows) <= line.inline_rows:
            self._enqueue_small(line, job)
        else:
            if not admitted:
                self._check_room(line)
            self._enqueue_large(line, job)
        return await job.done

    def _enqueue_small(self, line: Line, job: Job) -> None:
        if not line.small:
            asyncio.get_running_loop().call_soon(self._run_small, line)
        line.small.append(job)

    def _run_small(self, line: Line) -> None:
        batch = line.take_small()
        if line.small:  # the rest in the next turn, so that the loop can look after others in between
            asyncio.get_running_loop().call_soon(self._run_small, line)
        if batch is not None:
            self._settle(batch, batch.run())

    def _check_room(self, line: Line) -> None:
        with self._lock:
            # A model that is slow by itself may still have a few requests waiting
            patience = max(self._queue_seconds, PATIENCE * line.cost.expect(1))
            wait = self._expected_wait()
        if wait > patience or self.reason_to_replace() is not None:
            raise Overloaded

    def _expected_wait(self) -> float:
        """Seconds until a thread has done what is running and waiting now."""
        now = time.perf_counter()
        running = sum(max(0.0, batch.ends - now) for batch in self._running)
        return (running + sum(line.expected_seconds() for line in self._waiting)) / self._threads

    def _enqueue_large(self, line: Line, job: Job) -> None:
        job.done.add_done_callback(partial(self._note_given_up, job))
        with self._lock:
            if not line.large:
                self._waiting.append(line)
            line.add_large(job)
        if not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake_threads)

    def _wake_threads(self) -> None:
        """Give idle threads what has arrived in this turn of the loop; busy ones will find it by themselves."""
        self._is_waking = False
        assert self._pool is not None
        loop = asyncio.get_running_loop()
        with self._lock:
            while len(self._running) < self._threads and (batch := self._take()) is not None:
                self._pool.submit(self._work, loop, batch)

    def _take(self) -> Batch | None:
        """With the lock: the next batch of those that wait, which is running from now on."""
        while self._waiting:
            line = self._waiting.popleft()
            batch = line.take_large()
            if line.large:
                self._waiting.append(line)
            if batch is not None:
                self._running.add(batch)
                return batch
        return None

    def _work(self, loop: asyncio.AbstractEventLoop, batch: Batch | None) -> None:
        """On a thread: one batch after the other, as long as anything waits."""
        while batch is not None:
            outcomes: list[Outcome]
            try:
                outcomes = batch.run()
            except BaseException as error:  # noqa: BLE001 - whatever a model raises, the thread goes on
                outcomes = [ModelFailed(f"{type(error).__name__}: {error}") for _ in batch.jobs]
            with self._lock:  # before anybody has an answer, who might at once be refused because of it
                self._running.remove(batch)
                batch.line.learn(batch)
                following = self._take()
            loop.call_soon_threadsafe(self._settle, batch, outcomes)
            del outcomes  # the answers are not to be kept while the next batch runs
            batch = following

    def _settle(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        self._batches += 1
        self._batch_rows += batch.rows
        self._stuck.discard(batch)
        batch.settle(outcomes)

    def _note_given_up(self, job: Job, _: object) -> None:
        """A thread cannot be killed: one that works for nobody any more is counted as stuck until it comes back."""
        with self._lock:  # a thread that is about to take the job sees that it is given up, or is seen itself
            batch = job.batch
        if batch is not None and batch not in self._stuck and batch.is_given_up():
            self._stuck.add(batch)
            self._ever_stuck += 1
            log.warning("Inference thread is stuck", stuck=len(self._stuck), threads=self._threads)
