"""Reads CSV while it arrives and names the line of whatever is wrong: for jobs, imported records and feeds."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from registry.model import LoadedModel
from registry.rows.features import Feature, Rows
from serving.errors import InvalidRequest, TooManyInstances

MAX_ROW_BYTES = 64 * 1024
MAX_TRIES = 16
"""How often the beginning of a row may be parsed in vain; two are usual, and each looks at the whole row again."""

TOO_MANY = "a job may have {} rows; send more as several"

BOM = b"\xef\xbb\xbf"
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Cell = Callable[[str], Any]

Header = Literal["present", "absent", "guess"]
"""Whether the first row names the features; a guess takes it for a header if it names any."""


class CsvReader:
    """Splits the bytes of one CSV in UTF-8, fed in pieces of any size, into rows of cells; the first is the header.

    A quoted field may hold line ends. One empty line is allowed at the end, any number anywhere if `skip_empty`.
    """

    def __init__(self, *, max_row_bytes: int = MAX_ROW_BYTES, skip_empty: bool = False) -> None:
        self.line = 0
        """The line on which the latest row begins; 0 before the first row."""
        self._max_row_bytes = max_row_bytes
        csv.field_size_limit(max(csv.field_size_limit(), max_row_bytes))  # of a module, for all readers
        self._skip_empty = skip_empty
        self._lines_read = 0
        self._empty_line = 0
        self._row: list[bytes] = []
        """The lines of a row that is not complete."""
        self._row_bytes = 0
        self._tries = 0
        self._rest = b""

    def rows(self, pieces: Iterable[bytes]) -> Iterator[list[str]]:
        """All rows of a whole document. Raises InvalidRequest."""
        for piece in pieces:
            yield from self.feed(piece)
        yield from self.end()

    def feed(self, data: bytes) -> Iterator[list[str]]:
        """The rows that are complete now. Raises InvalidRequest."""
        if not self._lines_read and not self._rest:
            data = data.removeprefix(BOM)  # spreadsheets write one
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield from self._read(line)
        if self._row_bytes + len(self._rest) > self._max_row_bytes:
            self.line = self.line if self._row else self._lines_read + 1
            raise self.error("is too long")

    def end(self) -> Iterator[list[str]]:
        """The last row, if no line end follows it. Raises InvalidRequest."""
        if self._rest:
            yield from self._read(self._rest)
        if self._row:
            raise self.error("is not CSV: a quote is not closed")

    def error(self, reason: str) -> InvalidRequest:
        """The error to raise about the latest row."""
        return InvalidRequest(f"line {max(self.line, 1)}: {reason}")

    def _read(self, line: bytes) -> Iterator[list[str]]:
        self._lines_read += 1
        in_quotes = bool(self._row)
        if not in_quotes:
            if line in (b"", b"\r"):
                self._pass_empty_line()
                return
            self.line = self._lines_read
        self._row.append(line)
        self._row_bytes += len(line) + 1
        if self._row_bytes > self._max_row_bytes + 1:
            raise self.error("is too long")
        if in_quotes and line.count(b'"') % 2 == 0:
            return  # the quoted field goes on, so there is nothing to parse yet
        cells = self._cells()
        if cells is None:
            return
        self._row, self._row_bytes, self._tries = [], 0, 0
        if self._empty_line:
            self.line = self._empty_line
            raise self.error("is empty")
        yield cells

    def _pass_empty_line(self) -> None:
        if self._skip_empty:
            return
        if self._empty_line:
            self.line = self._empty_line
            raise self.error("is empty")
        self._empty_line = self._lines_read

    def _cells(self) -> list[str] | None:
        """The cells of the row so far; None while a quoted field is open."""
        row = b"\n".join(self._row).removesuffix(b"\r")
        if b"\0" in row:
            raise self.error("has a NUL byte")
        try:
            return next(csv.reader([row.decode()], strict=True), [])
        except UnicodeDecodeError:
            raise self.error("is not UTF-8") from None
        except csv.Error as error:
            self._tries += 1
            if "unexpected end of data" in str(error) and self._tries <= MAX_TRIES:
                return None
            raise self.error("is not CSV; a quote within quotes is doubled") from None


class FeatureReader:
    """Reads rows of a model from a CSV whose header names its features, in any order, or which has them in theirs.

    An empty cell is a missing value, and so is NaN among numbers. These have a decimal point and no separators;
    booleans are true, false, 1 or 0.
    """

    def __init__(
        self, model: LoadedModel, max_rows: int, *, header: Header = "present", too_many: str = TOO_MANY
    ) -> None:
        """`too_many` is the message for more than `max_rows`."""
        schema = model.schema
        self._features = {feature.name: (index, _cell(feature)) for index, feature in enumerate(schema.features)}
        self._dtype = schema.dtype
        self._max_rows = max_rows
        self._header = header
        self._too_many = too_many.format(max_rows)
        self._csv = CsvReader(max_row_bytes=MAX_ROW_BYTES + sum(map(_text_bytes, schema.features)))
        self._columns: list[tuple[int, str, Cell]] = []
        self._has_names = False
        self._rows = 0

    def feed(self, data: bytes) -> Rows | None:
        """The rows that are complete now, shape (rows, features). Raises InvalidRequest, TooManyInstances."""
        return self._read(self._csv.feed(data))

    def end(self) -> Rows | None:
        """The last row, if no line end follows it. Raises InvalidRequest, TooManyInstances."""
        rows = self._read(self._csv.end())
        if not self._columns and self._header == "present":
            raise InvalidRequest("line 1: must name the features")
        if not self._rows:
            raise InvalidRequest(f"line {self._csv.line + 1}: there must be at least one instance")
        return rows

    def _read(self, table: Iterator[list[str]]) -> Rows | None:
        rows: list[list[Any]] = []
        for cells in table:
            if self._columns:
                rows.append(self._row(cells))
            elif self._has_header(cells):
                self._read_header(cells)
            else:
                self._columns = [(index, name, cell) for name, (index, cell) in self._features.items()]
                rows.append(self._row(cells))
        return np.array(rows, dtype=self._dtype) if rows else None

    def _has_header(self, first: list[str]) -> bool:
        if self._header == "guess":
            return not self._features.keys().isdisjoint(map(self._named, first))
        return self._header == "present"

    def _named(self, name: str) -> str:
        """A name in the header, without the spaces that some write after a comma."""
        return name if name in self._features else name.strip()

    def _read_header(self, names: list[str]) -> None:
        self._has_names = True
        names = list(map(self._named, names))
        given = set(names)
        for name in self._features:
            if name not in given:
                raise self._csv.error(f"{name} is missing")
        if len(names) != len(self._features):
            raise self._csv.error(f"names {len(names)} columns, the model has {len(self._features)} features")
        self._columns = [(self._features[name][0], name, self._features[name][1]) for name in names]

    def _row(self, cells: list[str]) -> list[float]:
        if self._rows == self._max_rows:
            raise TooManyInstances(f"line {self._csv.line}: {self._too_many}")
        if len(cells) != len(self._columns):
            whole = "the header has {}" if self._has_names else "the model has {} features"
            raise self._csv.error(f"has {len(cells)} values, {whole.format(len(self._columns))}")
        self._rows += 1
        row = [0.0] * len(cells)
        for text, (position, name, cell) in zip(cells, self._columns, strict=True):
            try:
                row[position] = cell(text)
            except ValueError as error:
                raise self._csv.error(f"{name} {error}") from None
        return row


def _text_bytes(feature: Feature) -> int:
    """The bytes of the longest text in a CSV: a character has four, and a doubled quote two."""
    return 4 * feature.max_length if feature.kind == "text" else 0


def _cell(feature: Feature) -> Cell:
    """Turns the text of a cell into its number; raises ValueError with a reason that does not quote the text.

    An empty cell of a text that may not be missing is the empty text.
    """
    encode = feature.encoder()
    if feature.kind == "boolean":
        return lambda text: encode(BOOLEANS.get(text.lower(), text or None))
    if feature.kind == "category":
        categories = {str(category): category for category in feature.categories}
        return lambda text: encode(categories.get(text, text or None))
    if feature.kind == "datetime":
        return lambda text: encode(text or None)
    if feature.kind == "text":
        return lambda text: encode(text or (None if feature.nullable else ""))

    def number(text: str) -> Any:
        if not text:
            return encode(None)
        # float() takes digits of every script, and underscores between them
        if "_" in text or not text.isascii():
            raise ValueError("must be a number")
        try:
            value = float(text)
        except ValueError:
            raise ValueError("must be a number") from None
        return encode(None if math.isnan(value) else value)  # numpy writes nan for a missing value

    return number
