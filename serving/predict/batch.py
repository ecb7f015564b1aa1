"""What is run together: the jobs of requests, the lines that they wait in, and what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from registry.errors import ModelFailed
from registry.explain.explanation import Selection
from registry.rows.features import Rows
from serving.predict.cost import Cost
from serving.predict.operation import Operation

MAX_ROWS = 1024
BATCH_SECONDS = 0.025
"""Rows and time of one batch, so that nobody waits for the rows of everybody. A request is never divided."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a request's rows: their answers, and the seconds that the whole batch took."""

    answers: list[bytes]
    seconds: float


Outcome: TypeAlias = Ran | ModelFailed | MemoryError


@dataclass(eq=False, slots=True)
class Job:
    """The rows of one request, on their way."""

    rows: Rows
    selection: Selection
    done: asyncio.Future[Ran]
    batch: Batch | None = None
    """In which a thread has taken it, until it has its outcome."""


@dataclass(eq=False, slots=True)
class Batch:
    """Jobs of one line that are run together, and want the same of their answers."""

    line: Line
    jobs: list[Job]
    rows: int
    ends: float = 0.0
    """When a thread is expected to be done with it, by `perf_counter`."""
    seconds: float = 0.0
    """That it took; 0 as long as it has not been answered as a whole."""

    def run(self) -> list[Outcome]:
        """One outcome for each job. If the model fails on all of them together, each is tried alone."""
        started = time.perf_counter()
        jobs = self.jobs
        try:
            rows = jobs[0].rows if len(jobs) == 1 else np.concatenate([job.rows for job in jobs])
            answers = self.line.operation.answer(rows, jobs[0].selection)
        except (ModelFailed, MemoryError) as error:
            return [error] if len(jobs) == 1 else [Batch(self.line, [job], len(job.rows)).run()[0] for job in jobs]
        self.seconds = time.perf_counter() - started
        if len(jobs) == 1:
            return [Ran(answers, self.seconds)]
        outcomes: list[Outcome] = []
        start = 0
        for job in jobs:
            outcomes.append(Ran(answers[start : start + len(job.rows)], self.seconds))
            start += len(job.rows)
        return outcomes

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Tell those who still wait. To be called on their event loop."""
        for job, outcome in zip(self.jobs, outcomes, strict=True):
            job.batch = None  # which holds the job: rows and answers would stay until the next garbage collection
            if job.done.done():
                continue
            if isinstance(outcome, Ran):
                job.done.set_result(outcome)
            else:
                job.done.set_exception(outcome)

    def is_given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(job.done.done() for job in self.jobs)


@dataclass(eq=False, slots=True)
class Line:
    """What waits for one operation. `small` jobs run on the loop, `large` ones on a thread.

    Loop and threads share all but `small`, under the Batcher's lock.
    """

    operation: Operation
    inline_rows: int
    small: deque[Job] = field(default_factory=deque)
    large: deque[Job] = field(default_factory=deque)
    large_rows: int = 0
    cost: Cost = field(default_factory=Cost)
    """Of batches on a thread."""

    def add_large(self, job: Job) -> None:
        self.large.append(job)
        self.large_rows += len(job.rows)

    def take_small(self) -> Batch | None:
        """The next to be run on the loop."""
        return self._take(self.small, self.inline_rows)

    def take_large(self) -> Batch | None:
        """The next to be run on a thread."""
        batch = self._take(self.large, self._rows_of_a_batch())
        if batch is not None:
            batch.ends = time.perf_counter() + self.cost.expect(batch.rows)
            for job in batch.jobs:
                job.batch = batch
        return batch

    def _take(self, waiting: deque[Job], most: int) -> Batch | None:
        """At least one job, together no more than `most` rows; given-up ones are dropped. None if no other is left."""
        taken: list[Job] = []
        rows = 0
        while waiting:
            job = waiting[0]
            if taken and (rows + len(job.rows) > most or job.selection != taken[0].selection):
                break
            waiting.popleft()
            if waiting is self.large:
                self.large_rows -= len(job.rows)
            if not job.done.done():
                taken.append(job)
                rows += len(job.rows)
        return Batch(self, taken, rows) if taken else None

    def learn(self, batch: Batch) -> None:
        """What a batch on a thread has cost."""
        if batch.seconds:
            self.cost.learn(batch.rows, batch.seconds)

    def expected_seconds(self) -> float:
        """How long the threads will be busy with what waits here."""
        whole, rest = divmod(self.large_rows, MAX_ROWS)
        return whole * self.cost.expect(MAX_ROWS) + (self.cost.expect(rest) if rest else 0.0)

    def rows_at_once(self) -> int:
        """How many rows of a request that can be divided should be asked for at a time."""
        return max(1, self.inline_rows, self._rows_of_a_batch() if self.cost.weight else 1)

    def _rows_of_a_batch(self) -> int:
        return self.cost.batch_rows(BATCH_SECONDS, MAX_ROWS)
