"""Runs the rows of requests that arrive together as one batch, and never waits for more of them.

What has arrived in one turn of the event loop is run together: right there when it takes less than a millisecond, else
on one of the worker's inference threads. What arrives while all threads are busy is the next batch. So batches grow
with the load, and without load a row is a batch of its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import structlog

from registry.errors import ModelFailed
from registry.features import Rows
from registry.presenting import Selection
from serving.cost import Cost
from serving.errors import Overloaded
from serving.operations import EVERYTHING, Operation

log = structlog.get_logger(__name__)

MAX_ROWS = 1024
BATCH_SECONDS = 0.025
"""Rows and time of one batch, so that nobody waits for the rows of everybody. A request is never divided."""

SWITCH_SECONDS = 0.0005
"""How long a thread that holds the GIL may keep it from one that waits. With Python's 5 ms the event loop loses as much
in each of its turns to a model that runs Python code (`python -m bench.turns`); switching costs some microseconds.
"""

PATIENCE = 4
"""Rows of a model that may wait for its thread and each other, however slow it is."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a request's rows: their answers, and the seconds that the whole batch took."""

    answers: list[bytes]
    seconds: float


@dataclass(eq=False, slots=True)
class Job:
    """The rows of one request, on their way."""

    rows: Rows
    selection: Selection
    done: asyncio.Future[Ran]


@dataclass(eq=False, slots=True)
class Line:
    """What waits for one operation. `small` jobs run on the loop, `large` ones on a thread."""

    operation: Operation
    inline_rows: int
    small: deque[Job] = field(default_factory=deque)
    large: deque[Job] = field(default_factory=deque)
    large_rows: int = 0
    cost: Cost = field(default_factory=Cost)

    def expected_seconds(self) -> float:
        """How long the threads will be busy with what waits here."""
        whole, rest = divmod(self.large_rows, MAX_ROWS)
        return whole * self.cost.expect(MAX_ROWS) + (self.cost.expect(rest) if rest else 0.0)

    def take(self, jobs: deque[Job], most: int) -> list[Job]:
        """The next jobs to run together: at least one, together no more than `most` rows; given-up ones are dropped.

        All of them want the same of their answers.
        """
        taken: list[Job] = []
        rows = 0
        while jobs:
            job = jobs[0]
            if taken and (rows + len(job.rows) > most or job.selection != taken[0].selection):
                break
            jobs.popleft()
            if jobs is self.large:
                self.large_rows -= len(job.rows)
            if not job.done.done():
                taken.append(job)
                rows += len(job.rows)
        return taken


Batch: TypeAlias = "asyncio.Future[list[Ran | ModelFailed]]"
"""On a thread; an outcome for each request."""


class Batcher:
    """The batches and inference threads of one worker. Built before the fork, started after it."""

    def __init__(self, *, threads: int, queue_seconds: float) -> None:
        """A request that would wait for a thread longer than `queue_seconds` is refused, unless few are waiting."""
        self._threads = threads
        self._queue_seconds = queue_seconds
        self._lines: dict[Operation, Line] = {}
        self._idle_threads = threads
        self._running: dict[Batch, float] = {}
        self._waiting: deque[Line] = deque()
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

    def unwell(self) -> str | None:
        """Why this worker should be replaced, if it should."""
        if len(self._stuck) < self._threads:
            return None
        return f"all {self._threads} inference threads are stuck"

    def is_quick(self, operation: Operation, rows: int) -> bool:
        """Whether so many rows are run on the event loop, in its next turn."""
        return rows <= self._lines[operation].inline_rows

    def rows_at_once(self, operation: Operation) -> int:
        """How many rows of a request that can be divided should be asked for at a time."""
        line = self._lines[operation]
        return max(1, line.inline_rows, line.cost.batch_rows(BATCH_SECONDS, MAX_ROWS) if line.cost.weight else 1)

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
        jobs = line.take(line.small, line.inline_rows)
        if line.small:  # the rest in the next turn, so that the loop can look after others in between
            asyncio.get_running_loop().call_soon(self._run_small, line)
        if jobs:
            self._count(jobs)
            _settle(jobs, _run_batch(line.operation, jobs))

    def _count(self, jobs: Sequence[Job]) -> int:
        """Count a batch that is about to run; its rows."""
        rows = len(jobs[0].rows) if len(jobs) == 1 else sum(len(job.rows) for job in jobs)
        self._batches += 1
        self._batch_rows += rows
        return rows

    def _check_room(self, line: Line) -> None:
        # A model that is slow by itself may still have a few requests waiting
        patience = max(self._queue_seconds, PATIENCE * line.cost.expect(1))
        if self.unwell() is not None or self._expected_wait() > patience:
            raise Overloaded

    def _enqueue_large(self, line: Line, job: Job) -> None:
        if not line.large:
            self._waiting.append(line)
            if self._idle_threads:
                asyncio.get_running_loop().call_soon(self._start_large)
        line.large.append(job)
        line.large_rows += len(job.rows)

    def _expected_wait(self) -> float:
        """Seconds until a thread has done what is running and waiting now."""
        now = time.perf_counter()
        running = sum(max(0.0, end - now) for end in self._running.values())
        return (running + sum(line.expected_seconds() for line in self._waiting)) / self._threads

    def _start_large(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle_threads and self._waiting:
            line = self._waiting.popleft()
            jobs = line.take(line.large, line.cost.batch_rows(BATCH_SECONDS, MAX_ROWS))
            if line.large:
                self._waiting.append(line)
            if jobs:
                self._idle_threads -= 1
                batch = loop.run_in_executor(self._pool, _run_batch, line.operation, jobs)
                expected = line.cost.expect(self._count(jobs))
                self._running[batch] = time.perf_counter() + expected
                for job in jobs:
                    job.done.add_done_callback(partial(self._note_given_up, jobs, batch))
                batch.add_done_callback(partial(self._finish_large, line, jobs))

    def _note_given_up(self, jobs: Sequence[Job], batch: Batch, _: object) -> None:
        """A thread cannot be killed: one that works for nobody any more is counted as stuck until it comes back."""
        if not batch.done() and all(job.done.done() for job in jobs):
            self._stuck.add(batch)
            self._ever_stuck += 1
            log.warning("Inference thread is stuck", stuck=len(self._stuck), threads=self._threads)

    def _finish_large(self, line: Line, jobs: Sequence[Job], batch: Batch) -> None:
        self._stuck.discard(batch)
        del self._running[batch]
        self._idle_threads += 1
        if not batch.cancelled():
            outcomes = batch.result()
            ran = next((outcome for outcome in outcomes if isinstance(outcome, Ran)), None)
            if ran is not None:
                line.cost.learn(sum(len(job.rows) for job in jobs), ran.seconds)
            _settle(jobs, outcomes)
        self._start_large()


def _settle(jobs: Sequence[Job], outcomes: Sequence[Ran | ModelFailed]) -> None:
    for job, outcome in zip(jobs, outcomes, strict=True):
        if job.done.done():
            continue
        if isinstance(outcome, ModelFailed):
            job.done.set_exception(outcome)
        else:
            job.done.set_result(outcome)


def _run_batch(operation: Operation, jobs: Sequence[Job]) -> list[Ran | ModelFailed]:
    """One outcome for each job. If the model fails on all of them together, each is tried alone."""
    started = time.perf_counter()
    rows = jobs[0].rows if len(jobs) == 1 else np.concatenate([job.rows for job in jobs])
    try:
        answers = operation.answer(rows, jobs[0].selection)
    except ModelFailed as error:
        if len(jobs) == 1:
            return [error]
        return [_run_batch(operation, [job])[0] for job in jobs]
    seconds = time.perf_counter() - started
    if len(jobs) == 1:
        return [Ran(answers, seconds)]
    outcomes: list[Ran | ModelFailed] = []
    start = 0
    for job in jobs:
        outcomes.append(Ran(answers[start : start + len(job.rows)], seconds))
        start += len(job.rows)
    return outcomes
