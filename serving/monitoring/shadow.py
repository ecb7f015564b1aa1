"""A shadow: a version that predicts the rows of the live one on spare time, answers nobody, and is compared with it.

Context: a version may hang, crash or eat memory on real rows, and must not take time from requests. Decision: a worker
keeps some rows that were answered, and a process of low priority, which is killed when it takes too long, predicts
and compares them. Rows for which there is no room are dropped and counted, and all of them while requests wait.
Consequence: a request costs a few microseconds, and under load the shadow sees a part of the rows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, cast

import msgspec
import numpy as np

from registry.estimator import Outputs
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from registry.store.aliases import Shadow
from serving.errors import CallFailed, DeadlineExceeded, ExecutorGone, MemoryExceeded, Overloaded
from serving.jobs.rows import pack, unpack
from serving.monitoring.agreement import TOLERANCE, Agreement, Given, compare
from serving.predict.observer import Answered
from serving.process.executor import Executor, Function
from serving.shared.book import RETIRED_SLOT, Book, Cells, Family, SharedCounts

MAX_WAITING_ROWS = 512
"""Rows that a worker keeps for a shadow."""

CALL_ROWS = 64
"""Rows that are predicted at once."""

CALL_SECONDS = 10.0
"""A call that takes longer is killed, and its rows have failed."""

MAX_KINDS = 400
"""Kinds of changes that are counted apart: those among 20 classes."""

AGREED, DIFFERED, UNFIT, FAILED, DROPPED = OUTCOMES = ("agreed", "differed", "unfit", "failed", "dropped")
ROWS = Family(
    "shadow_rows", "counter", "Rows that the live version has answered, by what the shadow did", "outcome", OUTCOMES
)
SECONDS = Family(
    "shadow_model_seconds",
    "counter",
    "Time that each of the versions took for the rows that were compared",
    "by",
    ("shadow", "live"),
)
DIFFERENCE = Family("shadow_difference", "counter", "Sum of the differences of numbers, or of probabilities")


class ShadowCall(msgspec.Struct, frozen=True):
    """Rows of the live version as `pack` packs them, and its answers as a JSON array, or as float64 outputs."""

    rows: bytes
    answers: bytes
    are_outputs: bool


class ShadowFound(msgspec.Struct, frozen=True):
    """How far a shadow agrees on some rows, and the seconds that the live version needs for them."""

    agreement: Agreement
    live_seconds: float


class Largest(SharedCounts):
    """The largest number that any process has seen."""

    def see(self, number: float) -> None:
        self.cells[0] = max(self.cells[0], number)

    def total(self) -> Cells:
        """The largest of all processes."""
        return np.asarray(self._rows.max(axis=0))

    def retire(self, slot: int) -> None:
        """Keep the largest number of a process that has ended."""
        self._rows[RETIRED_SLOT] = np.maximum(self._rows[RETIRED_SLOT], self._rows[slot])
        self._rows[slot] = 0.0


def shadow_function(live: LoadedModel, candidate: LoadedModel) -> Function:
    """What an executor runs: a ShadowCall -> a ShadowFound, both as MessagePack."""

    def predict(payload: bytes) -> bytes:
        call = msgspec.msgpack.decode(payload, type=ShadowCall)
        rows = unpack(call.rows, live.schema)
        if call.are_outputs:
            answers = live.layout.present(np.frombuffer(call.answers, "<f8").reshape(len(rows), -1))
        else:
            answers = msgspec.json.decode(call.answers)
        given = [
            Given(live.schema.instance(row), answer, live.version, "", place)
            for place, (row, answer) in enumerate(zip(rows, answers, strict=True))
        ]
        started = time.perf_counter()
        live.predict(rows)
        live_seconds = time.perf_counter() - started
        return msgspec.msgpack.encode(ShadowFound(compare(candidate, given, TOLERANCE), live_seconds))

    return predict


@dataclass(frozen=True, slots=True)
class ShadowRows:
    """Rows that wait to be predicted, at most CALL_ROWS, and the live version's answers."""

    rows: Rows
    answers: Sequence[bytes] | Outputs


class ShadowCounts:
    """What is counted of a shadow, in all processes: from the beginning of the shadow, beside one live version."""

    def __init__(self, book: Book, state: Shadow, live: LoadedModel, candidate: LoadedModel) -> None:
        kinds = label_changes(live, candidate)
        self.changes = Family(
            "shadow_changes", "counter", "Rows of which the shadow says another label", "change", (*kinds, "other")
        )
        families = (ROWS, SECONDS, DIFFERENCE, self.changes)
        labels = {"model": live.name, "version": candidate.version, "live": live.version}
        self.sheet = book.sheet(families, since=state.since, **labels)
        key = ("largest difference", state.since, live.name, live.version, candidate.version)
        self.largest = book.counts(key, lambda slots: Largest(1, slots))
        self._places = {kind: index for index, kind in enumerate(self.changes.values, self.sheet.start(self.changes))}

    def count(self, outcome: str, rows: int) -> None:
        self.sheet.cells[OUTCOMES.index(outcome)] += rows  # it is the first family of the sheet

    def add(self, found: ShadowFound) -> None:
        """Count rows that were compared."""
        one, cells = found.agreement, self.sheet.cells
        self.count(AGREED, one.agreed)
        self.count(UNFIT, one.unfit)
        self.count(FAILED, one.failed)
        self.count(DIFFERED, one.rows - one.agreed - one.unfit - one.failed)
        cells[self.sheet.start(SECONDS)] += one.seconds
        cells[self.sheet.start(SECONDS) + 1] += found.live_seconds
        cells[self.sheet.start(DIFFERENCE)] += one.difference
        for change, count in one.changes:
            cells[self._places.get(kind_of(change.target, change.before, change.after), self._places["other"])] += count
        for largest in one.largest[:1]:
            self.largest.see(largest.difference)

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        (_, rows), (_, seconds), (_, (difference,)), (_, changes) = self.sheet.read().totals()
        counted = dict(zip(OUTCOMES, map(int, rows), strict=True))
        compared = counted[AGREED] + counted[DIFFERED]
        judged = compared + counted[UNFIT] + counted[FAILED]
        return {
            "rows": counted,
            "share": counted[AGREED] / judged if judged else None,
            "mean_difference": difference / compared if compared else None,
            "largest_difference": float(self.largest.total()[0]) if compared else None,
            "row_seconds": seconds[0] / compared if compared else None,
            "live_row_seconds": seconds[1] / judged if judged else None,
            "changes": {kind: int(count) for kind, count in zip(self.changes.values, changes, strict=True) if count},
        }


def kind_of(target: str, before: str, after: str) -> str:
    """One kind of change, as it is shown."""
    return f"{target}: {before} -> {after}" if target else f"{before} -> {after}"


def label_changes(live: LoadedModel, candidate: LoadedModel) -> tuple[str, ...]:
    """The kinds of changes that there can be between two versions; none if they are too many to be counted apart."""
    kinds: list[str] = []
    others = {target.name: target.classes for target in candidate.layout.targets}
    for target in live.layout.targets:
        labels = dict.fromkeys(map(str, (*target.classes, *others.get(target.name, ()))))
        if len(labels) ** 2 > MAX_KINDS:
            return ()
        kinds += [kind_of(target.name, before, after) for before, after in permutations(labels, 2)]
    return tuple(kinds) if len(kinds) <= MAX_KINDS else ()


@dataclass(eq=False)
class RunningShadow:
    """The shadow of one model, in one process."""

    name: str
    """Of its function in the executor."""
    candidate: LoadedModel
    counts: ShadowCounts
    waiting: deque[ShadowRows] = field(default_factory=deque)
    waiting_rows: int = 0
    """Those that are being predicted, too."""
    working: asyncio.Task[None] | None = None


class Shadows:
    """The shadows of all models; an Observer. Built before the fork; belongs to one event loop after it."""

    def __init__(self, registry: Registry, book: Book, *, memory: int, is_busy: Callable[[], bool]) -> None:
        """A call may allocate `memory` bytes; nothing is predicted while the process `is_busy`."""
        self._is_busy = is_busy
        self._running: dict[LoadedModel, RunningShadow] = {}
        functions: dict[str, Function] = {}
        for live in registry.live():
            state = registry.aliases(live.name).shadow
            if state is None or registry.versions(live.name)[state.version].fallback:
                continue
            candidate = registry.versions(live.name)[state.version]
            name = f"{live.name}/{candidate.version}:shadow"
            functions[name] = shadow_function(live, candidate)
            self._running[live] = RunningShadow(name, candidate, ShadowCounts(book, state, live, candidate))
        self.executor = Executor(functions, memory=memory, background=True)

    def __bool__(self) -> bool:
        return bool(self._running)

    def of(self, model: LoadedModel) -> RunningShadow | None:
        """The shadow of a live version."""
        return self._running.get(model)

    def observe(self, answered: Answered) -> None:
        """Keep rows that the live version has predicted, or count that there is no room."""
        running = self._running.get(answered.model)
        if running is None or answered.verb != "predict":
            return
        rows, answers = answered.rows, answered.answers
        taken = min(len(rows), MAX_WAITING_ROWS - running.waiting_rows)
        if taken < len(rows):
            running.counts.count(DROPPED, len(rows) - taken)
        for start in range(0, taken, CALL_ROWS):
            end = min(taken, start + CALL_ROWS)
            running.waiting.append(ShadowRows(rows[start:end], answers[start:end]))
        running.waiting_rows += taken
        if taken and running.working is None:
            running.working = asyncio.get_running_loop().create_task(self._work(running))

    async def _work(self, running: RunningShadow) -> None:
        """Predict what waits, some rows after the other, until nothing does."""
        try:
            while running.waiting:
                call, rows = _take(running.waiting)
                try:
                    await self._predict(running, call, rows)
                finally:
                    running.waiting_rows -= rows
        finally:
            running.working = None

    async def _predict(self, running: RunningShadow, call: ShadowCall, rows: int) -> None:
        if self._is_busy():
            running.counts.count(DROPPED, rows)
            return
        try:
            answer = await self.executor.run(running.name, msgspec.msgpack.encode(call), timeout=CALL_SECONDS)
        except (Overloaded, ExecutorGone):
            running.counts.count(DROPPED, rows)
        except (CallFailed, DeadlineExceeded, MemoryExceeded):
            running.counts.count(FAILED, rows)
        else:
            running.counts.add(msgspec.msgpack.decode(answer, type=ShadowFound))

    async def close(self) -> None:
        """Predict nothing any more."""
        working = [running.working for running in self._running.values() if running.working is not None]
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


def _take(waiting: deque[ShadowRows]) -> tuple[ShadowCall, int]:
    """A call with what waits, up to CALL_ROWS, and how many rows these are."""
    taken = [waiting.popleft()]
    rows = len(taken[0].rows)
    are_outputs = isinstance(taken[0].answers, np.ndarray)
    while waiting and rows + len(waiting[0].rows) <= CALL_ROWS:
        if isinstance(waiting[0].answers, np.ndarray) != are_outputs:
            break
        taken.append(waiting.popleft())
        rows += len(taken[-1].rows)
    if are_outputs:
        answers = b"".join(np.asarray(one.answers, "<f8").tobytes() for one in taken)
    else:
        answers = b"[%b]" % b",".join(cast("bytes", answer) for one in taken for answer in one.answers)
    return ShadowCall(pack(np.concatenate([one.rows for one in taken])), answers, are_outputs), rows
