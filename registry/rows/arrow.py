"""Rows from Arrow record batches, column by column, of Parquet files and Arrow streams; importing this imports pyarrow.

Numbers and times are converted and checked as whole columns. What is found wrong there, and every other kind of
feature, goes value by value through the encoder that JSON and CSV use, each distinct value of a category once. So the
reasons are the same, and the code for whole columns does not repeat them.

What is read may be hostile. Nothing here trusts an offset or a length that pyarrow has not checked; memory and time are
bounded by the process around it.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from registry.errors import Fault, InvalidRows
from registry.imports import show_arrow
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema
from registry.rows.times import FIRST_TIME, LAST_TIME, show_time, step_of

show_arrow()
import pyarrow as pa
import pyarrow.parquet as pq

pa.set_memory_pool(pa.system_memory_pool())  # gives memory back, and obeys the limit of the process
pa.set_cpu_count(1)
pa.set_io_thread_count(1)

Format = Literal["parquet", "arrow"]

BATCH_CELLS = 1 << 17
"""Cells of a batch: 1 MB of float64, and more while it is converted."""

MAX_BATCH_ROWS = 1 << 16

MAX_NAME_BYTES = 1 << 20
MAX_LIST_ITEMS = 1 << 20
"""Bytes of a text, and items of a list, in the metadata of a Parquet file, which is read before anything else."""

INDEX = "__index_level_"
"""The beginning of the names of columns in which pandas keeps an index."""

UNITS = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1}
"""Microseconds of a unit; nanoseconds are divided first."""

AFTER_LAST_TIME = "2256-01-01"


class NotATable(Exception):
    """The bytes are no valid file or stream of their format."""


def read_batches(file: pa.NativeFile, kind: Format, columns: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches of a file with about so many columns. Raises NotATable, also while they are read."""
    rows = max(1, min(MAX_BATCH_ROWS, BATCH_CELLS // max(1, columns)))
    with _refusing():
        if kind == "arrow":
            stream = pa.ipc.open_stream(file)
            return stream.schema, _checked(iter(stream), rows)
        # buffered: a column is read page by page, not whole
        parquet = pq.ParquetFile(
            file,
            buffer_size=1 << 16,
            pre_buffer=False,
            thrift_string_size_limit=MAX_NAME_BYTES,
            thrift_container_size_limit=MAX_LIST_ITEMS,
        )
        return parquet.schema_arrow, _checked(parquet.iter_batches(rows, use_threads=False), rows)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise NotATable for what pyarrow raises about damaged bytes."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise NotATable(str(error)) from None


def _checked(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of at most so many rows, whose offsets, indices and texts are valid."""
    while True:
        with _refusing():
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


class ColumnReader:
    """Makes rows of batches whose columns are a model's features, in any order."""

    def __init__(self, schema: Schema, columns: pa.Schema) -> None:
        """Raises InvalidRows if a feature is missing, a column is none, or comes twice."""
        self._schema = schema
        given = Counter(columns.names)
        ignored = {name for name in given if name.startswith(INDEX) and name not in schema.names}
        faults = schema.misnamed(0, {name: None for name in given if name not in ignored})
        faults += [Fault(0, name, "is there twice") for name in schema.names if given[name] > 1]
        if faults:
            raise InvalidRows(faults[: InvalidRows.LIMIT])
        self._features = [(columns.get_field_index(feature.name), feature) for feature in schema.features]

    def rows(self, batch: pa.RecordBatch, first: int) -> Rows:
        """Rows of shape (rows, features); the first is instance `first`. Raises InvalidRows."""
        rows = np.empty((batch.num_rows, len(self._features)), self._schema.dtype)
        faults: list[Fault] = []
        for position, (index, feature) in enumerate(self._features):
            cells, wrong = column_cells(batch.column(index), feature)
            rows[:, position] = cells
            faults += [Fault(first + place, feature.name, reason) for place, reason in wrong]
        if faults:
            order = {name: place for place, name in enumerate(self._schema.names)}
            faults.sort(key=lambda fault: (fault.instance, order[fault.feature or ""]))
            raise InvalidRows(faults[: InvalidRows.LIMIT])
        return rows


Wrong = list[tuple[int, str]]
"""Places of values that do not fit, at most InvalidRows.LIMIT, with the reasons."""


def column_cells(column: pa.Array, feature: Feature) -> tuple[Any, Wrong]:
    """The cells of a column, shape (rows,), and what is wrong with it."""
    if pa.types.is_dictionary(column.type) and not _is_coded(column.type.value_type):
        column = column.dictionary_decode()
    kind = column.type
    if feature.kind in ("number", "integer") and _is_number(kind):
        return _numbers(column.cast(pa.float64(), safe=False), feature)
    if feature.kind == "datetime" and _is_time(kind):
        return _times(column, feature)
    if not (_is_coded(kind) or pa.types.is_null(kind) or _is_number(kind)):
        # also where the feature is a category of numbers: times have no form of their own in JSON
        return math.nan, [(0, "has a type of columns that is not taken")]
    return _texts(column, feature) if feature.kind == "text" else _by_value(column, feature)


def _is_coded(kind: pa.DataType) -> bool:
    """True for texts, booleans and dictionaries of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_boolean(kind)
    )


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _missing(column: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return found


def _numbers(column: pa.Array, feature: Feature) -> tuple[Any, Wrong]:
    """A missing value is null, or NaN where the feature may be missing, as numpy's libraries write it."""
    cells = column.to_numpy(zero_copy_only=False)
    is_missing = np.isnan(cells) if feature.nullable else _missing(column) if column.null_count else None
    low = -math.inf if feature.minimum is None else feature.minimum
    high = math.inf if feature.maximum is None else feature.maximum
    fits = np.isfinite(cells) & (cells >= low) & (cells <= high)
    if feature.kind == "integer":
        with np.errstate(invalid="ignore"):
            fits &= cells % 1 == 0
    if feature.nullable and is_missing is not None:
        fits |= is_missing
    if fits.all():
        return cells, []
    is_null = _missing(column)

    def shown(place: int) -> Any:
        return None if is_null[place] else float(cells[place])

    return cells, _reasons(np.flatnonzero(~fits), shown, feature)


def _times(column: pa.Array, feature: Feature) -> tuple[Any, Wrong]:
    """Times without a zone are in UTC; what is finer than a microsecond is cut off, as in texts."""
    is_missing = _missing(column)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False)
    whole = column.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
    unit = column.type.unit
    first, last = (int(time.timestamp()) * 10**6 for time in (FIRST_TIME, LAST_TIME))
    step = UNITS[unit]
    micros = whole // 1000 if unit == "ns" else whole
    in_range = (micros >= first // step) & (micros < last // step)
    cells = np.where(in_range, micros, 0) * step
    fits = in_range & (cells % step_of(feature.format) == 0)
    fits = np.where(is_missing, feature.nullable, fits)
    values = np.where(is_missing, np.nan, cells.astype(np.float64))
    if fits.all():
        return values, []

    def shown(place: int) -> Any:
        if is_missing[place]:
            return None
        return show_time(values[place]) if in_range[place] else AFTER_LAST_TIME

    return values, _reasons(np.flatnonzero(~fits), shown, feature)


def _texts(column: pa.Array, feature: Feature) -> tuple[Any, Wrong]:
    values, encode, wrong = column.to_pylist(), feature.encoder(), []
    for place, value in enumerate(values):
        try:
            encode(value)
        except ValueError as error:
            wrong.append((place, str(error)))
            if len(wrong) == InvalidRows.LIMIT:
                break
    cells = np.empty(len(values), object)
    cells[:] = values
    return cells, wrong


def _by_value(column: pa.Array, feature: Feature) -> tuple[Any, Wrong]:
    """Cells of few distinct values, each of which is encoded once."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.indices.cast(pa.int64(), safe=False).fill_null(-1).to_numpy(zero_copy_only=False)
    used = np.unique(codes)
    encode = feature.encoder()
    cells: dict[int, float] = {}
    reasons: dict[int, str] = {}
    for code in used.tolist():
        value = None if code < 0 else column.dictionary[code].as_py()
        if feature.nullable and isinstance(value, float) and math.isnan(value):
            value = None
        try:
            cells[code] = encode(value)
        except ValueError as error:
            reasons[code] = str(error)
    table = np.array([cells.get(code, math.nan) for code in used.tolist()], np.float64)
    found = table[np.searchsorted(used, codes)]
    if not reasons:
        return found, []
    places = np.flatnonzero(np.isin(codes, list(reasons)))[: InvalidRows.LIMIT]
    return found, [(int(place), reasons[int(codes[place])]) for place in places]


def _reasons(places: NDArray[np.intp], value_at: Callable[[int], Any], feature: Feature) -> Wrong:
    """What the encoder of JSON values says about those at some places."""
    encode, wrong = feature.encoder(), []
    for place in places[: InvalidRows.LIMIT].tolist():
        try:
            encode(value_at(place))
        except ValueError as error:
            wrong.append((place, str(error)))
    return wrong


def open_file(descriptor: int) -> pa.NativeFile:
    """A file of this process to read from, mapped into memory, so that what is not compressed is not copied."""
    if not os.fstat(descriptor).st_size:
        return pa.BufferReader(b"")
    return pa.memory_map(f"/dev/fd/{descriptor}")


class TableWriter:
    """Writes a table of flat columns, whose types are those of the first values; a context manager."""

    def __init__(self, file: IO[bytes], kind: Format, names: Sequence[str], group_rows: int) -> None:
        """A row group of a Parquet file has `group_rows`, or some more."""
        self._file = file
        self._kind = kind
        self._names = names
        self._group_rows = group_rows
        self._writer: Any = None
        self._waiting: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, columns: Sequence[Sequence[Any]]) -> None:
        """Add lines, at least one, as columns of JSON values."""
        if self._writer is None:
            self._begin(columns)
        arrays = [_array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._waiting.append(pa.record_batch(arrays, schema=self._schema))
        if sum(batch.num_rows for batch in self._waiting) >= self._group_rows:
            self._flush()

    def _begin(self, columns: Sequence[Sequence[Any]]) -> None:
        self._schema = pa.schema(list(zip(self._names, map(_type_of, columns), strict=True)))
        self._writer = (
            pa.ipc.new_stream(self._file, self._schema)
            if self._kind == "arrow"
            else pq.ParquetWriter(self._file, self._schema)
        )

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting))
            self._waiting = []


def _type_of(values: Sequence[Any]) -> pa.DataType:
    """The type of a column of JSON values; text if they are of several, such as labels "a" and 1."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        values = [value if value is None or isinstance(value, str) else str(value) for value in values]
    return pa.array(values, kind)
