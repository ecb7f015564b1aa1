"""Parquet files and Arrow streams in and out: read and written in a process apart, which can be killed.

Context: a file of some kilobytes can ask for gigabytes and hours, or crash the library that reads it; and that library
takes as much memory as a worker. Decision: a worker hands two files to a process of its executor, which reads the one
and writes the other. Consequence: whatever a file holds, it happens to that process, which has a limit of memory and a
deadline; no other process imports pyarrow, and that one ends when it was idle for a minute; and however many rows there
are, the worker has only those in memory that it looks at.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from tempfile import TemporaryFile
from typing import IO, Literal

import msgspec
import numpy as np
import structlog

from registry.errors import Fault, InvalidRows
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from serving.errors import BodyTooLarge, CallFailed, DeadlineExceeded, NotJSON, TooManyInstances
from serving.jobs.chunks import Chunks
from serving.jobs.results import table
from serving.jobs.rows import RowParameters, pack
from serving.process.executor import Executor, Tool

log = structlog.get_logger(__name__)

Format = Literal["parquet", "arrow"]

FORMATS: Mapping[bytes, Format] = {
    b"application/vnd.apache.parquet": "parquet",
    b"application/vnd.apache.arrow.stream": "arrow",
}
"""By media type."""

READ, WRITE = "table:read", "table:write"
"""The names of the tools."""

NAMES: Mapping[Format, str] = {"parquet": "Parquet file", "arrow": "Arrow stream"}

READ_SECONDS = 60.0
"""Time to read one body; a million rows of thirty features take some seconds."""

WRITE_SECONDS = 300.0
"""Time to write one result, which is read from the store of jobs meanwhile."""

GROUP_ROWS = 1 << 16
"""Rows in a row group of a Parquet file that is written."""

MAX_REASON_CHARACTERS = 200

NOT_INSTALLED = "this service takes no Parquet and no Arrow: it needs `pip install 'forkserve[arrow]'`"


class RowFile(msgspec.Struct, frozen=True):
    """What is to be read, and how it is to be written: chunks of packed rows, one after the other."""

    model: str
    version: str
    format: Format
    chunk_rows: int
    max_rows: int
    max_bytes: int


class RowsRead(msgspec.Struct, frozen=True):
    """What was read; or what is wrong, if there is a problem or a fault."""

    rows: int = 0
    sizes: tuple[int, ...] = ()
    """Bytes of each chunk."""
    problem: Literal["", "damaged", "rows", "bytes"] = ""
    faults: tuple[Fault, ...] = ()


class AnswerFile(msgspec.Struct, frozen=True):
    """What is to be written: answers of an operation, JSON with commas between them, in pieces of these sizes."""

    operation: str
    parameters: RowParameters
    format: Format
    sizes: tuple[int, ...]


class TableTools:
    """The functions of the process apart; each reads its first file and writes its second one."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def tools(self) -> Mapping[str, Tool]:
        """By name, for an Executor."""
        return {READ: self.read, WRITE: self.write}

    def read(self, payload: bytes, files: Sequence[int]) -> bytes:
        """Read a RowFile; return a RowsRead."""
        from registry.rows.arrow import NotATable

        source = msgspec.msgpack.decode(payload, type=RowFile)
        with open(files[1], "wb", closefd=False) as target:
            try:
                reading = self._read(source, files[0], target)
            except NotATable as error:
                log.info("Table refused", format=source.format, reason=str(error)[:MAX_REASON_CHARACTERS])
                reading = RowsRead(problem="damaged")
            except InvalidRows as error:
                reading = RowsRead(faults=error.faults)
        return msgspec.msgpack.encode(reading)

    def _read(self, source: RowFile, file: int, target: IO[bytes]) -> RowsRead:
        from registry.rows.arrow import ColumnReader, open_file, read_batches

        schema = self._registry.get(source.model, source.version).schema
        columns, batches = read_batches(open_file(file), source.format, len(schema))
        reader, count, size = ColumnReader(schema, columns), 0, 0
        sizes: list[int] = []
        rest: Rows = np.empty((0, len(schema)), schema.dtype)
        for batch in batches:
            if count + batch.num_rows > source.max_rows:
                return RowsRead(problem="rows")
            rest = np.concatenate([rest, reader.rows(batch, count)])
            count += batch.num_rows
            while len(rest) >= source.chunk_rows:
                sizes.append(target.write(pack(rest[: source.chunk_rows])))
                rest = rest[source.chunk_rows :]
                size += sizes[-1]
                if size > source.max_bytes:
                    return RowsRead(problem="bytes")
        if len(rest):
            sizes.append(target.write(pack(rest)))
        return RowsRead(count, tuple(sizes))

    def write(self, payload: bytes, files: Sequence[int]) -> bytes:
        """Write a AnswerFile."""
        from registry.rows.arrow import TableWriter

        target = msgspec.msgpack.decode(payload, type=AnswerFile)
        names, columns_of = table(target.operation, target.parameters)
        instances = 0
        with (
            open(files[0], "rb", closefd=False) as source,
            open(files[1], "wb", closefd=False) as file,
            TableWriter(file, target.format, names, GROUP_ROWS) as writer,
        ):
            for size in target.sizes:
                answers = msgspec.json.decode(b"[%b]" % source.read(size))
                writer.write(columns_of(answers, instances))
                instances += len(answers)
        return b""


class Tables:
    """Reads bodies and writes answers with TableTools, which `executor` has as tools."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def read(
        self,
        model: LoadedModel,
        kind: Format,
        file: IO[bytes],
        *,
        too_many: str,
        max_rows: int,
        chunk_rows: int,
        max_bytes: int = sys.maxsize,
    ) -> Chunks:
        """The rows of a file, packed, so many in each chunk but the last.

        Raises NotJSON, InvalidRows, TooManyInstances (with `too_many`), BodyTooLarge, MemoryExceeded, Overloaded,
        ExecutorGone.
        """
        source = RowFile(model.name, model.version, kind, chunk_rows, max_rows, max_bytes)
        chunks = Chunks()
        file.seek(0)
        try:
            payload = msgspec.msgpack.encode(source)
            answer = await self._executor.run(READ, payload, timeout=READ_SECONDS, files=(file, chunks.rewound()))
        except DeadlineExceeded:
            raise BodyTooLarge(f"the {NAMES[kind]} takes more than {READ_SECONDS:g} s to read; send less") from None
        except CallFailed as error:
            log.warning("Table crashed its reader", format=kind, error=str(error))
            raise NotJSON(f"the body cannot be read as {NAMES[kind]}") from None
        reading = msgspec.msgpack.decode(answer, type=RowsRead)
        if reading.problem == "damaged":
            raise NotJSON(f"the body is not a valid {NAMES[kind]}")
        if reading.problem:
            raise TooManyInstances(too_many)
        if reading.faults or not reading.rows:
            raise InvalidRows(reading.faults or [Fault(0, None, "there must be at least one instance")])
        chunks.were_written(reading.sizes, reading.rows)
        return chunks

    async def write(self, operation: str, parameters: RowParameters, kind: Format, answers: Chunks) -> IO[bytes]:
        """A file with answers, JSON with commas between them, as a table.

        Raises DeadlineExceeded, CallFailed, MemoryExceeded, Overloaded, ExecutorGone.
        """
        file = TemporaryFile()  # noqa: SIM115 - closed by the caller
        payload = msgspec.msgpack.encode(AnswerFile(operation, parameters, kind, answers.sizes))
        try:
            await self._executor.run(WRITE, payload, timeout=WRITE_SECONDS, files=(answers.rewound(), file))
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file
