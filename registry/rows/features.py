"""The features of a model: their names, kinds and bounds, and the conversion of one value into a row and back.

A row is float64 in schema order whatever the kinds: a category is its index in `categories`, a boolean is 0 or 1, a
date and time is the number of microseconds since 1970 in UTC, a missing value is NaN. So every row has one canonical
form, and a batch of them is one matrix. Only a text stays a string: rows with texts are arrays of objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from registry.rows.times import encode_time, show_time, step_of

Kind = Literal["number", "integer", "boolean", "category", "text", "datetime"]
Input = Literal["array", "frame", "series"]
"""The form of the table that an estimator was fitted on; a series is a single column of texts."""

Rows = NDArray[Any]
"""Shape (rows, features), float64; an array of objects (strings, None for a missing one, floats) if there are texts."""

NUMBERS = frozenset({float, int})

MAX_TEXT_CHARACTERS = 10_000
"""The default limit of a text, and the limit of a value of an open category that is not listed."""

PLAIN = frozenset({"bool", "float64", "int64", "int32"})
"""Types of columns that are numpy's own, for which pandas needs no array of its own making."""

UNLISTED = "\N{WHITE SMALL SQUARE}unlisted\N{WHITE SMALL SQUARE}"
"""Stands for every value of an open category that is not listed; an encoder has never seen it."""

MISSING: dict[str, Any] = {"none": None, "nan": math.nan}
"""What a column of objects may hold where a value is missing."""


PLACEHOLDER = "an example of a text"

DAY_MICROSECONDS = 24 * 3600 * 10**6

PLAIN_INTEGERS = frozenset({"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
"""Types of columns without fractions and without missing values."""

MAX_WHOLE = 2**53
"""Up to here a float64 holds every whole number."""

TEXT_TYPES = frozenset({"object", "str", "string", "category"})
"""Types of columns that hold strings, among other things."""


def python_value(value: Any) -> Any:
    """The Python value of one of numpy's; any other is its own."""
    return value.item() if isinstance(value, np.generic) else value


def characters(rows: Rows) -> int:
    """The characters of all texts in rows."""
    return sum(len(cell) for cell in rows.flat if isinstance(cell, str))


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feature.

    `minimum` and `maximum` are enforced; `seen` is the range of the sample. `categories` are the values of a category.
    `dtype` is the column's pandas dtype in the DataFrame that the estimator was fitted on. An `open` category takes any
    other string, too: its code is len(categories), and the estimator is handed UNLISTED. A text has at most
    `max_length` characters. `format` is how a date and time is written (for `strftime`) for an estimator that takes
    strings. `missing` is what a column of objects holds where a value is missing. `origin` says what decided about the
    feature: a step of the pipeline, the sample, or an option.
    """

    name: str
    kind: Kind
    dtype: str = "float64"
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    seen: tuple[float, float] | None = None
    categories: tuple[str | int | float | bool, ...] = ()
    open: bool = False
    max_length: int = MAX_TEXT_CHARACTERS
    format: str = ""
    missing: Literal["none", "nan"] = "none"
    origin: str = ""

    def widened(self, other: Feature) -> Feature:
        """The feature, accepting also every number that `other` accepts, and every text as long as its texts."""
        if self.kind == "text" == other.kind:
            return msgspec.structs.replace(self, max_length=max(self.max_length, other.max_length))
        if self.kind != other.kind:
            return self
        lows, highs = (self.minimum, other.minimum), (self.maximum, other.maximum)
        low = min((bound for bound in lows if bound is not None), default=None)
        high = max((bound for bound in highs if bound is not None), default=None)
        return msgspec.structs.replace(
            self, minimum=None if None in lows else low, maximum=None if None in highs else high
        )

    def json_schema(self) -> dict[str, Any]:
        """The values that a client may send, as JSON Schema."""
        kind: dict[str, Any]
        if self.kind == "category" and not self.open:
            kind = {"enum": [*self.categories, *([None] if self.nullable else [])]}
        else:
            name = "string" if self.kind in ("category", "text", "datetime") else self.kind
            kind = {"type": [name, "null"] if self.nullable else name}
        match self.kind:
            case "text":
                kind["maxLength"] = self.max_length
            case "datetime":
                kind["format"] = "date" if self.format and "%H" not in self.format else "date-time"
            case "category" if self.open:
                kind["x-known-values"] = list(self.categories)
        for keyword, bound in (("minimum", self.minimum), ("maximum", self.maximum)):
            if bound is not None:
                kind[keyword] = bound
        if self.seen is not None:
            kind["x-seen"] = {"minimum": self.seen[0], "maximum": self.seen[1]}
        return kind

    def encoder(self) -> Callable[[Any], Any]:
        """A function from a JSON value to its cell in a row; it raises ValueError with the reason."""
        encode: Callable[[Any], Any]
        match self.kind:
            case "text":
                encode = self._encode_text
            case "datetime":
                encode = self._encode_time if self.format else encode_time
            case "category":
                encode = self._category_encoder()
            case "boolean":
                encode = _encode_boolean
            case _:
                encode = self._number_encoder()
        nullable = self.nullable
        missing = None if self.kind == "text" else math.nan

        def encode_or_missing(value: Any) -> Any:
            if value is not None:
                return encode(value)
            if nullable:
                return missing
            raise ValueError("must not be null")

        return encode_or_missing

    def _encode_text(self, value: Any) -> str:
        check_text(value, self.max_length)
        return value  # type: ignore[no-any-return]

    def _encode_time(self, value: Any) -> float:
        """Times that `format` would not write whole are refused: the estimator would be asked about another time."""
        cell = encode_time(value)
        if cell % step_of(self.format):
            raise ValueError(f"must be no finer than {self.format}, as {show_time(cell, self.format)}")
        return cell

    def _number_encoder(self) -> Callable[[Any], float]:
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        integer = self.kind == "integer"

        def encode(value: Any) -> float:
            if type(value) not in NUMBERS:
                raise ValueError("must be a number")
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise ValueError("must be finite")
            if not low <= number <= high:
                raise ValueError(f"must be between {low:g} and {high:g}")
            if integer and not number.is_integer():
                raise ValueError("must be an integer")
            return number

        return encode

    def category_types(self) -> set[type]:
        """The types of values that may be a category: True and 1.0 equal 1, and would otherwise find its code."""
        kinds = {str, *map(type, self.categories)}
        return kinds | NUMBERS if self.dtype not in TEXT_TYPES and kinds & NUMBERS else kinds

    def _category_encoder(self) -> Callable[[Any], float]:
        codes = {category: float(index) for index, category in enumerate(self.categories)}
        kinds = self.category_types()
        if self.open:
            return self._open_encoder(codes, kinds)
        listed = ", ".join(str(category) for category in self.categories)
        reason = f"must be one of {listed}" if len(listed) <= 200 else f"must be one of {len(codes)} categories"

        def encode(value: Any) -> float:
            code = codes.get(value) if type(value) in kinds else None
            if code is None:
                raise ValueError(reason)
            return code

        return encode

    def _open_encoder(self, codes: dict[Any, float], kinds: set[type]) -> Callable[[Any], float]:
        unlisted = float(len(codes))

        def encode(value: Any) -> float:
            code = codes.get(value) if type(value) in kinds else None
            if code is not None:
                return code
            check_text(value, MAX_TEXT_CHARACTERS)
            return unlisted

        return encode

    def decode(self, cell: Any) -> Any:
        """The JSON value of a row's `cell`."""
        if cell is None or (self.kind != "text" and math.isnan(cell)):
            return None
        match self.kind:
            case "text":
                return cell
            case "category":
                return self.categories[int(cell)] if cell < len(self.categories) else UNLISTED
            case "datetime":
                return show_time(cell, self.format)
            case "boolean" | "integer":
                return (bool if self.kind == "boolean" else int)(cell)
        return float(cell)

    def usual(self, cells: Rows) -> Any:
        """A made-up JSON value like those of `cells`: the commonest, or a rounded median; never a text of theirs."""
        if self.kind == "text":
            return PLACEHOLDER[: self.max_length]
        known = np.asarray(cells, np.float64)
        known = known[~np.isnan(known)]
        if self.open:
            listed = known[known < len(self.categories)]
            known = listed if len(listed) else np.zeros(1)  # an unlisted value is somebody's own
        if not len(known):
            return None
        match self.kind:
            case "boolean" | "category":
                values, counts = np.unique(known, return_counts=True)
                return self.decode(values[counts.argmax()])
            case "datetime":
                return self.decode(np.median(known) // DAY_MICROSECONDS * DAY_MICROSECONDS)
        return self.decode(self._rounded_median(known))

    def _rounded_median(self, known: Rows) -> float:
        """With the fewest digits, three or more, that leave it among the values seen; whole if all values are."""
        low, high = self.seen or (self.minimum, self.maximum)
        median, whole = float(np.median(known)), bool((known % 1 == 0).all())
        for digits in range(3, 18):
            rounded = float(f"{median:.{digits}g}")
            rounded = float(round(rounded)) if whole else rounded
            if (low is None or low <= rounded) and (high is None or rounded <= high):
                return rounded
        return float(np.sort(known)[len(known) // 2])

    def column(self, cells: Rows) -> Any:
        """`cells`, shape (rows,), as the pandas column that the estimator was fitted on."""
        gap = MISSING[self.missing]
        if self.kind == "text":
            texts = [gap if cell is None else cell for cell in cells]
            return pd.Series(texts, dtype=object if self.dtype == "object" else self.dtype)
        cells = np.asarray(cells, np.float64)
        missing = np.isnan(cells)
        if self.kind == "datetime":
            return self._times(cells, missing)
        if self.kind == "category":
            values = self._values(gap)
            column = values[np.where(missing, len(values) - 1, cells).astype(np.intp)]
        elif self.kind == "boolean" and self.dtype == "object":
            column = cells.astype(bool).astype(object)
            column[missing] = gap
        else:
            column = cells
        if self.dtype == "category":
            return pd.Categorical(column, categories=[*self.categories, *([UNLISTED] if self.open else [])])
        if self.dtype == "object":
            return pd.Series(column, dtype=object)  # without the dtype pandas infers str
        if self.dtype in PLAIN_INTEGERS and (missing.any() or self._exceeds_type(column)):
            return column.copy()  # which plain integers and booleans lack; pandas reads such columns as floats
        return column.astype(self.dtype) if self.dtype in PLAIN else pd.Series(column).astype(self.dtype).array

    def _values(self, gap: Any) -> NDArray[Any]:
        """The values of all codes, then what stands for an unlisted one and what for a missing one."""
        if self.dtype in TEXT_TYPES:
            values = np.empty(len(self.categories) + 2, dtype=object)
            values[:] = [*self.categories, UNLISTED, gap]
            return values
        return np.array([*self.categories, math.nan, math.nan], dtype=np.float64)

    def _exceeds_type(self, column: Any) -> bool:
        """Return whether a column of whole numbers, which takes other numbers too, is given some of those."""
        if self.kind != "number":
            return False
        limits = np.iinfo(self.dtype)
        low, high = max(limits.min, -MAX_WHOLE), min(limits.max, MAX_WHOLE)
        return bool(((column % 1 != 0) | (column < low) | (column > high)).any())

    def _times(self, cells: Rows, missing: NDArray[np.bool_]) -> Any:
        """Microseconds as the column of dates and times that the estimator was fitted on."""
        whole = np.where(missing, 0, cells).astype(np.int64).astype("datetime64[us]")
        whole[missing] = np.datetime64("NaT", "us")
        column = pd.Series(whole)
        if self.format:
            gap = MISSING[self.missing]
            written = [
                gap if is_gap else show_time(cell, self.format) for cell, is_gap in zip(cells, missing, strict=True)
            ]
            return pd.Series(written, dtype=self.dtype)
        if isinstance(dtype := pd.api.types.pandas_dtype(self.dtype), pd.DatetimeTZDtype):
            return column.dt.tz_localize("UTC").astype(dtype)
        return column.astype(self.dtype)


def check_text(value: Any, max_length: int) -> None:
    """Raise ValueError for what is no text of at most `max_length` characters that every store can keep."""
    if type(value) is not str:
        raise ValueError("must be a string")
    if len(value) > max_length:
        raise ValueError(f"must have at most {max_length} characters")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("must be valid Unicode, without halves of surrogate pairs") from None


def _encode_boolean(value: Any) -> float:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return float(value)
