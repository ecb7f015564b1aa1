"""The log of predictions in the processes that answer: notes each answer in a ring, from which a recorder stores it.

Context: a row and its answer as JSON take 20 us to make, and the store may be slow. Decision: a worker copies the bytes
that it has, numbers as they are in memory, into its ring (`serving.shared.ring`); the recorder, a process of low
priority, makes rows of the log of them. Consequence: some microseconds a request; a ring that is full costs the rows,
which are counted, and nobody's time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from struct import Struct
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
from serving.telemetry.logs import CURRENT_KEY, CURRENT_REQUEST

HEAD = Struct("<HBBIHIQf")
"""Of a record: place in `described`, verb, form, rows, bytes of names and of the rows, microseconds, milliseconds."""

OBJECTS, OUTPUTS = 1, 2
"""Bits of the form: the rows are objects, the answers are the model's outputs; else float64, and lines of JSON."""

SOURCE_BYTES = {source: bytes([index]) for index, source in enumerate(SOURCES)}
VERB_INDEX = {verb: index for index, verb in enumerate(VERBS)}

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, eq=False, slots=True)
class Described:
    """What is needed of a version to read its rows and outputs; kept for as long as there may be records of it."""

    name: str
    version: str
    schema: Schema
    layout: Layout


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
            self.described.append(Described(model.name, model.version, model.schema, model.layout))
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
        self._log = log
        self._policy = log.policy
        self._rings = log.rings
        self._places = {model: log.place(model) for model in models}

    def observe(self, answered: Answered) -> None:
        """Copy an answer into the ring of this process, or count that it is full."""
        request_id = CURRENT_REQUEST.get("")
        if not self._policy.logs(request_id):
            return
        ring, rows = self._rings.own, answered.rows
        if ring is None:
            return
        form, content = _pack_rows(rows)
        answers, sources = answered.answers, answered.sources
        if isinstance(answers, np.ndarray):
            form |= OUTPUTS
            answer = np.asarray(answers, "<f8").tobytes()
        else:
            answer = answers[0] if len(answers) == 1 else b"\n".join(answers)
        first = SOURCE_BYTES[sources[0]]
        origin = first if len(sources) == 1 else b"".join([SOURCE_BYTES[source] for source in sources])
        names = f"{request_id}\0{CURRENT_KEY.get('')}\0{answered.entity}".encode()
        head = HEAD.pack(
            self._places[answered.model],
            VERB_INDEX[answered.verb],
            form,
            len(rows),
            len(names),
            len(content),
            time.time_ns() // 1000,
            answered.seconds * 1e3,
        )
        self._log.count(
            "queued" if ring.put(b"".join((head, names, origin, content, answer))) else "dropped", len(rows)
        )


def _pack_rows(rows: Rows) -> tuple[int, bytes]:
    if rows.dtype == object:
        return OBJECTS, msgspec.msgpack.encode(rows.tolist())
    return 0, np.asarray(rows, "<f8").tobytes()


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
            zip(_read_rows(rest[:row_bytes], rows, model.schema, form), answers, sources, strict=True)
        )
    ]


def _read_rows(content: memoryview, rows: int, schema: Schema, form: int) -> list[dict[str, Any]]:
    if form & OBJECTS:
        cells = msgspec.msgpack.decode(content)
    else:
        cells = np.frombuffer(content, "<f8").reshape(rows, -1).tolist()
    return [schema.instance(row) for row in cells]


def _read_answers(content: memoryview, model: Described, *, is_outputs: bool) -> list[Any]:
    if is_outputs:
        outputs = np.frombuffer(content, "<f8").reshape(-1, model.layout.width)
        return model.layout.present(outputs)
    return [_decode(line) for line in bytes(content).split(b"\n")]
