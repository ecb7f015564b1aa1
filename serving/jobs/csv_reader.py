"""Reads the rows of a CSV while it arrives, and names the line of whatever is wrong with it."""

from __future__ import annotations

import csv
from collections.abc import Callable

import numpy as np

from registry.model import LoadedModel
from registry.rows.features import Feature, Rows
from serving.errors import InvalidRequest, TooManyInstances

LONGEST_LINE = 64 * 1024
BOM = b"\xef\xbb\xbf"
TRUTHS = {"true": True, "1": True, "false": False, "0": False}

Cell = Callable[[str], float]


class TableReader:
    """Feeds on the bytes of one CSV: a header with the names of the model's features, then a line an instance.

    The columns may come in any order. An empty cell is a missing value; numbers have a decimal point and no
    separators; booleans are true, false, 1 or 0. A field may be quoted, but not hold a line end.
    """

    def __init__(self, model: LoadedModel, max_rows: int) -> None:
        self._features = {feature.name: (index, _cell(feature)) for index, feature in enumerate(model.schema.features)}
        self._max_rows = max_rows
        self._columns: list[tuple[int, str, Cell]] = []
        self._rest = b""
        self._line = 0
        self._blank = 0
        self.rows = 0
        """That were read so far."""

    def feed(self, data: bytes) -> Rows | None:
        """The rows of all lines that have come to their end. Raises InvalidRequest, TooManyInstances."""
        if not self._line and not self._rest:
            data = data.removeprefix(BOM)  # spreadsheets write it; it comes with the first bytes
        *lines, self._rest = (self._rest + data).split(b"\n")
        rows = self._read(lines)
        if len(self._rest) > LONGEST_LINE:
            self._line += 1
            raise self._refusal("is too long")
        return rows

    def end(self) -> Rows | None:
        """The row of a last line without an end."""
        rows = self._read([self._rest]) if self._rest else None
        if not self._line:
            raise InvalidRequest("line 1: must name the features")
        if not self.rows:
            raise InvalidRequest("line 2: there must be at least one instance")
        return rows

    def _read(self, lines: list[bytes]) -> Rows | None:
        table: list[list[float]] = []
        for line in lines:
            self._line += 1
            cells = self._cells(line.removesuffix(b"\r"))
            if not cells:
                self._blank = self._blank or self._line
            elif self._blank:
                raise InvalidRequest(f"line {self._blank}: is empty")
            elif not self._columns:
                self._read_header(cells)
            else:
                table.append(self._row(cells))
        return np.array(table, dtype=np.float64) if table else None

    def _cells(self, line: bytes) -> list[str]:
        if len(line) > LONGEST_LINE:
            raise self._refusal("is too long")
        if b"\0" in line:
            raise self._refusal("has a NUL byte")
        try:
            return next(csv.reader([line.decode()], strict=True), [])
        except UnicodeDecodeError:
            raise self._refusal("is not UTF-8") from None
        except csv.Error:
            raise self._refusal("is not CSV; quotes are doubled within quotes, and no field holds a line end") from None

    def _read_header(self, names: list[str]) -> None:
        for name in self._features:
            if name not in names:
                raise self._refusal(f"{name} is missing")
        if len(names) != len(self._features):
            raise self._refusal(f"names {len(names)} columns, the model has {len(self._features)} features")
        self._columns = [(self._features[name][0], name, self._features[name][1]) for name in names]

    def _row(self, cells: list[str]) -> list[float]:
        if self.rows == self._max_rows:
            raise TooManyInstances(f"line {self._line}: a job may have {self._max_rows} rows; send more as several")
        if len(cells) != len(self._columns):
            raise self._refusal(f"has {len(cells)} values, the header has {len(self._columns)}")
        self.rows += 1
        row = [0.0] * len(cells)
        for text, (position, name, cell) in zip(cells, self._columns, strict=True):
            try:
                row[position] = cell(text)
            except ValueError as error:
                raise self._refusal(f"{name} {error}") from None
        return row

    def _refusal(self, reason: str) -> InvalidRequest:
        return InvalidRequest(f"line {max(self._line, 1)}: {reason}")


def _cell(feature: Feature) -> Cell:
    """From the text of a cell to its place in a row; raises ValueError with a reason that does not quote it."""
    encode = feature.encoder()
    categories = {str(category): category for category in feature.categories}

    def category(text: str) -> float:
        return encode(categories.get(text, text or None))

    def boolean(text: str) -> float:
        return encode(TRUTHS.get(text.lower(), text or None))

    def number(text: str) -> float:
        if not text:
            return encode(None)
        # float() takes digits of every script, and underscores between them
        if "_" in text or not text.isascii():
            raise ValueError("must be a number")
        try:
            value = float(text)
        except ValueError:
            raise ValueError("must be a number") from None
        return encode(value)

    return {"category": category, "boolean": boolean}.get(feature.kind, number)
