"""Turns what clients send into jobs over rows: JSON, a CSV that is read while it arrives, a table, a late request."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from tempfile import TemporaryFile
from typing import IO, Any, Literal

import msgspec
import numpy as np
import structlog

from registry.errors import InvalidSelection
from registry.explain.explanation import Selection
from registry.explain.importance import of_all_classes
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from registry.outputs import Label
from registry.registry import Registry
from registry.rows.features import Rows
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotJSON,
    QueueFull,
    StoreUnavailable,
    TooManyInstances,
    UnsupportedBody,
)
from serving.jobs.chunks import Chunks
from serving.jobs.csv_reader import FeatureReader
from serving.jobs.job import Job, JobRequest, content_key
from serving.jobs.rows import IMPORTANCE, OPERATIONS, describe_rows, pack
from serving.jobs.store import JobStore
from serving.jobs.tables import NOT_INSTALLED, Format, Tables
from serving.predict.json_body import decode, explain_misfit
from serving.predict.operation import Verb, answer_bytes
from serving.predict.pieces import Turns
from serving.predict.request_body import Parameters, Reader, read_parameters

log = structlog.get_logger(__name__)

USAGE = 'send an object: {"operation": "predict", "explain" or "importance", "model": "...", "instances": [...]}'

QUERY_USAGE = "use ?operation=predict, explain or importance, &model=, and no unknown parameters"

TOO_MANY = "a job may have {} rows; send more as several jobs"

TOO_MANY_OR_LARGE = "a job may have {} rows, of {} with 8 bytes a number; send more as several jobs"

CSV_BYTES_AT_ONCE = 2048
"""Bytes of a CSV read without looking at the clock: at most 1,000 rows, and some milliseconds."""

MAX_CHUNK_RESULT_BYTES = 8 * 1024 * 1024
"""Bytes of the answers to one chunk, which a runner holds in memory several times."""

QUICK_CHUNK_ROWS = 10_000
"""Rows in a chunk of a table where the model is compiled: less than a second of work."""

MAX_INPUT_BYTES = 256 * 1024 * 1024
"""Bytes of the rows of a job, unless a setting says otherwise."""

MAX_RESULT_BYTES = 1024 * 1024 * 1024
"""Bytes of all answers of a job, which are kept in the store of jobs."""

SLOW_CHUNK_ROWS = 20
"""Rows in a chunk where an explainer takes seconds a row, so that little is lost when a runner is replaced."""

MAX_ATTEMPTS = 5
"""Attempts without a new chunk. Rows cannot kill a runner, only its executor process: a runner dies for other reasons,
and may do so several times in a row."""

KEY = re.compile(r"[!-~]{1,255}")


RowOperation = Literal["predict", "explain", "importance"]


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of a request for a job; its instances are decoded some at a time."""

    operation: RowOperation
    model: str
    instances: msgspec.Raw
    version: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"null")


class JobQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The query string of a request whose body is a CSV."""

    operation: RowOperation
    model: str
    version: str | None = None
    classes: str | tuple[Label, ...] = "predicted"
    top: int | None = None
    space: Space | None = None
    coverage: float | None = None
    interactions: bool = False


_body = msgspec.json.Decoder(JobBody)

CheckModel = Callable[[str], None]
"""Raises if the client may not use a model of that name, whether there is one or not."""


def any_model(_name: str) -> None:
    """Lets a client use every model."""


class JobReader:
    """Makes JobRequests of what clients send."""

    def __init__(
        self,
        registry: Registry,
        *,
        max_rows: int,
        chunk_rows: int,
        max_bytes: int = MAX_INPUT_BYTES,
        max_result_bytes: int = MAX_RESULT_BYTES,
        tables: Tables | None = None,
    ) -> None:
        """A job may have `max_rows` rows of `max_bytes`, and answers of `max_result_bytes`.

        A runner works on `chunk_rows` rows at a time. Without `tables` no Parquet and no Arrow is read.
        """
        self._tables = tables
        self._registry = registry
        self._max_rows = max_rows
        self._chunk_rows = chunk_rows
        self._max_bytes = max_bytes
        self._max_result_bytes = min(max_result_bytes, MAX_RESULT_BYTES)
        self._readers = {model: Reader(model, max_rows, TOO_MANY) for model in registry}

    async def read_json(
        self, body: bytes, key: str, turns: Turns | None = None, check: CheckModel = any_model
    ) -> JobRequest:
        """The job of a JSON body; `key` is the client's idempotency key, or empty; `check` refuses a model's name.

        Raises NotJSON, InvalidRequest, InvalidRows, TooManyInstances, ModelNotFound, VersionNotFound, NotExplained,
        InvalidSelection, and what `turns` raise.
        """
        asked = decode(_body, body, USAGE)
        parameters = read_parameters(asked.parameters)
        draft = self._draft(check, asked.operation, asked.model, asked.version, parameters)
        async for rows in self._readers[draft.model].read_array(asked.instances, turns or Turns()):
            draft.add(rows)
        return await draft.request(key)

    async def read_csv(
        self, query: dict[str, Any], pieces: AsyncIterator[bytes], key: str, check: CheckModel = any_model
    ) -> JobRequest:
        """The job of a CSV that arrives in pieces. Raises what `read_json` raises, but for NotJSON and InvalidRows."""
        draft = self._draft_of_query(query, check)
        reader = FeatureReader(draft.model, self._max_rows)
        turns = Turns()
        async for piece in pieces:
            for start in range(0, len(piece), CSV_BYTES_AT_ONCE):
                draft.add(reader.feed(piece[start : start + CSV_BYTES_AT_ONCE]))
                await turns.pause()
        draft.add(reader.end())
        return await draft.request(key)

    async def read_table(
        self, query: dict[str, Any], kind: Format, pieces: AsyncIterator[bytes], key: str, check: CheckModel = any_model
    ) -> JobRequest:
        """The job of a Parquet file or an Arrow stream that arrives in pieces.

        Raises what `read_csv` raises, and UnsupportedBody, NotJSON, InvalidRows, BodyTooLarge, MemoryExceeded,
        Overloaded, ExecutorGone.
        """
        if self._tables is None:
            raise UnsupportedBody(NOT_INSTALLED)
        draft = self._draft_of_query(query, check)
        with TemporaryFile() as file:
            async for piece in pieces:
                file.write(piece)
            file.flush()
            await draft.take_table(self._tables, kind, file, self._max_rows)
        return await draft.request(key)

    def _draft_of_query(self, query: dict[str, Any], check: CheckModel) -> _Draft:
        try:
            asked = msgspec.convert(query, JobQuery, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidRequest(explain_misfit(str(error), JobQuery, QUERY_USAGE)) from None
        parameters = Parameters(asked.classes, asked.top, asked.space, asked.coverage, asked.interactions)
        return self._draft(check, asked.operation, asked.model, asked.version, parameters)

    def _draft(
        self, check: CheckModel, operation: RowOperation, name: str, version: str | None, parameters: Parameters
    ) -> _Draft:
        check(name)
        model = self._registry.get(name, version)
        selection = parameters.selection(OPERATIONS[operation], model)
        if operation == IMPORTANCE and selection.interactions:
            raise InvalidSelection("interactions are a parameter of explanations")
        return _Draft(model, operation, selection, self._chunk_rows, self._max_bytes, self._max_result_bytes)


def megabytes(number: int) -> str:
    """A number of bytes as messages say it."""
    return f"{number >> 20} MB" if number >> 20 else f"{number} bytes"


def idempotency_key(header: str | None) -> str:
    """The client's key, empty if it gave none. Raises NotJSON."""
    if header is not None and not KEY.fullmatch(header):
        raise NotJSON("Idempotency-Key is 1 to 255 printable characters without spaces")
    return header or ""


class _Draft:
    """A job whose rows are being read."""

    def __init__(
        self,
        model: LoadedModel,
        operation: RowOperation,
        selection: Selection,
        most: int,
        max_bytes: int = MAX_INPUT_BYTES,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        """A chunk has `most` rows, or fewer where an explainer is slow. Raises NotExplained, InvalidSelection."""
        self.model = model
        self._operation = operation
        verb = OPERATIONS[operation]
        self._selection = selection
        self._size = most
        if selection.coverage is not None:
            model.bound(selection.coverage)
        if verb == "explain" and model.explainer_for(selection).jobs_only:
            self._size = min(most, SLOW_CHUNK_ROWS)
        shown = of_all_classes(selection) if operation == IMPORTANCE else selection
        self._answer_bytes = answer_bytes(model, verb, shown)
        self._size = max(1, min(self._size, MAX_CHUNK_RESULT_BYTES // self._answer_bytes))
        self._max_bytes = max_bytes
        self._max_result_bytes = max_result_bytes
        self._bytes = 0
        self._chunks = Chunks()
        self._rest: Rows = np.empty((0, len(model.schema)), model.schema.dtype)
        """Rows that do not fill a chunk."""
        self._rows = 0

    async def take_table(self, tables: Tables, kind: Format, file: IO[bytes], max_rows: int) -> None:
        """Take all rows from a file, in larger chunks where rows are quick: each costs a runner some milliseconds.

        Raises what `Tables.read` raises.
        """
        if self._operation == "predict" and self.model.compiled:
            self._size = max(self._size, min(QUICK_CHUNK_ROWS, MAX_CHUNK_RESULT_BYTES // self._answer_bytes))
        self._chunks = await tables.read(
            self.model,
            kind,
            file,
            too_many=TOO_MANY_OR_LARGE.format(max_rows, megabytes(self._max_bytes)),
            max_rows=max_rows,
            chunk_rows=self._size,
            max_bytes=self._max_bytes,
        )
        self._count(self._chunks.rows)

    def _count(self, rows: int) -> None:
        """Raises TooManyInstances."""
        self._rows += rows
        if self._rows * self._answer_bytes > self._max_result_bytes:
            most = megabytes(self._max_result_bytes)
            raise TooManyInstances(f"the result would have more than {most}; send several jobs")

    def add(self, rows: Rows | None) -> None:
        if rows is None:
            return
        self._count(len(rows))
        self._rest = np.concatenate([self._rest, rows])
        while len(self._rest) >= self._size:
            self._keep(self._rest[: self._size])
            self._rest = self._rest[self._size :]

    def _keep(self, rows: Rows) -> None:
        """Raises TooManyInstances."""
        packed = pack(rows)
        self._chunks.append(packed)
        self._bytes += len(packed)
        if self._bytes > self._max_bytes:
            most = megabytes(self._max_bytes)
            raise TooManyInstances(f"the rows of a job may take {most}, 8 bytes a number; send several jobs")

    async def request(self, key: str) -> JobRequest:
        """Made on a thread, because hashing megabytes takes a while and releases the GIL."""
        return await asyncio.to_thread(self._request, key)

    def _request(self, key: str) -> JobRequest:
        if len(self._rest):
            self._keep(self._rest)
        model, chunks = self.model, self._chunks
        parameters = msgspec.json.encode(describe_rows(model, self._selection, self._rows, self._size))
        return JobRequest(
            operation=self._operation,
            model=model.name,
            version=model.version,
            parameters=parameters,
            inputs=chunks,
            max_attempts=MAX_ATTEMPTS,
            unique_key=content_key(self._operation, model.content_hash.hex(), parameters, chunks),
            # hashed, so that a client's key becomes short and printable
            idempotency_key=hashlib.sha256(key.encode()).hexdigest() if key else "",
        )


class Background:
    """Turns requests that take too long into jobs: the same rows, the same answer, fetched later.

    Context: a request that reaches its deadline has cost its worker a whole deadline, and its client has nothing.
    Decision: with USE_BACKGROUND_INFERENCE its rows become a job, and the client gets its URL. Consequence: the job
    starts anew, in a runner, with the longer limits of jobs; equal requests share one job for as long as it is kept,
    done or not; where the queue is full, the request is answered as it would have been without.
    """

    def __init__(self, store: JobStore, *, chunk_rows: int) -> None:
        self._store = store
        self._chunk_rows = chunk_rows

    async def submit(
        self, model: LoadedModel, verb: Verb, rows: Rows, selection: Selection, client: str, account: str
    ) -> Job:
        """The client's job for these rows, done or not. Raises QueueFull, StoreUnavailable, InvalidSelection."""
        draft = _Draft(model, verb, selection, self._chunk_rows)
        draft.add(rows)
        request = (await draft.request("")).of(client, account)
        # with a space, so that no client can have taken it
        key = hashlib.sha256(f"background {request.unique_key}".encode()).hexdigest()
        job = await self._store.submit(dataclasses.replace(request, idempotency_key=key))
        if job.state in ("failed", "cancelled"):
            # that was then; an equal job that waits or runs is still found
            job = await self._store.submit(request)
        log.info(f"{verb} of {model.name} continues as a job", version=model.version, rows=len(rows), job=job.id)
        return job

    async def take_over(
        self,
        late: DeadlineExceeded,
        model: LoadedModel,
        verb: Verb,
        rows: Rows,
        selection: Selection,
        client: str,
        account: str,
    ) -> Job:
        """The job for a request whose deadline has passed. Raises `late` if it cannot be submitted."""
        try:
            return await self.submit(model, verb, rows, selection, client, account)
        except (QueueFull, StoreUnavailable) as error:
            log.warning("Late request not queued as a job", reason=str(error))
            raise late from None
