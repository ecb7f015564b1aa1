"""The kernel that builds an estimator's matrix from canonical rows, column by column.

Every supported transformer makes each of its columns from one feature. So a column is either arithmetic on a number
(subtract the mean, divide by the scale) or an entry of a table: the column's value for each value of the feature. A
table has an entry for each code, then one for a missing value and one for a value that is not listed. Numbers are
looked up by searching the listed values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.kernels.kernel import MATRIX, NUMBERS, OUT, Kernel, Unsupported, part_of_kernel, records
from registry.rows.features import Rows

SUBTRACT, DIVIDE, MULTIPLY, ADD, RAISE_TO, CUT_TO, FILL, IS_MISSING, ROUND_TO_SINGLE = range(9)
Step = tuple[int, float]

STEP = np.dtype([("operand", "f8"), ("operation", "i4")], align=True)
COLUMN = np.dtype([("source", "i4"), ("listed", "i4"), ("start", "i4"), ("stop", "i4"), ("table", "i4")])
"""`listed` is the number of values in the column's table, -1 for arithmetic. `start` to `stop` are the steps, or,
where values must be searched, their range in the list of listed values. `table` is where the table begins."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A column that is arithmetic on the feature at `source`."""

    source: int
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Tabled:
    """A column that is looked up by the value of the feature at `source`.

    `table` holds a number for each of the listed values, then for missing and for anything else. `searched` are the
    listed values, sorted; None when the feature's values are its codes 0, 1, 2...
    """

    source: int
    table: tuple[float, ...]
    searched: tuple[float, ...] | None = None


Plan = list[Computed | Tabled]


@part_of_kernel
def _entry(value: Any, column: Any, searched: Any) -> Any:
    """The index of the value's entry in the column's table."""
    if math.isnan(value):
        return column.listed
    if column.start == column.stop:
        return int(value) if 0.0 <= value < column.listed else column.listed + 1
    found = np.searchsorted(searched[column.start : column.stop], value)
    if found < column.listed and searched[column.start + found] == value:
        return found
    return column.listed + 1


@part_of_kernel
def _changed(value: Any, operation: Any, operand: Any) -> Any:
    """The value after one step of arithmetic; `else` keeps a missing value missing."""
    if operation == SUBTRACT:
        value -= operand
    elif operation == DIVIDE:
        value /= operand
    elif operation == MULTIPLY:
        value *= operand
    elif operation == ADD:
        value += operand
    elif operation == RAISE_TO:
        value = operand if value < operand else value  # noqa: FURB136 - max() orders its arguments otherwise
    elif operation == CUT_TO:
        value = operand if value > operand else value  # noqa: FURB136
    elif operation == FILL:
        value = operand if math.isnan(value) else value
    elif operation == ROUND_TO_SINGLE:
        value = np.float64(np.float32(value))
    else:
        value = 1.0 if math.isnan(value) else 0.0
    return value


def _build(rows: Any, columns: Any, steps: Any, searched: Any, tables: Any, out: Any) -> None:
    for r in range(rows.shape[0]):
        for c in range(columns.shape[0]):
            column = columns[c]
            value = rows[r, column.source]
            if column.listed >= 0:
                out[r, c] = tables[column.table + _entry(value, column, searched)]
                continue
            for s in range(column.start, column.stop):
                value = _changed(value, steps[s].operation, steps[s].operand)
            # an estimator refuses a value that overflowed
            out[r, c] = math.nan if column.stop > column.start and math.isinf(value) else value


BUILD = Kernel(_build, MATRIX, records(COLUMN), records(STEP), NUMBERS, NUMBERS, OUT)


def builder(plan: Plan) -> Callable[[Rows], Rows]:
    """A function from rows, shape (rows, features), to the matrix, shape (rows, columns)."""
    build = BUILD.load()
    columns, steps, searched, tables = _packed(plan)
    width = len(plan)

    def matrix(rows: Rows) -> Rows:
        out = np.empty((len(rows), width))
        build(rows, columns, steps, searched, tables, out)
        return out

    return matrix


def _packed(plan: Plan) -> tuple[NDArray[Any], NDArray[Any], Rows, Rows]:
    columns: list[tuple[int, int, int, int, int]] = []
    steps: list[tuple[float, int]] = []
    searched: list[float] = []
    tables: list[float] = []
    for column in plan:
        if isinstance(column, Computed):
            columns.append((column.source, -1, len(steps), len(steps) + len(column.steps), 0))
            steps += [(operand, operation) for operation, operand in column.steps]
        else:
            values = column.searched or ()
            columns.append(
                (column.source, len(column.table) - 2, len(searched), len(searched) + len(values), len(tables))
            )
            searched += values
            tables += column.table
    return (
        np.array(columns, COLUMN),
        np.array(steps, STEP),
        np.array(searched, np.float64),
        np.array(tables, np.float64),
    )


def bits_of(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """The bits of 32-bit words, the lowest first: which codes are in a set of categories."""
    return np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little").astype(bool)


class Splits:
    """The columns that splits by category add to a plan, so that walking a tree needs no categories.

    A split by category asks whether the category is in a set. Its column is 0 for the categories that go left, 1 for
    those that go right, looked up by the feature's own value. Equal splits share a column.
    """

    THRESHOLD = 0.5

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._places: dict[Tabled, int] = {}

    def add(self, feature: int, goes_left: Callable[[float], bool]) -> int:
        """The index of the column for a split of the column at `feature`, which holds codes of categories.

        `goes_left` is called for each code, with NaN for missing and unknown values. Raises Unsupported.
        """
        column = self._plan[feature]
        if isinstance(column, Computed):
            raise Unsupported("a tree splits by category on a computed number")
        table = tuple(0.0 if goes_left(code) else 1.0 for code in column.table)
        split = Tabled(column.source, table, column.searched)
        if split not in self._places:
            self._places[split] = len(self._plan)
            self._plan.append(split)
        return self._places[split]
