"""The way of one request for predictions or explanations: cache, single flight, computation, all within a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog

from cache.flight import Answer
from cache.keys import key_prefix, row_keys
from cache.tiered import TieredCache
from registry.errors import NotExplained
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from serving.errors import DeadlineExceeded
from serving.predict.batcher import Batcher
from serving.predict.cost import Cost, measure_inline_rows
from serving.predict.operation import EVERYTHING, VERBS, Operation, Verb, encode_rows
from serving.process.executor import Executor, Function

log = structlog.get_logger(__name__)

ANSWER_FORMAT = "1"
"""Part of every key: to be changed with the form of an answer, because caches outlive a deploy."""

CALL_SECONDS = 0.1
"""Of one call to another process: so that requests take turns, and a deadline is not missed by much."""

MAX_CALL_ROWS = 100


@dataclass(slots=True)
class Timing:
    """Where the time of one request went, in seconds."""

    queue: float = 0.0
    model: float = 0.0

    def header(self, started: float, decoded: float, ended: float) -> bytes:
        """Server-Timing, in milliseconds; what is left of the whole was spent on the cache."""
        cache = ended - decoded - self.queue - self.model
        spans = (decoded - started, cache, self.queue, self.model, ended - started)
        return b"decode;dur=%.3f, cache;dur=%.3f, queue;dur=%.3f, model;dur=%.3f, total;dur=%.3f" % tuple(
            span * 1e3 for span in spans
        )


def make_operations(registry: Registry) -> dict[tuple[LoadedModel, Verb], Operation]:
    """All that can be asked for."""
    return {(model, verb): Operation(model, verb) for model in registry for verb in VERBS}


def isolated_functions(operations: Mapping[tuple[LoadedModel, Verb], Operation]) -> dict[str, Function]:
    """What processes that can be killed have to be able to do."""
    return {operation.name: operation.answer_call for operation in operations.values() if operation.is_isolated}


class Inference:
    """Answers rows with ready JSON. Built before the fork, started after it."""

    def __init__(
        self,
        operations: Mapping[tuple[LoadedModel, Verb], Operation],
        *,
        batcher: Batcher,
        executor: Executor,
        cache: TieredCache,
        timeout: float,
    ) -> None:
        self._operations = operations
        self._batcher = batcher
        self._executor = executor
        self._cache = cache
        self._timeout = timeout
        self._prefixes: dict[Operation, bytes] = {}
        self._call_costs: dict[Operation, Cost] = {}

    def prepare(self) -> None:
        """Measure, and compute what is the same for every request."""
        for operation in self._operations.values():
            self._prefixes[operation] = _prefix(operation)
            self._call_costs[operation] = Cost()
            if operation.verb == "predict" or operation.model.explainer is not None:
                self._batcher.prepare(operation, measure_inline_rows(operation))

    async def answer(
        self,
        model: LoadedModel,
        verb: Verb,
        rows: Rows,
        *,
        timing: Timing,
        timeout: float | None = None,
        selection: Selection = EVERYTHING,
    ) -> list[Answer]:
        """One answer a row, as JSON, and where it is from.

        `timeout`, in seconds, may shorten the deadline, never lengthen it; `selection` is what explanations show.
        Raises DeadlineExceeded, Overloaded, ModelFailed, NotExplained, InvalidSelection, CallFailed, MemoryExceeded.
        """
        operation = self._operations[model, verb]
        keys = self._keys(operation, rows, selection)
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)

        async def compute(positions: list[int]) -> list[bytes]:
            asked = time.perf_counter()
            wanted = rows if len(positions) == len(rows) else rows[positions]
            if verb == "predict":
                ran = await self._batcher.run(operation, wanted, selection)
                answers, timing.model = ran.answers, ran.seconds
            else:
                answers = await self._explain(operation, wanted, selection, timing, seconds)
            timing.queue = time.perf_counter() - asked - timing.model
            return answers

        if self._cache.is_local and not operation.is_isolated and self._batcher.is_quick(operation, len(rows)):
            # answered within this turn of the loop or the next: a timer would cost more than it could save
            return await self._cache.get_or_compute(keys, compute)
        try:
            async with asyncio.timeout(seconds):
                return await self._cache.get_or_compute(keys, compute)
        except TimeoutError:
            raise _late(operation, seconds) from None

    async def answer_by_parts(
        self,
        model: LoadedModel,
        verb: Verb,
        rows: Rows,
        *,
        timeout: float | None = None,
        selection: Selection = EVERYTHING,
    ) -> AsyncGenerator[list[Answer], None]:
        """The same answers, those of some rows after the other: as many at once as leave others their turn.

        The deadline is that of the last part. Raises as `answer` does, before the first part or between two.
        """
        operation = self._operations[model, verb]
        keys = self._keys(operation, rows, selection)
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        deadline = asyncio.get_running_loop().time() + seconds
        timing, start = Timing(), 0
        while start < len(rows):
            end = start + self._rows_at_once(operation)
            compute = partial(self._compute_part, operation, rows[start:end], selection, timing, seconds)
            try:
                # not around the loop: between two parts it is the client's time that passes, in another task
                async with asyncio.timeout_at(deadline):
                    answers = await self._cache.get_or_compute(keys[start:end], compute)
            except TimeoutError:
                raise _late(operation, seconds) from None
            yield answers
            start = end

    async def _compute_part(
        self,
        operation: Operation,
        part: Rows,
        selection: Selection,
        timing: Timing,
        seconds: float,
        positions: list[int],
    ) -> list[bytes]:
        wanted, admitted = part[positions], timing.model > 0
        if operation.verb == "explain":
            return await self._explain(operation, wanted, selection, timing, seconds, admitted=admitted)
        ran = await self._batcher.run(operation, wanted, selection, admitted=admitted)
        timing.model += ran.seconds
        return ran.answers

    def _rows_at_once(self, operation: Operation) -> int:
        return self._rows_a_call(operation) if operation.is_isolated else self._batcher.part_rows(operation)

    def _keys(self, operation: Operation, rows: Rows, selection: Selection) -> list[bytes]:
        """A cache key for each row. Raises NotExplained, InvalidSelection."""
        model, prefix = operation.model, self._prefixes[operation]
        if operation.verb == "explain":
            _check_explained(model)
            selection.check(model.manifest.classes)
            prefix = key_prefix(prefix, msgspec.json.encode(selection))
        return row_keys(
            prefix,
            rows,
            merge_zeros=model.ignores_sign_of_zero,
            merge_nans=model.schema.takes_missing,
        )

    async def _explain(
        self,
        operation: Operation,
        rows: Rows,
        selection: Selection,
        timing: Timing,
        seconds: float,
        *,
        admitted: bool = False,
    ) -> list[bytes]:
        if operation.is_isolated:
            return await self._call(operation, rows, selection, timing, seconds)
        return await self._run_by_parts(operation, rows, selection, timing, admitted=admitted)

    async def _run_by_parts(
        self, operation: Operation, rows: Rows, selection: Selection, timing: Timing, *, admitted: bool
    ) -> list[bytes]:
        """Explanations take long: others have their turn in between, and a thread is not kept past the deadline."""
        answers: list[bytes] = []
        while len(answers) < len(rows):
            part = rows[len(answers) : len(answers) + self._batcher.part_rows(operation)]
            ran = await self._batcher.run(operation, part, selection, admitted=admitted or bool(answers))
            answers += ran.answers
            timing.model += ran.seconds
        return answers

    async def _call(
        self, operation: Operation, rows: Rows, selection: Selection, timing: Timing, seconds: float
    ) -> list[bytes]:
        """The same in a process that is killed at the deadline."""
        answers: list[bytes] = []
        while len(answers) < len(rows):
            part = rows[len(answers) : len(answers) + self._rows_a_call(operation)]
            started = time.perf_counter()
            result = await self._executor.run(operation.name, encode_rows(part, selection), timeout=seconds)
            took = time.perf_counter() - started
            self._call_costs[operation].learn(len(part), took)
            timing.model += took
            answers += map(bytes, msgspec.json.decode(result, type=list[msgspec.Raw]))
        return answers

    def _rows_a_call(self, operation: Operation) -> int:
        return self._call_costs[operation].part_rows(CALL_SECONDS, MAX_CALL_ROWS)


def _late(operation: Operation, seconds: float) -> DeadlineExceeded:
    log.warning(f"Prediction timeout after {seconds:g}s", operation=operation.name)
    return DeadlineExceeded(f"the request took longer than {seconds:g} s")


def _prefix(operation: Operation) -> bytes:
    model = operation.model
    parts = [operation.verb, ANSWER_FORMAT, "fallback" if model.fallback else "model", model.content_hash]
    if operation.verb == "explain" and model.explainer is not None:
        explainer = model.explainer
        parts += [type(explainer).__name__, explainer.method, explainer.space, str(explainer.evaluations)]
    return key_prefix(*parts)


def _check_explained(model: LoadedModel) -> None:
    if model.explainer is None:
        raise NotExplained(f"{model.name}/{model.version} has no explainer")
    if model.explainer.jobs_only:
        raise NotExplained(f"{model.name}/{model.version} takes too long to be explained within a request")
