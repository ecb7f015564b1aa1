"""Runs the rows of requests that arrive together as one batch, and never waits for more of them.

What has arrived in one turn of the event loop is run together: right there when it takes less than a millisecond, else
on one of the worker's inference threads. What arrives while all threads are busy is the next batch, which a thread
takes by itself when it is done: the loop may be busy just then, refusing others. So batches grow with the load, and
without load a row is a batch of its own.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import msgspec
import numpy as np
import structlog

from registry.errors import ModelFailed
from registry.explain.explanation import Selection
from registry.rows.features import Rows
from serving.errors import Overloaded
from serving.predict.cost import Cost
from serving.predict.operation import EVERYTHING, Answers, Operation

log = structlog.get_logger(__name__)

MAX_ROWS = 1024
BATCH_SECONDS = 0.025
"""Rows and time of one batch, so that no request waits for the rows of all others. A request is never divided."""

SWITCH_SECONDS = 0.0005
"""Seconds for which a thread may hold the GIL while another waits for it. With Python's 5 ms the event loop loses as
much in each of its turns to a model that runs Python code (`python -m bench.turns`); switching costs some microseconds.
"""

PATIENT_ROWS = 4
"""Rows that may always wait for a thread, however slow the model is."""

SLOW_SECONDS = 0.005
"""QUEUE_SECONDS is meant for models that take up to this long for a row; for slower ones it is longer in proportion."""


class BatchResult(msgspec.Struct, frozen=True):
    """The answers to one request's rows, and the seconds that the whole batch took."""

    answers: Answers
    seconds: float


BatchOutcome: TypeAlias = BatchResult | ModelFailed | MemoryError


@dataclass(eq=False, slots=True)
class BatchJob:
    """The rows of one request until they are answered."""

    rows: Rows
    size: int
    """By `Operation.size`."""
    selection: Selection
    done: asyncio.Future[BatchResult]
    batch: Batch | None = None
    """The batch in which a thread has taken it, until its outcome is known."""


@dataclass(eq=False, slots=True)
class Batch:
    """Jobs of one queue that are run together; they have the same selection."""

    queue: BatchQueue
    jobs: list[BatchJob]
    size: int
    ends: float = 0.0
    """The time when a thread is expected to finish it, by `perf_counter`."""
    seconds: float = 0.0
    """Seconds that it took; 0 unless it was answered as a whole."""

    def run(self) -> list[BatchOutcome]:
        """One outcome for each job. If the model fails on all of them together, each is tried alone."""
        started = time.perf_counter()
        jobs = self.jobs
        try:
            rows = jobs[0].rows if len(jobs) == 1 else np.concatenate([job.rows for job in jobs])
            answers = self.queue.operation.answer(rows, jobs[0].selection)
        except (ModelFailed, MemoryError) as error:
            return [error] if len(jobs) == 1 else [Batch(self.queue, [job], job.size).run()[0] for job in jobs]
        self.seconds = time.perf_counter() - started
        if len(jobs) == 1:
            return [BatchResult(answers, self.seconds)]
        outcomes: list[BatchOutcome] = []
        start = 0
        for job in jobs:
            outcomes.append(BatchResult(answers[start : start + len(job.rows)], self.seconds))
            start += len(job.rows)
        return outcomes

    def settle(self, outcomes: Sequence[BatchOutcome]) -> None:
        """Answer the requests that still wait. To be called on their event loop."""
        for job, outcome in zip(self.jobs, outcomes, strict=True):
            job.batch = None  # which holds the job: rows and answers would stay until the next garbage collection
            if job.done.done():
                continue
            if isinstance(outcome, BatchResult):
                job.done.set_result(outcome)
            else:
                job.done.set_exception(outcome)

    def is_cancelled(self) -> bool:
        """True if no request waits for it any more."""
        return all(job.done.done() for job in self.jobs)


@dataclass(eq=False, slots=True)
class BatchQueue:
    """The jobs that wait for one operation: `small` ones run on the event loop, `large` ones on a thread.

    Loop and threads share all but `small`, under the Batcher's lock.
    """

    operation: Operation
    inline_rows: int
    small: deque[BatchJob] = field(default_factory=deque)
    large: deque[BatchJob] = field(default_factory=deque)
    large_size: int = 0
    """The sizes of `large` together, by `Operation.size`."""
    cost: Cost = field(default_factory=Cost)
    """The cost of batches on a thread."""

    def add_large(self, job: BatchJob) -> None:
        self.large.append(job)
        self.large_size += job.size

    def take_small(self) -> Batch | None:
        """The next batch to run on the event loop."""
        return self._take(self.small, self.inline_rows)

    def take_large(self) -> Batch | None:
        """The next batch to run on a thread."""
        batch = self._take(self.large, self.cost.batch_rows(BATCH_SECONDS, MAX_ROWS))
        if batch is not None:
            batch.ends = time.perf_counter() + self.cost.expect(batch.size)
            for job in batch.jobs:
                job.batch = batch
        return batch

    def _take(self, waiting: deque[BatchJob], most: int) -> Batch | None:
        """Take jobs up to a size of `most` (always at least one) and skip cancelled ones. None if no job is left."""
        taken: list[BatchJob] = []
        size = 0
        while waiting:
            job = waiting[0]
            if taken and (size + job.size > most or job.selection != taken[0].selection):
                break
            waiting.popleft()
            if waiting is self.large:
                self.large_size -= job.size
            if not job.done.done():
                taken.append(job)
                size += job.size
        return Batch(self, taken, size) if taken else None

    def waiting_batches(self) -> int:
        """The number of batches that the jobs that wait here are expected to be."""
        return math.ceil(self.large_size / self.cost.batch_rows(BATCH_SECONDS, MAX_ROWS))

    def turn_seconds(self) -> float:
        """Seconds for which one batch of this queue will occupy a thread, at most."""
        return max(BATCH_SECONDS, self.cost.expect(max((job.size for job in self.large), default=1)))

    def expected_seconds(self) -> float:
        """Seconds for which the jobs that wait here will occupy the threads."""
        whole, rest = divmod(self.large_size, MAX_ROWS)
        return whole * self.cost.expect(MAX_ROWS) + (self.cost.expect(rest) if rest else 0.0)


class Batcher:
    """The batches and inference threads of one worker. Built before the fork, started after it."""

    def __init__(self, *, threads: int, queue_seconds: float) -> None:
        """A request that would wait for a thread longer than `queue_seconds` is refused.

        A slow model has more patience, see SLOW_SECONDS, up to the deadline of the request.
        """
        self._threads = threads
        self._queue_seconds = queue_seconds
        self._queues: dict[Operation, BatchQueue] = {}
        self._lock = threading.Lock()
        """Guards what loop and threads share: the queues, and the two that follow."""
        self._waiting: deque[BatchQueue] = deque()
        self._running: set[Batch] = set()
        """On a thread each; if a thread is idle, only jobs that arrived in this turn of the loop are waiting."""
        self._is_waking = False
        self._stuck: set[Batch] = set()
        self._batches = self._batch_rows = self._ever_stuck = 0
        self._pool: ThreadPoolExecutor | None = None

    def prepare(self, operation: Operation, inline_rows: int) -> None:
        """Make a queue for an operation, of which rows of size `inline_rows` may run on the event loop at once."""
        self._queues[operation] = BatchQueue(operation, inline_rows)

    def start(self) -> None:
        """To be called in the process that will predict: threads do not survive a fork."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="inference")

    def stop(self) -> None:
        """Release the threads; one that is stuck in compiled code cannot be killed and is left behind."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def figures(self) -> tuple[int, ...]:
        """Batches run since the start, rows in them, threads that got stuck; threads stuck and rows waiting now."""
        waiting = sum(queue.large_size for queue in self._queues.values())
        return self._batches, self._batch_rows, self._ever_stuck, len(self._stuck), waiting

    def has_waiting(self) -> bool:
        """Whether a request waits for a thread."""
        return bool(self._waiting)

    def reason_to_replace(self) -> str | None:
        """Why this worker should be replaced, if it should."""
        if len(self._stuck) < self._threads:
            return None
        return f"all {self._threads} inference threads are stuck"

    def is_quick(self, operation: Operation, rows: Rows) -> bool:
        """Return whether these rows run on the event loop, in its next turn."""
        return operation.size(rows) <= self._queues[operation].inline_rows

    def part_rows(self, operation: Operation) -> int:
        """The number of rows of one request to run before others have their turn."""
        queue = self._queues[operation]
        with self._lock:
            return max(queue.inline_rows, queue.cost.part_rows(BATCH_SECONDS, MAX_ROWS))

    async def run(
        self,
        operation: Operation,
        rows: Rows,
        selection: Selection = EVERYTHING,
        *,
        admitted: bool = False,
        seconds: float = 0.0,
    ) -> BatchResult:
        """Answer the rows of one request. Raises Overloaded, ModelFailed. May be cancelled at any time.

        Rows of a request of which a part has been answered are `admitted` already. `seconds` is the time until its
        deadline.
        """
        queue = self._queues[operation]
        job = BatchJob(rows, operation.size(rows), selection, asyncio.get_running_loop().create_future())
        if job.size <= queue.inline_rows:
            self._enqueue_small(queue, job)
        else:
            if not admitted:
                self._check_room(queue, job.size, seconds)
            self._enqueue_large(queue, job)
        return await job.done

    def _enqueue_small(self, queue: BatchQueue, job: BatchJob) -> None:
        if not queue.small:
            asyncio.get_running_loop().call_soon(self._run_small, queue)
        queue.small.append(job)

    def _run_small(self, queue: BatchQueue) -> None:
        batch = queue.take_small()
        if queue.small:  # the rest in the next turn, so that the loop can serve others in between
            asyncio.get_running_loop().call_soon(self._run_small, queue)
        if batch is not None:
            self._settle(batch, batch.run())

    def _check_room(self, queue: BatchQueue, size: int, seconds: float) -> None:
        """Raises Overloaded."""
        with self._lock:
            row = queue.cost.expect(1)
            scaled = self._queue_seconds * row / SLOW_SECONDS
            patience = max(self._queue_seconds, PATIENT_ROWS * row, min(scaled, seconds - queue.cost.expect(size)))
            wait = self._expected_wait(queue)
        if wait > patience or self.reason_to_replace() is not None:
            raise Overloaded

    def _expected_wait(self, queue: BatchQueue) -> float:
        """Seconds until a thread has done what is running now, and what will run before a new job of this queue.

        Queues take turns, a batch each: another one is waited for once for each batch that waits in this one.
        """
        now = time.perf_counter()
        ahead = sum(max(0.0, batch.ends - now) for batch in self._running) + queue.expected_seconds()
        turns = 1 + queue.waiting_batches()
        others = (other for other in self._waiting if other is not queue)
        ahead += sum(min(other.expected_seconds(), turns * other.turn_seconds()) for other in others)
        return ahead / self._threads

    def _enqueue_large(self, queue: BatchQueue, job: BatchJob) -> None:
        job.done.add_done_callback(partial(self._note_cancelled, job))
        with self._lock:
            if not queue.large:
                self._waiting.append(queue)
            queue.add_large(job)
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
        """With the lock held: the next waiting batch, which counts as running from now on."""
        while self._waiting:
            queue = self._waiting.popleft()
            batch = queue.take_large()
            if queue.large:
                self._waiting.append(queue)
            if batch is not None:
                self._running.add(batch)
                return batch
        return None

    def _work(self, loop: asyncio.AbstractEventLoop, batch: Batch | None) -> None:
        """On a thread: one batch after the other, as long as any waits."""
        while batch is not None:
            outcomes: list[BatchOutcome]
            try:
                outcomes = batch.run()
            except BaseException as error:  # noqa: BLE001 - whatever a model raises, the thread goes on
                outcomes = [ModelFailed(f"{type(error).__name__}: {error}") for _ in batch.jobs]
            with self._lock:  # before any answer is out: its client could be refused because of this batch
                self._running.remove(batch)
                if batch.seconds:
                    batch.queue.cost.learn(batch.size, batch.seconds)
                following = self._take()
            loop.call_soon_threadsafe(self._settle, batch, outcomes)
            del outcomes  # the answers are not to be kept while the next batch runs
            batch = following

    def _settle(self, batch: Batch, outcomes: Sequence[BatchOutcome]) -> None:
        self._batches += 1
        self._batch_rows += sum(len(job.rows) for job in batch.jobs)
        self._stuck.discard(batch)
        batch.settle(outcomes)

    def _note_cancelled(self, job: BatchJob, _: object) -> None:
        """Count a thread as stuck while it works for cancelled requests alone: a thread cannot be killed."""
        with self._lock:  # a thread that is about to take the job sees that it is cancelled, or is seen here
            batch = job.batch
        if batch is not None and batch not in self._stuck and batch.is_cancelled():
            self._stuck.add(batch)
            self._ever_stuck += 1
            log.warning("Inference thread is stuck", stuck=len(self._stuck), threads=self._threads)
