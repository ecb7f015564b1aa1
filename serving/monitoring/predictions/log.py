"""The log of predictions in the processes that answer: notes each answer in a ring, from which a recorder stores it.

Context: a row and its answer as JSON take 20 us to make, and the store may be slow. Decision: a worker copies the bytes
that it has, numbers as they are in memory, into its ring (`serving.shared.ring`); the recorder, a process of low
priority, makes rows of the log of them. Consequence: some microseconds a request; a ring that is full costs the rows,
which are counted, and nobody's time. A worker that is killed loses what it has answered in one turn of its event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from struct import Struct
from time import time_ns
from typing import Any

import msgspec
import numpy as np

from registry.model import LoadedModel
from registry.outputs import Layout
from registry.rows.features import Rows
from registry.rows.schema import Schema
from serving.monitoring.predictions.policy import LogPolicy
from serving.monitoring.predictions.store import LoggedPrediction, make_id
from serving.predict.observer import Answered
from serving.predict.operation import VERBS
from serving.shared.book import Book
from serving.shared.metrics import LOGGED, PREDICTION_LOG, SOURCES
from serving.shared.ring import RingRecord, Rings
from serving.shared.turn import Turn
from serving.telemetry.logs import CURRENT_KEY, CURRENT_REQUEST

HEAD = Struct("<HBBIHIQf")
"""Of a record: place in `described`, verb, form, rows, bytes of names and of the rows, microseconds, milliseconds."""

OBJECTS, OUTPUTS = 1, 2
"""Bits of the form: the rows are objects, the answers are the model's outputs; else float64, and lines of JSON."""

FLOAT = np.dtype(np.float64)
QUEUED, DROPPED = LOGGED.index("queued"), LOGGED.index("dropped")

SOURCE_BYTES = {source: bytes([index]) for index, source in enumerate(SOURCES)}
VERB_INDEX = {verb: index for index, verb in enumerate(VERBS)}


@dataclass(frozen=True, eq=False, slots=True)
class Described:
    """What is needed of a version to read its rows and outputs; kept for as long as there may be records of it."""

    name: str
    version: str
    schema: Schema
    layout: Layout
    instance: Callable[[Sequence[Any]], dict[str, Any]]
    """The instance of a row, as `Schema.instance`; of numbers alone it is made at once."""

    @classmethod
    def of(cls, model: LoadedModel) -> Described:
        """What is needed of a model."""
        schema = model.schema
        is_plain = all(feature.kind == "number" for feature in schema.features)
        instance = partial(_numbers, schema.names) if is_plain else schema.instance
        return cls(model.name, model.version, schema, model.layout, instance)


def _numbers(names: Sequence[str], row: Sequence[float]) -> dict[str, Any]:
    """The instance of a row of numbers."""
    instance: dict[str, Any] = dict(zip(names, row, strict=True))
    if math.isnan(sum(row)):
        return {name: None if math.isnan(cell) else cell for name, cell in instance.items()}
    return instance


class PredictionLog:
    """Everything of the log that outlives reloads. To be made before the fork."""

    def __init__(self, policy: LogPolicy, book: Book) -> None:
        self.policy = policy
        self.rings: Rings = book.rings()
        self.described: list[Described] = []
        self.sheet = book.sheet(PREDICTION_LOG)
        self._places: dict[tuple[str, str, bytes], int] = {}

    def place(self, model: LoadedModel) -> int:
        """The place of a version in `described`; in the master, before the fork."""
        key = (model.name, model.version, model.content_hash)
        if key not in self._places:
            self._places[key] = len(self.described)
            self.described.append(Described.of(model))
        return self._places[key]

    def count(self, what: str, rows: int) -> None:
        """Count rows, in the process that has them."""
        self.sheet.cells[LOGGED.index(what)] += rows

    def waiting(self) -> list[int]:
        """How far each ring is written; what is stored then is all that has been answered until now."""
        return [ring.head for ring in self.rings.all]

    def has_stored(self, heads: Sequence[int]) -> bool:
        """Whether all that was `waiting` then is stored."""
        return all(ring.tail >= head for ring, head in zip(self.rings.all, heads, strict=True))


class PredictionLogger:
    """Notes the answers of one app; an Observer."""

    def __init__(self, log: PredictionLog, models: Iterable[LoadedModel]) -> None:
        self._policy = log.policy
        self._logs_all = log.policy.share >= 1.0
        self._rings = log.rings
        self._sheet = log.sheet
        self._turn: Turn[tuple[str, str, int, Answered]] = Turn(self._copy)
        self._places = {model: log.place(model) for model in models}

    def observe(self, answered: Answered) -> None:
        """Note an answer; those of one turn of the event loop are copied together, as they are sent together.

        One by one they would cost three times as much: the processor would have other code at hand for each.
        """
        request_id = CURRENT_REQUEST.get("")
        if self._rings.own is None or not (self._logs_all or self._policy.logs(request_id)):
            return
        self._turn.add((request_id, CURRENT_KEY.get(""), time_ns(), answered))

    def _copy(self, noted: list[tuple[str, str, int, Answered]]) -> None:
        """Copy what is noted into the ring of this process, or count that it is full."""
        ring, cells = self._rings.own, self._sheet.cells
        assert ring is not None
        for request_id, key, time, answered in noted:
            is_queued = ring.put(self._pack(request_id, key, time, answered))
            cells[QUEUED if is_queued else DROPPED] += len(answered.sources)

    def _pack(self, request_id: str, key: str, time: int, answered: Answered) -> bytes:
        rows, answers, sources = answered.rows, answered.answers, answered.sources
        count = len(sources)
        form, content = (0, rows.tobytes()) if rows.dtype is FLOAT else _pack_rows(rows)
        if isinstance(answers, np.ndarray):
            form |= OUTPUTS
            answer = np.asarray(answers, FLOAT).tobytes()
        else:
            answer = answers[0] if count == 1 else b"\n".join(answers)
        origin = SOURCE_BYTES[sources[0]] if count == 1 else b"".join([SOURCE_BYTES[source] for source in sources])
        names = f"{request_id}\0{key}\0{answered.entity}".encode()
        head = HEAD.pack(
            self._places[answered.model],
            VERB_INDEX[answered.verb],
            form,
            count,
            len(names),
            len(content),
            time // 1000,
            answered.seconds * 1e3,
        )
        return head + names + origin + content + answer


def _pack_rows(rows: Rows) -> tuple[int, bytes]:
    if rows.dtype == object:
        return OBJECTS, msgspec.msgpack.encode(rows.tolist())
    return 0, np.asarray(rows, FLOAT).tobytes()


def read_record(record: RingRecord, described: Sequence[Described], redacted: frozenset[str]) -> list[LoggedPrediction]:
    """The rows of a record, without the `redacted` columns. Raises IndexError for a version that is not described."""
    place, verb, form, rows, name_bytes, row_bytes, microseconds, milliseconds = HEAD.unpack_from(record.content)
    model = described[place]
    rest = memoryview(record.content)[HEAD.size :]
    names, rest = bytes(rest[:name_bytes]).decode(), rest[name_bytes:]
    sources, rest = rest[:rows], rest[rows:]
    request_id, key, entity = names.split("\0")
    answers = _read_answers(rest[row_bytes:], model, is_outputs=bool(form & OUTPUTS))
    hidden = redacted.intersection(model.schema.names)
    if hidden and VERBS[verb] == "explain":
        answers = [None] * rows  # what a column contributes tells of its value, and the others tell of what is missing
    moment = datetime.fromtimestamp(microseconds // 1000 / 1e3, UTC)
    return [
        LoggedPrediction(
            id=make_id(microseconds, record.ring, record.position, index),
            time=moment,
            request_id=request_id,
            place=index,
            key=key,
            model=model.name,
            version=model.version,
            verb=VERBS[verb],
            row={name: value for name, value in instance.items() if name not in hidden} if hidden else instance,
            answer=answer,
            source=SOURCES[source],
            milliseconds=round(milliseconds, 3),
            entity=entity,
        )
        for index, (instance, answer, source) in enumerate(
            zip(map(model.instance, _read_rows(rest[:row_bytes], rows, form)), answers, sources, strict=True)
        )
    ]


def _read_rows(content: memoryview, rows: int, form: int) -> list[list[Any]]:
    if form & OBJECTS:
        cells: list[list[Any]] = msgspec.msgpack.decode(content)
        return cells
    return np.frombuffer(content, FLOAT).reshape(rows, -1).tolist()


def _read_answers(content: memoryview, model: Described, *, is_outputs: bool) -> list[Any]:
    if is_outputs:
        outputs = np.frombuffer(content, FLOAT).reshape(-1, model.layout.width)
        return model.layout.present(outputs)
    return [msgspec.Raw(line) for line in bytes(content).split(b"\n")]  # a store writes it as it is
