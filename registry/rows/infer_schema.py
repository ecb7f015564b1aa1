"""Infers the features of a model: from what its fitted steps do with each column, then from a table of its input."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from registry.errors import CannotAdd
from registry.rows.features import MAX_TEXT_CHARACTERS, Feature, Kind, python_value
from registry.rows.times import are_times, form_of

MAX_SAMPLE_CATEGORIES = 1000
"""Categories that a sample may show; an encoder may know more."""

EVERY = "*"
"""Stands for all columns in options."""

SAMPLE, OPTION = "sample", "option"


@dataclass(frozen=True, slots=True)
class Use:
    """What a step of a fitted estimator does with a column of its input.

    An encoder's `categories` are listed; if `is_open`, it takes all other values alike. A step with the role "written"
    knows values by their letters and lists none. `takes_missing` is None where only trying can tell. `missing` is what
    stands for a missing value in the encoder's own list.
    """

    step: str
    role: Literal["encoder", "text", "numbers", "written", "unknown"]
    categories: tuple[Any, ...] = ()
    is_open: bool = False
    takes_missing: bool | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What a model should take where that differs from what its pipeline and its sample show, by column.

    `text` gives the most characters of each column of texts. Columns in `open` take any string, as one placeholder,
    those in `closed` only what the sample or the pipeline lists; those in `nullable` may be missing, those in
    `required` not; those in `fractions` take fractions; those in `datetimes` are dates and times. "*" is every column.
    """

    text: Mapping[str, int] = field(default_factory=dict)
    open: Collection[str] = ()
    closed: Collection[str] = ()
    nullable: Collection[str] = ()
    required: Collection[str] = ()
    fractions: Collection[str] = ()
    datetimes: Collection[str] = ()

    def check(self, columns: Collection[str]) -> None:
        """Raise CannotAdd for a column that the table lacks, or that is to be two things at once."""
        named = {name: set(getattr(self, name)) - {EVERY} for name in self.__dataclass_fields__}
        for option, names in named.items():
            if unknown := sorted(names - set(columns)):
                raise CannotAdd(f"option {option}: the model has no column {unknown[0]!r}")
        for one, other in CONTRADICTIONS:
            if both := sorted(named[one] & named[other]):
                raise CannotAdd(f"column {both[0]!r} cannot be both {one} and {other}")


NO_OPTIONS = FeatureOptions()

CONTRADICTIONS = (
    ("open", "closed"),
    ("nullable", "required"),
    ("text", "open"),
    ("text", "closed"),
    ("text", "datetimes"),
    ("text", "fractions"),
    ("datetimes", "fractions"),
)


def is_named(name: str, columns: Collection[str]) -> bool:
    """Return whether an option names a column, or all."""
    return name in columns or EVERY in columns


def infer_features(
    frame: pd.DataFrame,
    margin: float | None,
    uses: Sequence[Sequence[Use]] | None = None,
    options: FeatureOptions | None = None,
) -> tuple[Feature, ...]:
    """The features of a sample of a model's input.

    `margin` widens the range of the sample to the range accepted, in widths of the sample's range: 1 accepts a value as
    far outside as the sample is wide, 0 only the sample's range, None everything the column can hold. A number that is
    never negative in the sample must not become so. `uses` are those of each column, None if no estimator is known.
    Raises CannotAdd.
    """
    options = options or FeatureOptions()
    of_columns = [None] * frame.shape[1] if uses is None else uses
    return tuple(
        _Column(str(name), frame[name], None if used is None else tuple(used), options).feature(margin)
        for name, used in zip(frame.columns, of_columns, strict=True)
    )


@dataclass(frozen=True)
class _Column:
    name: str
    column: pd.Series[Any]
    uses: tuple[Use, ...] | None
    options: FeatureOptions

    def feature(self, margin: float | None) -> Feature:
        name, column = self.name, self.column
        if not 0 < len(name) <= 128 or not name.isprintable():
            raise CannotAdd(f"column {name!r}: a feature's name must have 1 to 128 printable characters")
        values = column.dropna()
        if values.empty:
            raise CannotAdd(f"column {name!r} has no values")
        make = partial(
            Feature,
            name=name,
            dtype=str(column.dtype),
            nullable=len(values) < len(column),
            missing=_missing(column, self.uses or ()),
            origin=SAMPLE,
        )
        return self._text(make, values) or self._encoded(make, values) or self._plain(make, values, margin)

    def _text(self, make: partial[Feature], values: pd.Series[Any]) -> Feature | None:
        vectorizer = next((use.step for use in self.uses or () if use.role == "text"), "")
        wanted = is_named(self.name, self.options.text)
        closed = is_named(self.name, self.options.closed)
        if (not vectorizer and not wanted) or closed:
            return None
        if not pd.api.types.is_string_dtype(values):
            raise CannotAdd(f"column {self.name!r} has the type {self.column.dtype}, and is no text")
        length = self.options.text.get(self.name, self.options.text.get(EVERY, MAX_TEXT_CHARACTERS))
        longest = int(values.str.len().max())
        if wanted and length < longest:
            raise CannotAdd(f"column {self.name!r} has a text of {longest} characters, more than {length}")
        return make(kind="text", max_length=max(length, longest), origin=OPTION if wanted else vectorizer)

    def _encoded(self, make: partial[Feature], values: pd.Series[Any]) -> Feature | None:
        """The feature of a column that goes to an encoder, which knows its categories."""
        encoders = [use for use in self.uses or () if use.role == "encoder" and use.categories]
        if not encoders or pd.api.types.is_datetime64_any_dtype(self.column):
            return None
        if self.name in self.options.datetimes:
            raise CannotAdd(f"column {self.name!r} is no date or time: {encoders[0].step} takes it for a category")
        closed = [use for use in encoders if not use.is_open]
        listed = list(dict.fromkeys(value for use in closed or encoders for value in use.categories))
        listed = [value for value in listed if all(value in use.categories for use in closed)]
        kinds = set(map(type, listed))
        of_strings = pd.api.types.is_string_dtype(values)
        if kinds == {bool} and len(listed) == 2:
            return None
        if not closed and str not in kinds:
            return None  # any number will do
        if isinstance(self.column.dtype, pd.CategoricalDtype):
            of_strings = str in kinds
        if self.column.dtype != object and (str in kinds) != of_strings:
            return None  # the sample holds something else than the encoder saw; trying will show
        is_open = not closed and all(use.role == "encoder" for use in self.uses or ())
        is_open = is_open and not is_named(self.name, self.options.closed)
        return make(kind="category", categories=tuple(listed), open=is_open, origin=encoders[0].step)

    def _plain(self, make: partial[Feature], values: pd.Series[Any], margin: float | None) -> Feature:
        name, column = self.name, self.column
        if isinstance(column.dtype, pd.CategoricalDtype):
            return make(kind="category", categories=_categories(name, column.cat.categories))
        if pd.api.types.is_bool_dtype(values.infer_objects()):
            return make(kind="boolean")
        if pd.api.types.is_datetime64_any_dtype(column):
            return make(kind="datetime")
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
            if name in self.options.closed and pd.api.types.is_integer_dtype(column):
                return make(kind="category", categories=_categories(name, sorted(values.unique())), origin=OPTION)
            return _number(make, values, column.dtype, margin)
        if pd.api.types.is_string_dtype(values):
            return self._strings(make, values)
        raise CannotAdd(f"column {name!r} has the unsupported type {column.dtype}")

    def _strings(self, make: partial[Feature], values: pd.Series[Any]) -> Feature:
        """Strings that no encoder knows and no vectorizer takes: dates, categories, or texts if they are many."""
        name = self.name
        found = values.unique().tolist()
        wanted = is_named(name, self.options.datetimes)
        if wanted or not is_named(name, self.options.closed):
            form = form_of(found)
            if form is not None:
                return make(kind="datetime", format=form, origin=OPTION if wanted else SAMPLE)
            if name in self.options.datetimes and not are_times(found):
                raise CannotAdd(f"column {name!r}: its values are not dates or times in ISO 8601")
        if self.uses is not None and len(found) > MAX_SAMPLE_CATEGORIES and not is_named(name, self.options.closed):
            return make(kind="text")
        return make(kind="category", categories=_categories(name, sorted(found)))


def _missing(column: pd.Series[Any], uses: Sequence[Use]) -> Literal["none", "nan"]:
    """What stands for a missing value in a column of objects: what the sample has there, else what encoders know."""
    if column.dtype != object:
        return "none"
    gaps = column[column.isna()]
    if len(gaps):
        return "none" if gaps.iloc[0] is None else "nan"
    return "nan" if any(use.missing == "nan" for use in uses) else "none"


def _number(make: partial[Feature], values: pd.Series[Any], dtype: Any, margin: float | None) -> Feature:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CannotAdd(f"column {make.keywords['name']!r} contains infinite values")
    minimum, maximum = accepted_range((low, high), margin, number_limits(dtype), keeps_sign=margin is not None)
    kind: Kind = "integer" if pd.api.types.is_integer_dtype(dtype) else "number"
    return make(kind=kind, seen=(low, high), minimum=minimum, maximum=maximum)


def number_limits(dtype: Any) -> tuple[float, float]:
    """The range of numbers that neither wrap around in a column of this type nor lose digits in a row.

    Fractions end where single precision does: trees and others compute in it, and fail beyond its range.
    """
    plain = np.dtype(getattr(dtype, "numpy_dtype", dtype))
    if plain.kind in "iu":
        limits = np.iinfo(plain)
        return float(max(limits.min, 1 - 2**53)), float(min(limits.max, 2**53 - 1))
    largest = min(float(np.finfo(plain).max), float(np.finfo(np.float32).max))
    return -largest, largest


def accepted_range(
    seen: tuple[float, float], margin: float | None, limits: tuple[float, float], *, keeps_sign: bool
) -> tuple[float, float]:
    """The numbers to accept where some were seen, by the margin of `infer_features` and in what a column can hold.

    With `keeps_sign` numbers of which none was negative must not become so.
    """
    low, high = seen
    reach = math.inf if margin is None else margin * (high - low)
    minimum = max(0.0, low - reach) if keeps_sign and low >= 0 else low - reach
    return min(low, max(minimum, limits[0])), max(high, min(high + reach, limits[1]))


def _categories(name: str, values: Any) -> tuple[str | int | float | bool, ...]:
    plain = tuple(map(python_value, values))
    if not all(type(value) in (str, int) for value in plain):
        raise CannotAdd(f"column {name!r}: categories must be strings or integers")
    if len(plain) > MAX_SAMPLE_CATEGORIES:
        raise CannotAdd(
            f"column {name!r} has {len(plain)} different strings "
            f"(at most {MAX_SAMPLE_CATEGORIES}); is it an identifier?"
        )
    return plain
