"""Reads the request for a job over rows: one JSON body, or a CSV that is read while it arrives."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from registry.errors import Fault, InvalidRows
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.decoding import InstanceDecoder
from registry.rows.features import Rows
from serving.errors import InvalidRequest, NotJSON, TooManyInstances
from serving.jobs.csv_reader import TableReader
from serving.jobs.job import JobRequest
from serving.jobs.rows import check_explained, chunk_rows, pack, row_job
from serving.predict.operation import EVERYTHING, Verb
from serving.predict.request_body import Parameters, decode

USAGE = 'send an object: {"operation": "predict" or "explain", "model": "...", "instances": [...]}'

INSTANCES_AT_ONCE = 200
"""Decoded without a pause: about a millisecond, and others have their turn."""

KEY = re.compile(r"[!-~]{1,255}")


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for a job; its instances are looked at some at a time."""

    operation: Verb
    model: str
    instances: list[msgspec.Raw]
    version: str | None = None
    parameters: Parameters = Parameters()


class JobQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The same, without the instances, for a CSV."""

    operation: Verb
    model: str
    version: str | None = None
    classes: str | tuple[str, ...] = "predicted"
    top: int | None = None


_body = msgspec.json.Decoder(JobBody)
_any = msgspec.json.Decoder()


class JobReader:
    """Makes JobRequests of what clients send."""

    def __init__(self, registry: Registry, *, max_rows: int, chunk_rows: int) -> None:
        """A job may have `max_rows` rows, and is worked on `chunk_rows` at a time."""
        self._registry = registry
        self._max_rows = max_rows
        self._chunk_rows = chunk_rows

    async def read_json(self, body: bytes, key: str) -> JobRequest:
        """`key` is the client's idempotency key, or empty.

        Raises NotJSON, InvalidRequest, InvalidRows, TooManyInstances, ModelNotFound, VersionNotFound, NotExplained,
        InvalidSelection.
        """
        asked = decode(_body, body, USAGE)
        job = self._job(asked.operation, asked.model, asked.version, asked.parameters)
        if len(asked.instances) > self._max_rows:
            raise TooManyInstances(f"a job may have {self._max_rows} rows; send more as several jobs")
        slices = _Slices(job.model)
        for first in range(0, len(asked.instances), INSTANCES_AT_ONCE):
            job.add(slices.rows(asked.instances[first : first + INSTANCES_AT_ONCE], first))
            await asyncio.sleep(0)
        if not asked.instances:
            raise InvalidRows([Fault(0, None, "there must be at least one instance")])
        return await job.request(key)

    async def read_csv(self, query: dict[str, Any], pieces: AsyncIterator[bytes], key: str) -> JobRequest:
        """The same of a CSV."""
        try:
            asked = msgspec.convert(query, JobQuery, strict=False)
        except msgspec.ValidationError:
            raise InvalidRequest("say ?operation=predict or explain, &model=, and no more than the API knows") from None
        job = self._job(asked.operation, asked.model, asked.version, Parameters(asked.classes, asked.top))
        table = TableReader(job.model, self._max_rows)
        async for piece in pieces:
            job.add(table.feed(piece))
            await asyncio.sleep(0)
        job.add(table.end())
        return await job.request(key)

    async def take(self, model: LoadedModel, verb: Verb, rows: Rows, selection: Selection) -> JobRequest:
        """The same of rows that were read for something else. Raises NotExplained, InvalidSelection."""
        check_explained(model, verb, selection)
        job = _Job(model, verb, selection, chunk_rows(model, verb, self._chunk_rows))
        job.add(rows)
        return await job.request("")

    def _job(self, verb: Verb, name: str, version: str | None, parameters: Parameters) -> _Job:
        model = self._registry.get(name, version)
        selection = parameters.selection() if verb == "explain" else EVERYTHING
        check_explained(model, verb, selection)
        return _Job(model, verb, selection, chunk_rows(model, verb, self._chunk_rows))


def idempotency_key(header: str | None) -> str:
    """The key that a client has given, empty for none. Raises NotJSON."""
    if header is not None and not KEY.fullmatch(header):
        raise NotJSON("Idempotency-Key is 1 to 255 printable characters without spaces")
    return header or ""


class _Job:
    """A job whose rows are being read."""

    def __init__(self, model: LoadedModel, verb: Verb, selection: Any, size: int) -> None:
        self.model = model
        self._verb = verb
        self._selection = selection
        self._row_bytes = 8 * len(model.schema)
        self._size = size
        self._chunks: list[bytes] = []
        self._rest = b""
        self._rows = 0

    def add(self, rows: Rows | None) -> None:
        if rows is None:
            return
        self._rows += len(rows)
        self._rest += pack(rows)
        most = self._size * self._row_bytes
        while len(self._rest) >= most:
            self._chunks.append(self._rest[:most])
            self._rest = self._rest[most:]

    async def request(self, key: str) -> JobRequest:
        """On a thread: hashing megabytes takes its time, and lets others run."""
        chunks = [*self._chunks, self._rest] if self._rest else self._chunks
        return await asyncio.to_thread(
            row_job,
            self.model,
            self._verb,
            chunks,
            rows=self._rows,
            size=self._size,
            selection=self._selection,
            key=key,
        )


class _Slices:
    """Some instances at a time become rows; quickly if all is well, as in `reading.Reader`."""

    def __init__(self, model: LoadedModel) -> None:
        self._schema = model.schema
        self._quick: InstanceDecoder | None = None
        if InstanceDecoder.fits(model.manifest.features):
            self._quick = InstanceDecoder(model.manifest.features)
            self._decode = msgspec.json.Decoder(list[self._quick.type]).decode  # type: ignore[name-defined]

    def rows(self, raws: Sequence[msgspec.Raw], first: int) -> Rows:
        """Raises NotJSON, InvalidRows; the first of these is instance `first` of the job."""
        body = b"[" + b",".join([bytes(raw) for raw in raws]) + b"]"
        if self._quick is not None:
            try:
                rows = self._quick.rows(self._decode(body))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                rows = None
            if rows is not None:
                return rows
        try:
            return self._schema.rows(decode(_any, body, USAGE))
        except InvalidRows as error:
            faults = [Fault(first + fault.instance, fault.feature, fault.reason) for fault in error.faults]
            raise type(error)(faults) from None
