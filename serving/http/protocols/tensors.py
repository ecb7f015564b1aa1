"""Tensors of the Open Inference Protocol: checked, read from JSON or from bytes, made into rows, and written."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, prod
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry.errors import Fault, InvalidRows
from registry.model import LoadedModel
from registry.rows.features import MAX_WHOLE, Feature, Rows
from serving.errors import InvalidRequest, TooManyInstances
from serving.predict.json_body import MAX_NAME_CHARACTERS, decode
from serving.predict.pieces import PIECE_BYTES, SLOW_NUMBER, ElementTooLarge, Turns, finite_number, split
from serving.predict.request_body import MANY_NUMBERS_BYTES, TOO_MANY, Reader

NUMBERS: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""The datatypes of fixed size, as their elements follow each other in binary data."""

TEXTS = "BYTES"
DATATYPES = dict.fromkeys((*NUMBERS, TEXTS))

BYTES_LENGTH = struct.Struct("<I")
"""The length of an element of BYTES, which stands before it."""

MAX_WHOLE_ELEMENTS = 50_000
MAX_WHOLE_BYTES = 256 * 1024
MAX_NUMBERS_BYTES = 1 << 20
"""Elements, bytes of texts, and bytes of numbers that are decoded at once, in a few milliseconds."""

CELLS_AT_ONCE = 4096
"""Cells that are converted one by one before others have their turn: about a millisecond."""

MAX_ELEMENT_BYTES = 256 * 1024

WHOLE = "data must be whole numbers that {} can hold"

Cells: TypeAlias = NDArray[np.float64] | list[str | None] | list[int | None]
"""The elements of a tensor in row-major order: numbers, NaN for a missing one, or texts, None for a missing one.

Whole numbers of which a float64 does not hold each are a list, too: they may be names of categories.
"""

_numbers = msgspec.json.Decoder(list[float])
_rows_of_numbers = msgspec.json.Decoder(list[list[float]])
_texts = msgspec.json.Decoder(list[str | None])
_encode = msgspec.json.Encoder().encode
_any: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[Any], float_hook=finite_number)


class InputTensor(msgspec.Struct, gc=False):
    """A tensor of a request; `data` is not decoded yet, and empty where it follows the JSON as bytes."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] | None = None

    @property
    def shown(self) -> str:
        """What messages call it: its name is the client's own text, and shown only if it is short and printable."""
        return (
            f"input `{self.name}`" if len(self.name) <= MAX_NAME_CHARACTERS and self.name.isprintable() else "an input"
        )

    @property
    def size(self) -> int:
        """The number of elements, which is small once `check` has passed."""
        return prod(self.shape)

    def check(self, max_rows: int, max_columns: int) -> None:
        """Raise InvalidRequest, TooManyInstances unless it is a matrix or a column; nothing is allocated before."""
        if self.datatype not in DATATYPES:
            raise InvalidRequest(f"{self.shown}: datatype must be one of {', '.join(DATATYPES)}")
        if not 1 <= len(self.shape) <= 2 or min(self.shape) < 1:
            raise InvalidRequest(f"{self.shown}: shape must be [rows] or [rows, columns], each at least 1")
        if self.shape[0] > max_rows:
            raise TooManyInstances(TOO_MANY.format(max_rows))
        if self.columns > max_columns:
            raise InvalidRequest(f"{self.shown} has {self.columns} columns, the model has {max_columns} features")

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) == 2 else 1

    def wrong(self, reason: str) -> InvalidRequest:
        """The error that says what is wrong with it."""
        return InvalidRequest(f"{self.shown}: {reason}")


@dataclass(eq=False, slots=True)
class Tensor:
    """A tensor whose elements have been read."""

    head: InputTensor
    cells: Cells


async def read_json(head: InputTensor, turns: Turns) -> Cells:
    """The elements of a tensor from its `data`, flat or nested as its shape. Raises InvalidRequest, NotJSON."""
    data, size = memoryview(head.data), head.size
    if not data or data[0] != ord("["):
        raise head.wrong("data must be an array")
    is_text = head.datatype == TEXTS
    raw = bytes(data)
    # a comma between any two elements, of nested arrays too: what has others is not decoded
    if not is_text and raw.count(b",") + 1 != size:
        raise head.wrong(f"data must have {size} elements, as the shape says")
    if len(raw) > MAX_WHOLE_BYTES if is_text else _is_slow(raw, size):
        return await _piecewise(head, raw, turns)
    cells = _quickly(head, raw)
    if cells is None and size > CELLS_AT_ONCE:
        await turns.pause()
        return await _piecewise(head, raw, turns)
    return _complete(head, _slowly(head, raw) if cells is None else cells)


def _is_slow(raw: bytes, size: int) -> bool:
    """Return whether so many numbers take longer than a few milliseconds, for their count, length or exponents."""
    if size > MAX_WHOLE_ELEMENTS or len(raw) > MAX_NUMBERS_BYTES:
        return True
    return len(raw) > PIECE_BYTES and SLOW_NUMBER.search(raw) is not None


async def _pieces(head: InputTensor, raw: bytes, turns: Turns) -> Any:
    try:
        for piece in split(raw, MAX_ELEMENT_BYTES):
            if piece.first + piece.count > head.size:
                raise head.wrong(f"data must have {head.size} elements, as the shape says")
            yield piece.content
            await turns.pause()
    except ElementTooLarge as error:
        raise head.wrong(f"element {error.index} {error}") from None


async def _piecewise(head: InputTensor, raw: bytes, turns: Turns) -> Cells:
    """The elements of an array of any size. Raises InvalidRequest, NotJSON, and what `turns` raise."""
    parts: list[Any] = []
    async for piece in _pieces(head, raw, turns):
        cells = _quickly(head, piece)
        parts.append(_slowly(head, piece) if cells is None else cells)
    if any(isinstance(part, list) for part in parts):
        found: list[Any] = []
        for part in parts:
            found += part if isinstance(part, list) else _whole(part.tolist())
            await turns.pause()
        return _complete(head, found)
    return _complete(head, np.concatenate(parts))


def _complete(head: InputTensor, cells: Cells) -> Cells:
    """The cells, if they are all that the tensor has. Raises InvalidRequest."""
    if len(cells) != head.size:
        raise head.wrong(f"data must have {head.size} elements, as the shape says")
    return cells


def _quickly(head: InputTensor, raw: bytes) -> Cells | None:
    """The elements of an array of texts or numbers; None for any other, and where it may take long."""
    is_nested = raw[1:].lstrip()[:1] == b"["
    try:
        if head.datatype == TEXTS:
            return None if is_nested else _texts.decode(raw)
        if head.datatype == "BOOL" or (len(raw) > MANY_NUMBERS_BYTES and SLOW_NUMBER.search(raw)):
            return None
        cells = np.array((_rows_of_numbers if is_nested else _numbers).decode(raw), np.float64)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    if is_nested and (cells.ndim != 2 or cells.shape[1:] != tuple(head.shape[1:])):
        return None
    return None if _may_differ(head, cells) else _fitting(head, cells.ravel())


def _slowly(head: InputTensor, raw: bytes) -> Cells:
    """The elements one by one. Raises InvalidRequest, NotJSON."""
    found = decode(_any, raw, f"{head.shown}: data must be an array")
    if found and isinstance(found[0], list):
        width = head.columns
        if len(head.shape) < 2 or not all(isinstance(one, list) and len(one) == width for one in found):
            raise head.wrong("data must be flat, or nested as the shape")
        found = [cell for one in found for cell in one]
    if head.datatype == TEXTS:
        if not all(cell is None or type(cell) is str for cell in found):
            raise head.wrong("data must be strings, or null for missing ones")
        return found
    kinds = {float, int, bool} if head.datatype == "BOOL" else {float, int}
    if not all(cell is None or type(cell) in kinds for cell in found):
        raise head.wrong(f"data must be {'true or false' if bool in kinds else 'numbers'}, or null for missing ones")
    try:
        cells = np.array(found, np.float64)
    except OverflowError:
        raise head.wrong("a number is too large") from None
    return _exactly(head, found, cells) if _may_differ(head, cells) else _fitting(head, cells)


def _exactly(head: InputTensor, found: Sequence[float | None], cells: NDArray[np.float64]) -> list[int | None]:
    """Whole numbers, which `cells` have rounded. Raises InvalidRequest."""
    missing = np.isnan(cells)
    try:
        numbers = np.array([0 if cell is None else cell for cell in found], NUMBERS[head.datatype])
    except OverflowError:
        raise head.wrong(WHOLE.format(head.datatype)) from None
    if not (missing | (cells == np.floor(cells))).all():
        raise head.wrong(WHOLE.format(head.datatype))
    whole: list[int | None] = numbers.tolist()
    for place in np.flatnonzero(missing):
        whole[place] = None
    return whole


def _may_differ(head: InputTensor, cells: NDArray[Any]) -> bool:
    """Return whether there are whole numbers so large that a float64 stands for several of them."""
    return NUMBERS[head.datatype].kind in "iu" and bool(((cells >= MAX_WHOLE) | (cells <= -MAX_WHOLE)).any())


def _whole(cells: Sequence[float | None]) -> list[int | None]:
    return [None if cell is None or cell != cell else int(cell) for cell in cells]  # noqa: PLR0124 - NaN


def _fitting(head: InputTensor, cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers from JSON as their datatype holds them. Raises InvalidRequest."""
    kind = NUMBERS[head.datatype]
    if kind.kind == "f":
        if kind.itemsize == 8:
            return cells
        with np.errstate(over="ignore"):
            return cells.astype(kind).astype(np.float64)
    low, high = (0, 1) if head.datatype == "BOOL" else (np.iinfo(kind).min, np.iinfo(kind).max)
    inside = (cells >= float(low)) & (cells <= float(high)) & (cells == np.floor(cells))
    if not (inside | np.isnan(cells)).all():
        raise head.wrong(WHOLE.format(head.datatype))
    return cells


async def read_binary(head: InputTensor, content: memoryview, turns: Turns) -> Cells:
    """The elements of a tensor from its part of the binary data. Raises InvalidRequest."""
    size = head.size
    if head.datatype == TEXTS:
        return await _read_texts(head, content, turns)
    kind = NUMBERS[head.datatype]
    if len(content) != size * kind.itemsize:
        raise head.wrong(f"binary_data_size must be {size * kind.itemsize}, as shape and datatype say")
    cells = np.frombuffer(content, kind, size)
    if head.datatype == "BOOL" and (cells > 1).any():
        raise head.wrong("binary data of BOOL must be 0 or 1")
    return cells.tolist() if _may_differ(head, cells) else cells.astype(np.float64)


async def _read_texts(head: InputTensor, content: memoryview, turns: Turns) -> list[str | None]:
    texts: list[str | None] = []
    place, end = 0, len(content)
    if end < head.size * BYTES_LENGTH.size:
        raise head.wrong("binary_data_size is less than the lengths of so many elements take")
    while len(texts) < head.size:
        if end - place < BYTES_LENGTH.size:
            raise head.wrong(f"binary data ends before element {len(texts)}")
        start = place + BYTES_LENGTH.size
        place = start + BYTES_LENGTH.unpack_from(content, place)[0]
        if place > end:
            raise head.wrong(f"element {len(texts)} is longer than the rest of the binary data")
        try:
            texts.append(str(content[start:place], "utf-8"))
        except UnicodeDecodeError:
            raise head.wrong(f"element {len(texts)} is not UTF-8") from None
        if not len(texts) % CELLS_AT_ONCE:
            await turns.pause()
    if place != end:
        raise head.wrong("binary data has more bytes than its elements")
    return texts


class RowMaker:
    """Makes rows of a model from tensors: one matrix of all features, or a column for each of them by name."""

    def __init__(self, model: LoadedModel, reader: Reader) -> None:
        self._schema = model.schema
        self._reader = reader
        features = model.schema.features
        self._width = len(features)
        self._is_plain = all(feature.kind in ("number", "integer") for feature in features)
        largest = np.finfo(np.float64).max
        self._low = np.array([-largest if one.minimum is None else one.minimum for one in features])
        self._high = np.array([largest if one.maximum is None else one.maximum for one in features])
        self._is_bounded = bool((self._low > -largest).any() or (self._high < largest).any())
        self._nullable = np.array([one.nullable for one in features])
        self._integers = np.array([index for index, one in enumerate(features) if one.kind == "integer"], np.intp)

    def is_matrix(self, heads: Sequence[InputTensor]) -> bool:
        """True for one matrix, False for columns by name. Raises InvalidRequest if they are neither."""
        names, count = self._schema.names, self._width
        if len(heads) == 1 and heads[0].columns == count:
            return count > 1 or heads[0].name not in names
        sent = [head.name for head in heads]
        for head in heads:
            if head.name not in names:
                wanted = f"send one tensor of shape [rows, {count}], or a column for each feature by its name"
                raise head.wrong(f"is not a feature of this model; {wanted}")
            if head.columns != 1:
                raise head.wrong("a column must have the shape [rows] or [rows, 1]")
            if head.shape[0] != heads[0].shape[0]:
                raise head.wrong(f"has {head.shape[0]} rows, {heads[0].shown} has {heads[0].shape[0]}")
        if len(set(sent)) < len(sent):
            raise InvalidRequest("each feature may be sent once")
        return False

    def quickly(self, heads: Sequence[InputTensor], max_rows: int) -> Rows | None:
        """The rows of a small matrix of FP64 in JSON, one row or nested: they are instances as `:predict` takes them.

        None for anything else, and for what is wrong; nothing need have been checked.
        """
        head = heads[0] if len(heads) == 1 else None
        if head is None or head.datatype != "FP64" or head.parameters or not self._is_plain:
            return None
        shape, raw = head.shape, bytes(head.data)
        if len(shape) != 2 or shape[1] != self._width or not 1 <= shape[0] <= max_rows:
            return None
        if raw[:2] == b"[[":
            instances = raw
        elif shape[0] == 1 and raw[:1] == b"[":
            instances = b"[%b]" % raw
        else:
            return None
        if len(raw) > PIECE_BYTES or (self._width == 1 and not self.is_matrix(heads)):
            return None
        found = self._reader.read_valid(b'{"instances":%b}' % instances)
        return None if found is None or len(found[0]) != shape[0] else found[0]

    async def rows(self, tensors: Sequence[Tensor], turns: Turns) -> Rows:
        """Rows of shape (rows, features). Raises InvalidRequest, InvalidRows, and what `turns` raise."""
        heads = [tensor.head for tensor in tensors]
        count = heads[0].shape[0]
        if self.is_matrix(heads):
            cells = tensors[0].cells
            if self._is_plain and heads[0].datatype != TEXTS:
                matrix = np.asarray(cells, np.float64).reshape(count, -1)
                if self._fits(matrix):
                    return matrix
            columns = [Tensor(heads[0], cells[index :: self._width]) for index in range(self._width)]
        else:
            columns = self._columns(tensors, count)
            if self._is_plain and all(column.head.datatype != TEXTS for column in columns):
                matrix = np.column_stack([np.asarray(column.cells, np.float64) for column in columns])
                if self._fits(matrix):
                    return matrix
        return await self._rows_one_by_one(columns, count, turns)

    def _columns(self, tensors: Sequence[Tensor], count: int) -> list[Tensor]:
        """A column for each feature in their order; one that is absent is missing in every row. Raises InvalidRows."""
        by_name = {tensor.head.name: tensor for tensor in tensors}
        absent = [one for one in self._schema.features if one.name not in by_name]
        if faults := [Fault(0, one.name, "is missing") for one in absent if not one.nullable]:
            raise InvalidRows(faults)
        for one in absent:
            by_name[one.name] = Tensor(InputTensor(one.name, [count], "FP64"), np.full(count, nan))
        return [by_name[name] for name in self._schema.names]

    def _fits(self, rows: Rows) -> bool:
        """Return whether all cells of rows are numbers that the features take."""
        fits = (rows >= self._low) & (rows <= self._high) if self._is_bounded else np.isfinite(rows)
        if not fits.all() and not (fits | (np.isnan(rows) & self._nullable)).all():
            return False
        whole = rows[:, self._integers] if len(self._integers) else rows[:, :0]
        return bool(((whole == np.floor(whole)) | np.isnan(whole)).all()) if whole.size else True

    async def _rows_one_by_one(self, columns: Sequence[Tensor], count: int, turns: Turns) -> Rows:
        """What is not plain numbers, or not right: the schema knows the values of each feature, and names faults."""
        some = max(1, CELLS_AT_ONCE // len(columns))
        found, faults = [], []
        for start in range(0, count, some):
            pairs = zip(self._schema.features, columns, strict=True)
            values = [_values(feature, column, start, start + some) for feature, column in pairs]
            try:
                found.append(self._schema.rows([list(row) for row in zip(*values, strict=True)]))
            except InvalidRows as error:
                faults += [Fault(start + one.instance, one.feature, one.reason) for one in error.faults]
                if len(faults) >= InvalidRows.LIMIT:
                    break
            await turns.pause()
        if faults:
            raise InvalidRows(faults)
        return np.concatenate(found)


def _values(feature: Feature, column: Tensor, start: int, end: int) -> list[Any]:
    """Some cells of a column as JSON would have them for this feature."""
    cells, datatype = column.cells[start:end], column.head.datatype
    if isinstance(cells, list):
        return cells
    values = [None if isnan(cell) else cell for cell in cells.tolist()]
    if feature.kind == "boolean" or (feature.kind == "category" and datatype == "BOOL"):
        return [bool(value) if value in (0.0, 1.0) else value for value in values]
    if feature.kind == "category" and NUMBERS[datatype].kind != "f":
        return [None if value is None else int(value) for value in values]
    return values


class OutputTensor(msgspec.Struct, frozen=True):
    """A tensor of an answer, shape (rows, columns): numbers as an array, or texts, row by row."""

    name: str
    datatype: str
    columns: int
    cells: Any

    async def as_json(self, turns: Turns) -> bytes:
        """Its data as the elements of a flat array."""
        parts = []
        for start in range(0, len(self.cells), CELLS_AT_ONCE):
            some = self.cells[start : start + CELLS_AT_ONCE]
            parts.append(_encode(some if isinstance(some, list) else some.tolist())[1:-1])
            if start:
                await turns.pause()
        return b",".join(parts)

    def as_bytes(self) -> bytes:
        """Its binary data."""
        if self.datatype == TEXTS:
            return b"".join(_with_lengths(self.cells))
        return np.asarray(self.cells, NUMBERS[self.datatype]).tobytes()


def _with_lengths(texts: Sequence[str]) -> Iterator[bytes]:
    for text in texts:
        content = text.encode()
        yield BYTES_LENGTH.pack(len(content))
        yield content
