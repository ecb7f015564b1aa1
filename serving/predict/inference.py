"""The way of a request through the hot path: find in the cache, join the flights of equal rows, run the rest, keep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

import msgspec
import numpy as np
import structlog

from cache.flight import Answer, Flight, Flights, Source
from cache.keys import key_prefix, row_keys
from cache.tiered import TieredCache
from registry.errors import Fault, ModelFailed, NotExplained, ResultNotFinite
from registry.estimator import Outputs
from registry.explain.explanation import Selection
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from serving.errors import CallFailed, DeadlineExceeded
from serving.predict.batcher import Batcher
from serving.predict.cost import Cost, measure_inline_rows
from serving.predict.operation import EVERYTHING, Operation, Verb, encode_rows, make_operations
from serving.process.executor import Executor

log = structlog.get_logger(__name__)

_decode = msgspec.json.Decoder().decode

ANSWER_FORMAT = "2"
"""Part of every key: to be changed with the form of an answer, because caches outlive a deploy."""

MEASURED_ROWS, MEASURED_SECONDS = 32, 1.0
"""Rows from which the cost of a row is measured, unless they would take longer than this."""

CALL_SECONDS = 0.1
"""Seconds that one call to an executor should take: requests take turns, and exceed a deadline by little."""

MAX_CALL_ROWS = 100

QUICK_ROWS = 64
"""Rows within a millisecond from which a row costs no more than its place in the cache, some 10 us with JSON."""

FEW_ROWS = 16
"""So many rows are looked up in the cache whatever the model: what one protocol has asked is there for the others."""


@dataclass(slots=True)
class Timing:
    """The parts of one request's time, in seconds."""

    queue: float = 0.0
    model: float = 0.0

    def header(self, started: float, decoded: float, ended: float) -> bytes:
        """Server-Timing, in milliseconds; the rest of the total was spent on the cache."""
        decode, total = (decoded - started) * 1e3, (ended - started) * 1e3
        queue, model = self.queue * 1e3, self.model * 1e3
        return b"decode;dur=%.3f, cache;dur=%.3f, queue;dur=%.3f, model;dur=%.3f, total;dur=%.3f" % (
            decode,
            total - decode - queue - model,
            queue,
            model,
            total,
        )


@dataclass(frozen=True, eq=False, slots=True)
class _Lane:
    """An operation, and the values that all requests for it share."""

    operation: Operation
    key_prefix: bytes
    batcher: Batcher
    call_cost: Cost = field(default_factory=Cost)

    def keys(self, rows: Rows, selection: Selection) -> list[bytes]:
        """One key of the cache per row. Raises InvalidSelection."""
        model, prefix = self.operation.model, self.key_prefix
        if self.operation.verb == "explain":
            prefix = key_prefix(prefix, msgspec.json.encode(selection))
        elif selection.coverage is not None:
            model.bound(selection.coverage)
            prefix = key_prefix(prefix, msgspec.json.encode(selection))
        return row_keys(prefix, rows, merge_zeros=model.ignores_sign_of_zero, merge_nans=model.schema.takes_missing)


@dataclass(eq=False, slots=True)
class _Request:
    """Never changed after it is built; `frozen` would cost a microsecond."""

    lane: _Lane
    rows: Rows
    keys: Sequence[bytes]
    """The keys of the cache, one per row."""
    selection: Selection
    seconds: float
    """Until the deadline, from the start."""
    timing: Timing

    def part(self, start: int, end: int) -> _Request:
        return _Request(
            self.lane, self.rows[start:end], self.keys[start:end], self.selection, self.seconds, self.timing
        )

    def is_late(self) -> DeadlineExceeded:
        return _late(self.seconds, self.lane.operation)


class Inference:
    """Answers rows with ready JSON. Built before the fork, started after it."""

    def __init__(
        self,
        registry: Registry,
        *,
        batcher: Batcher,
        executor: Executor,
        cache: TieredCache,
        timeout: float,
        apart: Mapping[LoadedModel, Batcher] = MappingProxyType({}),
    ) -> None:
        """A request may take `timeout` seconds. `executor` can run all isolated operations, under their names.

        The models in `apart` have batchers of their own: one that hangs keeps no thread from the others.
        """
        self._registry = registry
        self._batchers = {model: apart.get(model, batcher) for model in registry}
        self._executor = executor
        self._cache = cache
        self._flights: Flights = {}
        self._timeout = timeout
        self._lanes: dict[tuple[LoadedModel, Verb, Space | None, bool], _Lane] = {}
        self._raw: dict[LoadedModel, Operation] = {}
        """The operations whose outputs are computed rather than looked up."""

    def prepare(self) -> None:
        """Measure the operations, and compute the values that all requests share."""
        for operation in make_operations(self._registry):
            asked = (operation.model, operation.verb, operation.space, operation.interactions)
            batcher = self._batchers[operation.model]
            self._lanes[asked] = _Lane(operation, _key_prefix(operation), batcher)
            if not operation.is_isolated:
                batcher.prepare(operation, measure_inline_rows(operation))
        for model in self._registry:
            raw = Operation(model, "predict", is_raw=True)
            inline_rows = measure_inline_rows(raw)
            if inline_rows >= QUICK_ROWS:
                self._batchers[model].prepare(raw, inline_rows)
                self._raw[model] = raw

    async def answer(
        self,
        model: LoadedModel,
        verb: Verb,
        rows: Rows,
        *,
        selection: Selection = EVERYTHING,
        timeout: float | None = None,
        timing: Timing | None = None,
    ) -> list[Answer]:
        """One answer a row, as JSON, and its source.

        `timeout`, in seconds, may shorten the deadline, never lengthen it; `selection` is what answers show.
        Raises DeadlineExceeded, Overloaded, ModelFailed, NotExplained, InvalidSelection, CallFailed, MemoryExceeded;
        ResultNotFinite names the instances.
        """
        lane = self._lane(model, verb, selection)
        keys = lane.keys(rows, selection)
        found = self._cache.find(keys)
        if None not in found:  # most requests end here: with neither timer nor flight
            self._cache.stats.hits_memory += len(found)
            return [(value, "hit-memory") for value in found if value is not None]
        request = _Request(lane, rows, keys, selection, self.seconds(timeout), timing or Timing())
        try:
            if self._is_immediate(request):
                return await self._answer(request, found)
            async with asyncio.timeout(request.seconds):
                return await self._answer(request, found)
        except TimeoutError:
            raise request.is_late() from None
        except (ModelFailed, CallFailed) as error:
            raise await _named(error, model, rows) from error.__cause__

    async def outputs(
        self,
        model: LoadedModel,
        rows: Rows,
        *,
        timeout: float | None = None,
        timing: Timing | None = None,
        look_up: bool = True,
    ) -> tuple[Outputs, list[Source]]:
        """The model's outputs for rows, shape (rows, width), and the source of each. Raises what `answer` raises.

        Context: the cache keeps predictions as JSON, so each row takes a key, a look-up, an entry, and JSON made and
        read. Of a compiled model that costs more than the row itself. Decision: many rows of a model of which
        QUICK_ROWS take less than a millisecond are computed, and neither looked up nor kept; few rows only without
        `look_up`. All others are answered by `answer`, which shares them with other protocols. Consequence: the same
        bits, either way.
        """
        raw = self._raw.get(model) if len(rows) > FEW_ROWS or not look_up else None
        if raw is None:
            answers = await self.answer(model, "predict", rows, timeout=timeout, timing=timing)
            shown = [_decode(value) for value, _ in answers]
            return model.layout.restore(shown), [source for _, source in answers]
        seconds, batcher = self.seconds(timeout), self._batchers[model]
        started = time.perf_counter()
        try:
            if batcher.is_quick(raw, rows):
                ran = await batcher.run(raw, rows, seconds=seconds)
            else:
                async with asyncio.timeout(seconds):
                    ran = await batcher.run(raw, rows, seconds=seconds)
        except TimeoutError:
            raise _late(seconds, raw) from None
        except ModelFailed as error:
            raise await _named(error, model, rows) from error.__cause__
        if timing is not None:
            timing.model += ran.seconds
            timing.queue += time.perf_counter() - started - ran.seconds
        return cast("Outputs", ran.answers), ["miss"] * len(rows)

    async def answer_by_parts(
        self,
        model: LoadedModel,
        verb: Verb,
        rows: Rows,
        *,
        selection: Selection = EVERYTHING,
        timeout: float | None = None,
    ) -> AsyncGenerator[list[Answer], None]:
        """Like `answer`, some rows after the other: as many at once as leave other requests their turn.

        The deadline is that of the last part. An error may be raised before the first part or between two.
        """
        lane = self._lane(model, verb, selection)
        request = _Request(lane, rows, lane.keys(rows, selection), selection, self.seconds(timeout), Timing())
        deadline = asyncio.get_running_loop().time() + request.seconds
        start = 0
        while start < len(rows):
            end = start + self._part_rows(request)
            part = request.part(start, end)
            try:
                # not around the loop: between two parts it is the client's time that passes, in another task
                async with asyncio.timeout_at(deadline):
                    answers = await self._answer(part, self._cache.find(part.keys))
            except TimeoutError:
                raise request.is_late() from None
            except (ModelFailed, CallFailed) as error:
                raise await _named(error, model, part.rows, start) from error.__cause__
            yield answers
            start = end

    async def measure(self, model: LoadedModel, verb: Verb, rows: Rows, *, selection: Selection = EVERYTHING) -> float:
        """Seconds that the model takes for a row: that of a few of these, which are neither looked up nor kept.

        Raises what `answer` raises.
        """
        lane = self._lane(model, verb, selection)
        each = 0.0
        for count in (1, MEASURED_ROWS):
            request = _Request(lane, rows[:count], [], selection, self._timeout, Timing())
            try:
                async with asyncio.timeout(request.seconds):
                    await self._run(request, request.rows)
            except TimeoutError:
                raise request.is_late() from None
            each = request.timing.model / len(request.rows)
            if each * MEASURED_ROWS > MEASURED_SECONDS:
                break
        return each

    def _lane(self, model: LoadedModel, verb: Verb, selection: Selection) -> _Lane:
        """Raises NotExplained, InvalidSelection."""
        if verb == "predict":
            return self._lanes[model, verb, None, False]
        return self._lanes[model, verb, _space(model, selection), selection.interactions]

    def seconds(self, timeout: float | None) -> float:
        """Until the deadline of a request that asks for `timeout`, if for any."""
        return self._timeout if timeout is None else min(timeout, self._timeout)

    def _is_immediate(self, request: _Request) -> bool:
        """True if it is answered in this turn of the loop or the next: a timer would cost more than it could save."""
        operation = request.lane.operation
        if operation.is_isolated or not self._cache.is_local:
            return False
        return request.lane.batcher.is_quick(operation, request.rows)

    async def _answer(self, request: _Request, found: Sequence[bytes | None]) -> list[Answer]:
        """Take the values found in memory, follow other requests that are making the same rows, make the rest."""
        keys = request.keys
        places: dict[bytes, int] = {}
        for place, (key, value) in enumerate(zip(keys, found, strict=True)):
            if value is None:
                places.setdefault(key, place)
        made: dict[bytes, Answer] = {}
        missing = list(places)
        while missing:
            with Flight(self._flights, missing) as flight:
                if flight.led:
                    flight.answers = await self._make(request, flight.led, places)
            made.update(flight.answers)
            missing = await flight.follow(made) if flight.followed else []
        answers: list[Answer] = []
        for place, (key, value) in enumerate(zip(keys, found, strict=True)):
            if value is not None:
                answers.append((value, "hit-memory"))
            else:
                answers.append(made[key] if places[key] == place else (made[key][0], "coalesced"))
        self._cache.count(answers)
        return answers

    async def _make(self, request: _Request, keys: list[bytes], places: dict[bytes, int]) -> dict[bytes, Answer]:
        """Find the rows of these keys in Redis, run the model on the others, and keep what it answers."""
        answers = {} if self._cache.is_local else await self._cache.find_remotely(keys)
        unknown = [key for key in keys if key not in answers] if answers else keys
        if unknown:
            rows = request.rows
            if len(unknown) < len(rows):
                rows = rows[[places[key] for key in unknown]]
            computed = dict(zip(unknown, await self._run(request, rows), strict=True))
            self._cache.keep(computed)
            for key, value in computed.items():
                answers[key] = (value, "miss")
        return answers

    async def _run(self, request: _Request, rows: Rows) -> list[bytes]:
        """Run the model: predictions at once, explanations in parts, so that others have their turn in between."""
        started, timing = time.perf_counter(), request.timing
        model_before = timing.model
        operation = request.lane.operation
        if operation.verb == "predict":
            answers = await self._run_part(request, rows)
        else:
            answers = []
            while len(answers) < len(rows):
                part = rows[len(answers) : len(answers) + self._part_rows(request)]
                answers += await (self._call if operation.is_isolated else self._run_part)(request, part)
        timing.queue += time.perf_counter() - started - (timing.model - model_before)
        return answers

    def _part_rows(self, request: _Request) -> int:
        operation = request.lane.operation
        if operation.is_isolated:
            return request.lane.call_cost.part_rows(CALL_SECONDS, MAX_CALL_ROWS)
        return request.lane.batcher.part_rows(operation)

    async def _run_part(self, request: _Request, rows: Rows) -> list[bytes]:
        admitted = request.timing.model > 0
        ran = await request.lane.batcher.run(
            request.lane.operation, rows, request.selection, admitted=admitted, seconds=request.seconds
        )
        request.timing.model += ran.seconds
        return cast("list[bytes]", ran.answers)

    async def _call(self, request: _Request, rows: Rows) -> list[bytes]:
        """Run the model in a process that is killed at the deadline."""
        started = time.perf_counter()
        payload = encode_rows(rows, request.selection)
        result = await self._executor.run(request.lane.operation.name, payload, timeout=request.seconds)
        seconds = time.perf_counter() - started
        request.lane.call_cost.learn(len(rows), seconds)
        request.timing.model += seconds
        return [bytes(answer) for answer in msgspec.json.decode(result, type=list[msgspec.Raw])]


async def _named(error: ModelFailed | CallFailed, model: LoadedModel, rows: Rows, first: int = 0) -> Exception:
    """The error to raise, which names the instances without a finite result; the first of `rows` is instance `first`.

    They are looked for once more: the error may be of other rows in the same batch, process or flight.
    """
    if ResultNotFinite.REASON not in str(error):
        return error
    try:
        outputs = await asyncio.to_thread(model.compute, rows)
    except Exception:  # noqa: BLE001 - foreign code, which may break on what it has just answered
        return error
    places = np.flatnonzero(~np.isfinite(outputs).reshape(len(rows), -1).all(axis=1))
    log.warning("Result is not finite", model=model.name, version=model.version, instances=len(places))
    reason = f"the result of {model.name} is not a finite number"
    return ResultNotFinite(model.name, [Fault(first + int(place), None, reason) for place in places])


def _late(seconds: float, operation: Operation) -> DeadlineExceeded:
    """Log that the deadline has passed; the error to raise."""
    log.warning(f"Prediction timeout after {seconds:g}s", operation=operation.name)
    return DeadlineExceeded(f"the request took longer than {seconds:g} s")


def _key_prefix(operation: Operation) -> bytes:
    model = operation.model
    parts = [operation.verb, ANSWER_FORMAT, "fallback" if model.fallback else "model", model.content_hash]
    explainer = operation.explainer
    if explainer is not None:
        parts += [type(explainer).__name__, explainer.method, explainer.space, str(explainer.evaluations)]
    return key_prefix(*parts)


def _space(model: LoadedModel, selection: Selection) -> Space | None:
    """The space of an operation that explains. Raises NotExplained, InvalidSelection."""
    explainer = model.explainer_for(selection)
    if explainer.jobs_only:
        raise NotExplained(
            f"{model.name}/{model.version} takes too long to be explained within a request; send it as a job: "
            'POST /v1/jobs {"operation": "explain", "model": ..., "instances": [...]}'
        )
    return None if explainer is model.explainer else explainer.space
