"""The tables of other protocols: rows, records, columns, split as pandas splits a DataFrame, or CSV.

All of them become rows as the instances of `:predict` do, which are checked in one place (`Reader`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np

from registry.model import LoadedModel
from registry.rows.features import Rows
from serving.errors import InvalidRequest, NotJSON, TooManyInstances
from serving.jobs.csv_reader import FeatureReader, Header
from serving.predict.json_body import MAX_ELEMENT_BYTES, decode
from serving.predict.pieces import PIECE_BYTES, ElementTooLarge, Turns, split
from serving.predict.request_body import TOO_MANY, WHOLE_BYTES, Reader

MAX_COLUMN_NAMES_BYTES = 256 * 1024

ROWS_AT_ONCE = 64
"""Rows that are put together from columns without looking at the clock."""

STRINGS_AT_ONCE = 1024
"""Strings and NaN that are looked at without looking at the clock."""

STRING_OR_NAN = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?|NaN', re.DOTALL)
"""One match for each string, also for one that does not end."""

SPLIT = 'an object as pandas splits a DataFrame: {"columns": [...], "data": [[...]]}'

FORMS = "an array of rows, or an object with an array for each feature"

_raws = msgspec.json.Decoder(list[msgspec.Raw])


class Split(msgspec.Struct, forbid_unknown_fields=True):
    """A DataFrame as `DataFrame.to_dict(orient="split")` writes it; `tight` adds two members. The index is ignored."""

    data: msgspec.Raw
    columns: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    index: msgspec.Raw = msgspec.Raw(b"null")
    column_names: msgspec.Raw = msgspec.Raw(b"null")
    index_names: msgspec.Raw = msgspec.Raw(b"null")


_split = msgspec.json.Decoder(Split)
_names = msgspec.json.Decoder(list[str])


async def null_for_nan(body: bytes, turns: Turns) -> bytes:
    """The body with null wherever it has NaN, which is not JSON, but which Python's json module writes."""
    parts, start = [], 0
    for number, found in enumerate(STRING_OR_NAN.finditer(body)):
        if found[0] == b"NaN":
            parts += [body[start : found.start()], b"null"]
            start = found.end()
        if number % STRINGS_AT_ONCE == 0:
            await turns.pause()
    return b"".join([*parts, body[start:]])


async def decode_outline(decoder: msgspec.json.Decoder[Any], body: bytes, usage: str, turns: Turns) -> Any:
    """Decode a body, with null for NaN in one of up to WHOLE_BYTES. Raises NotJSON, InvalidRequest."""
    try:
        return decode(decoder, body, usage)
    except NotJSON:
        if len(body) > WHOLE_BYTES or b"NaN" not in body:
            raise
        return decode(decoder, await null_for_nan(body, turns), usage)


class TableReader:
    """Reads the tables of one model. Each method raises NotJSON, InvalidRequest, InvalidRows, TooManyInstances."""

    def __init__(self, model: LoadedModel, reader: Reader, max_rows: int) -> None:
        self._model = model
        self._reader = reader
        self._max_rows = max_rows
        self._names = model.schema.names

    async def read(self, table: msgspec.Raw, name: str, turns: Turns) -> Rows:
        """An array of rows or of records, or an object of columns; `name` is that of the member that holds it."""
        match bytes(memoryview(table)[:1]):
            case b"{":
                table = await self._from_columns(table, name, turns)
            case b"[":
                pass
            case _:
                raise InvalidRequest(f"{name} must be {FORMS}")
        rows, _ = await self._reader.read_large(b'{"instances":%b}' % bytes(table), turns)
        return rows

    async def read_split(self, table: msgspec.Raw, name: str, turns: Turns) -> Rows:
        """A table as pandas splits it; its columns may have any order, that of the features without `columns`."""
        parts = decode(_split, bytes(table), f"{name} must be {SPLIT}")
        if parts.columns is msgspec.UNSET:
            return await self.read(parts.data, name, turns)
        order = self._order(parts.columns, name)
        rearrange = None if order == list(range(len(order))) else _rearranger(order)
        found = [some async for some in self._reader.read_array(parts.data, turns, rearrange)]
        return np.concatenate(found)

    async def read_csv(self, body: bytes, header: Header, turns: Turns) -> Rows:
        """A CSV, whose header names the features in any order; without one they have that of the schema."""
        table = FeatureReader(self._model, self._max_rows, header=header, too_many=TOO_MANY.format(self._max_rows))
        found = []
        for start in range(0, len(body), PIECE_BYTES):
            found.append(table.feed(body[start : start + PIECE_BYTES]))
            await turns.pause()
        found.append(table.end())
        return np.concatenate([rows for rows in found if rows is not None])

    def _order(self, columns: msgspec.Raw, name: str) -> list[int]:
        """The place among the columns of each feature."""
        usage = f"{name}.columns must be an array of the features' names"
        sent = bytes(columns)
        if len(sent) > MAX_COLUMN_NAMES_BYTES:
            raise InvalidRequest(usage)
        try:
            names = _names.decode(sent)
        except msgspec.MsgspecError:
            raise InvalidRequest(usage) from None
        places = {column: place for place, column in enumerate(names)}
        for feature in self._names:
            if feature not in places:
                raise InvalidRequest(f"{name}.columns lacks {feature}")
        if len(names) != len(self._names):
            raise InvalidRequest(f"{name} has {len(names)} columns, the model has {len(self._names)} features")
        return [places[feature] for feature in self._names]

    async def _from_columns(self, table: msgspec.Raw, name: str, turns: Turns) -> msgspec.Raw:
        """Columns by the names of their features as an array of rows."""
        columns = self._decode_columns(bytes(table), name)
        cells = [_cells(column, feature, name) for feature, column in zip(self._names, columns, strict=True)]
        parts = []
        for number, row in enumerate(zip_longest(*cells)):
            if number >= self._max_rows:
                raise TooManyInstances(TOO_MANY.format(self._max_rows))
            if None in row:
                raise InvalidRequest(self._uneven(row, number, name))
            parts.append(b"[" + b",".join(row) + b"]")
            if number % ROWS_AT_ONCE == 0:
                await turns.pause()
        return msgspec.Raw(b"[" + b",".join(parts) + b"]")

    def _decode_columns(self, table: bytes, name: str) -> list[msgspec.Raw]:
        """The array of each feature."""
        usage = f"{name} must be {FORMS}"
        if self._columns is None:  # of a name that msgspec does not support
            found = decode(msgspec.json.Decoder(dict[str, msgspec.Raw]), table, usage)
            if found.keys() != set(self._names):
                raise InvalidRequest(f"{name} must have an array for each feature of the model, and no others")
            return [found[feature] for feature in self._names]
        try:
            return list(msgspec.structs.astuple(decode(self._columns, table, usage)))
        except InvalidRequest as error:
            raise InvalidRequest(f"{name}: {error}") from None

    @cached_property
    def _columns(self) -> msgspec.json.Decoder[Any] | None:
        """Decodes an object with a member for each feature and no others."""
        if any(character in name for name in self._names for character in '"\\'):
            return None
        names = {f"f{index}": name for index, name in enumerate(self._names)}
        fields = [(name, msgspec.Raw) for name in names]
        return msgspec.json.Decoder(msgspec.defstruct("Columns", fields, rename=names, forbid_unknown_fields=True))

    def _uneven(self, row: Sequence[bytes | None], number: int, name: str) -> str:
        """What is wrong with columns of which some have ended before the row of this number."""
        shorter = self._names[row.index(None)]
        longer = next((feature for feature, cell in zip(self._names, row, strict=True) if cell is not None), shorter)
        return f"{name}: {shorter} has {number} values, {longer} has more"


def _cells(column: msgspec.Raw, feature: str, name: str) -> Iterator[bytes]:
    """The values of a column as JSON, each alone or in an array of its own."""
    sent = bytes(column)
    if not sent.startswith(b"["):
        raise InvalidRequest(f"{name}: {feature} must be an array")
    try:
        pieces = [sent] if len(sent) <= PIECE_BYTES else (piece.content for piece in split(sent, MAX_ELEMENT_BYTES))
        for piece in pieces:
            for cell in map(bytes, _raws.decode(piece)):
                if cell.startswith(b"["):
                    inner = _raws.decode(cell)
                    yield bytes(inner[0]) if len(inner) == 1 else cell
                else:
                    yield cell
    except ElementTooLarge as error:
        raise InvalidRequest(f"{name}: {feature}, value {error.index}: {error}") from None


def _rearranger(order: Sequence[int]) -> Callable[[bytes], bytes]:
    """A function that puts the values of each row of an array into another order; rows of another length stay."""

    def rearrange(rows: bytes) -> bytes:
        found = []
        for row in map(bytes, _raws.decode(rows)):
            cells = _raws.decode(row) if row.startswith(b"[") else []
            found.append(b"[%b]" % b",".join([cells[place] for place in order]) if len(cells) == len(order) else row)
        return b"[%b]" % b",".join(found)

    return rearrange
