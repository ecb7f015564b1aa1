"""Jobs over rows: how the rows of one model version are kept, chunk by chunk, and what is to be done with them.

A chunk is kept as the bytes of its float64 rows, little endian, one row after the other: what was validated when the
job was sent in needs no second look, and a value keeps every bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np

from registry.errors import NotExplained
from registry.explain.explanation import OTHER, Selection
from registry.model import LoadedModel
from registry.rows.features import Rows
from serving.jobs.job import Job, JobRequest, content_key
from serving.predict.operation import VERBS, Verb

OPERATIONS = VERBS

SLOW_CHUNK_ROWS = 20
"""Of explainers that take seconds a row: little is done twice when a runner is replaced."""

MAX_ATTEMPTS = 5
"""Without a new chunk in between. Rows cannot kill a runner, only the process that is asked: a runner dies of others'
troubles, which may come three in a row."""


class RowParameters(msgspec.Struct, frozen=True):
    """What a job over rows is, besides its rows.

    The names are kept so that a result can be shown as a table when the version is no longer loaded.
    """

    content_hash: str
    rows: int
    chunk_rows: int
    features: tuple[str, ...]
    labels: tuple[str, ...]
    classes: str | tuple[str, ...]
    top: int | None

    def selection(self) -> Selection:
        """What an explanation shows."""
        return msgspec.convert({"classes": self.classes, "top": self.top}, Selection)

    def explained_columns(self) -> tuple[str, ...]:
        """The features, and what stands for those that are not shown."""
        return self.features if self.top is None else tuple(dict.fromkeys((*self.features, OTHER)))


def parameters_of(job: Job) -> RowParameters:
    """What the request said."""
    return msgspec.json.decode(job.parameters, type=RowParameters)


def chunk_rows(model: LoadedModel, verb: Verb, most: int) -> int:
    """How many rows are one chunk of a job."""
    slow = verb == "explain" and model.explainer is not None and model.explainer.jobs_only
    return min(most, SLOW_CHUNK_ROWS) if slow else most


def check_explained(model: LoadedModel, verb: Verb, selection: Selection) -> None:
    """Raises NotExplained, InvalidSelection. Explainers that are too slow for a request are welcome here."""
    if verb == "explain":
        if model.explainer is None:
            raise NotExplained(f"{model.name}/{model.version} has no explainer")
        selection.check(model.manifest.classes)


def pack(rows: Rows) -> bytes:
    """Rows of shape (rows, features) as they are kept."""
    return np.ascontiguousarray(rows, "<f8").tobytes()


def unpack(data: bytes, features: int) -> Rows:
    """The rows of a chunk, shape (rows, features). Raises ValueError if they are not of so many features."""
    return np.frombuffer(data, "<f8").reshape(-1, features)


def row_job(
    model: LoadedModel, verb: Verb, chunks: Sequence[bytes], *, rows: int, size: int, selection: Selection, key: str
) -> JobRequest:
    """The request for a job over `rows` rows in chunks of `size`; `key` is the client's idempotency key, or empty.

    Takes a while for many rows: all of them are hashed.
    """
    parameters = msgspec.json.encode(
        RowParameters(
            content_hash=model.content_hash.hex(),
            rows=rows,
            chunk_rows=size,
            features=model.schema.names,
            labels=tuple(model.manifest.classes),
            classes=selection.classes,
            top=selection.top,
        )
    )
    return JobRequest(
        operation=verb,
        model=model.name,
        version=model.version,
        parameters=parameters,
        inputs=chunks,
        max_attempts=MAX_ATTEMPTS,
        unique_key=content_key(verb, model.content_hash.hex(), parameters, chunks),
        # hashed, so that whatever a client sends is short and printable
        idempotency_key=hashlib.sha256(key.encode()).hexdigest() if key else "",
    )
