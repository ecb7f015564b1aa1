"""What people have in hand as what the service takes: instances by name or by position, as JSON or as CSV."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np


class _PandasTable(Protocol):
    @property
    def itertuples(self) -> Any: ...


class _PolarsTable(Protocol):
    @property
    def to_dicts(self) -> Any: ...


class _ArrowTable(Protocol):
    @property
    def to_pylist(self) -> Any: ...


Table: TypeAlias = (
    "_PandasTable | _PolarsTable | _ArrowTable | np.ndarray[Any, Any]"
    " | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]]"
)
"""Rows as a client takes them: a DataFrame (of pandas, polars or Arrow), a two-dimensional array, dictionaries by the
names of features, lists in the order of the model's features, or one dictionary for one row."""

Instances: TypeAlias = "list[dict[str, Any]] | list[list[Any]]"

LINES_AT_ONCE = 1000

MISSING = frozenset({"nan", "NaN", "NaT", "<NA>"})
"""How the missing values of Python, numpy and pandas show themselves; texts come before that."""


def instances_of(rows: Table) -> Instances:
    """The instances of a request. Missing values (None, NaN, NaT, NA) become null, times ISO 8601.

    Raises TypeError, and ValueError naming the row and the column, for what no model can take.
    """
    table: Any = rows
    if hasattr(table, "itertuples"):
        return _of_frame(table)
    for method in ("to_dicts", "to_pylist"):  # of polars, and of Arrow
        if hasattr(table, method):
            table = getattr(table, method)()
    if getattr(getattr(table, "dtype", None), "names", None):  # an array of named columns
        return [_named(number, dict(zip(table.dtype.names, row, strict=True))) for number, row in enumerate(table)]
    if hasattr(table, "tolist"):
        if getattr(table, "ndim", 0) != 2:
            raise TypeError("an array must have two dimensions, rows and features; a Series has `to_frame`")
        table = table.tolist()
    if isinstance(table, Mapping):
        table = [table]
    if isinstance(table, str | bytes) or not isinstance(table, Iterable):
        raise TypeError(f"rows are a DataFrame, an array, dictionaries or lists, not a {type(table).__name__}")
    return [_instance(number, row) for number, row in enumerate(table)]


def index_of(rows: Table) -> Any:
    """The index of a pandas DataFrame, which answers keep; None for everything else."""
    return getattr(rows, "index", None) if hasattr(rows, "itertuples") else None


def values_of(values: Any) -> list[Any]:
    """Labels, numbers or, for a model with several targets, objects by target: one for each instance."""
    if hasattr(values, "itertuples"):
        return list(_of_frame(values))
    items = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise TypeError("values are a list, an array or a Series, one for each row")
    return [
        _named(number, item) if isinstance(item, Mapping) else _cell(number, "its value", item)
        for number, item in enumerate(items)
    ]


def of_requests(request_id: str | Sequence[str] | None, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Outcomes of the rows of one request, in order, or of one request each."""
    if isinstance(request_id, str):
        return [{"request_id": request_id, "instance": place, "outcome": value} for place, value in enumerate(values)]
    if request_id is None or len(request_id) != len(values):
        raise TypeError("outcomes without rows need the request_id of their predictions, one for all or one for each")
    return [{"request_id": one, "outcome": value} for one, value in zip(request_id, values, strict=True)]


def csv_of(instances: Sequence[Any]) -> Iterator[bytes]:
    """Instances by name as CSV, a piece at a time; a missing value is an empty cell."""
    names = list(dict.fromkeys(name for instance in instances for name in instance))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for first in range(0, len(instances), LINES_AT_ONCE):
        writer.writerows(
            [_csv_cell(instance.get(name)) for name in names] for instance in instances[first : first + LINES_AT_ONCE]
        )
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


def plain(value: Any) -> Any:  # noqa: PLR0911 - a kind of value each
    """A value as JSON has it. Raises ValueError for an infinite number, TypeError for what JSON does not have."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if str(value) in MISSING:
        return None
    if isinstance(value, float | decimal.Decimal):
        if math.isinf(value):
            raise ValueError("is infinite")
        return float(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if type(value).__name__ == "datetime64":  # its item may be an integer
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of numpy
        return plain(value.item())
    raise TypeError(f"is a {type(value).__name__}, which cannot be sent")


def _of_frame(frame: Any) -> list[dict[str, Any]]:
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    if not names:
        raise ValueError("the DataFrame has no columns")
    columns = [
        [_cell(number, name, value) for number, value in enumerate(frame.iloc[:, position].astype(object).tolist())]
        for position, name in enumerate(names)
    ]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _instance(number: int, row: Any) -> Any:
    if isinstance(row, Mapping):
        return _named(number, row)
    cells = row.tolist() if hasattr(row, "tolist") else row
    if isinstance(cells, str | bytes) or not isinstance(cells, Iterable):
        raise TypeError(f"row {number} is a {type(row).__name__}, not a list or a dictionary; for one row, send [row]")
    return [_cell(number, f"column {position}", cell) for position, cell in enumerate(cells)]


def _named(number: int, row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _cell(number, str(name), value) for name, value in row.items()}


def _cell(number: int, name: str, value: Any) -> Any:
    try:
        return plain(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"row {number}: {name} {error}") from None


def _csv_cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
