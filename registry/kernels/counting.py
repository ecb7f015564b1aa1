"""Counts the cells of rows in bins, or by value; a call with one row of 30 features takes half a microsecond."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from registry.kernels.kernel import MATRIX, OUT, Kernel, part_of_kernel, writable
from registry.rows.features import Rows

PLACE, IS_OUTPUT, SIZE, SCALE, UNSEEN_FROM, LOW, HIGH, VALUES = range(8)
"""A line of the table of columns: the column's place among the features or the outputs, its number of bins or of listed
values, the bins in a unit (0 for listed values), the code from which a value that is not listed is unseen, the range of
the sample, and from VALUES on the edges of the bins or the listed values.

It is a plain matrix, because numba takes 2 us to recognize an array of records.
"""

LINE = VALUES + 11
"""Numbers in a line: ten bins have eleven edges."""

CELLS = 16
"""Counts of a column: ten of bins or listed values, then these."""

OTHER, UNSEEN, BELOW, ABOVE, MISSING = range(10, 15)
"""Of values that are not listed, those that the sample had and those that it had not. What lies below or above the
range of the sample is counted beside its bin."""


@part_of_kernel
def _bin(columns: Rows, line: int, cell: float) -> int:
    """The bin of a cell. One at an edge belongs to the bin above; the outer bins also hold what lies outside."""
    size, scale = int(columns[line, SIZE]), columns[line, SCALE]
    if cell >= columns[line, VALUES + size - 1]:
        return size - 1
    if cell < columns[line, VALUES + 1]:
        return 0
    # near an edge it may be one off; the difference, taken before it is scaled, might be infinite
    found = min(max(int(cell * scale - columns[line, VALUES] * scale), 0), size - 1)
    while cell < columns[line, VALUES + found]:
        found -= 1
    while cell >= columns[line, VALUES + found + 1]:
        found += 1
    return found


@part_of_kernel
def _listed(columns: Rows, line: int, cell: float) -> int:
    """The place of a cell among the listed values; UNSEEN or OTHER for any other."""
    for place in range(int(columns[line, SIZE])):
        if cell == columns[line, VALUES + place]:
            return place
    return UNSEEN if cell >= columns[line, UNSEEN_FROM] else OTHER


def _count(rows: Rows, outputs: Rows, columns: Rows, counts: NDArray[np.float64]) -> None:
    """Add the cells of some rows, and of outputs, to `counts`, which has CELLS numbers for each line of `columns`."""
    # without slices, of which each costs as much as a cell
    for line in range(len(columns)):
        place, is_output, start = int(columns[line, PLACE]), columns[line, IS_OUTPUT] != 0.0, CELLS * line
        low, high, is_binned = columns[line, LOW], columns[line, HIGH], columns[line, SCALE] != 0.0
        for row in range(len(outputs) if is_output else len(rows)):
            cell = outputs[row, place] if is_output else rows[row, place]
            if np.isnan(cell):
                counts[start + MISSING] += 1.0
                continue
            if cell < low:
                counts[start + BELOW] += 1.0
            elif cell > high:
                counts[start + ABOVE] += 1.0
            found = _bin(columns, line, cell) if is_binned else _listed(columns, line, cell)
            counts[start + found] += 1.0


def _measure(counts: Rows, compared: Rows, minimum: float, found: Rows) -> None:
    """Fill `found` with two numbers for each column: its rows, and the population stability index of these.

    `counts` has CELLS numbers a column, in one row. `compared` has the shares of bins, then of others and of missing
    ones; NaN for a bin that there is not. A share counts as `minimum` at least.
    """
    others = compared.shape[1] - 2
    for line in range(len(compared)):
        start, rows, index = CELLS * line, 0.0, 0.0
        for cell in range(others + 2):
            rows += counts[0, start + cell]
        rows += counts[0, start + MISSING]
        found[line, 0] = rows
        for place in range(others + 2):
            expected = compared[line, place]
            if rows == 0.0 or np.isnan(expected):
                continue
            cell = counts[0, start + place]
            if place == others:
                cell += counts[0, start + UNSEEN]
            elif place > others:
                cell = counts[0, start + MISSING]
            share = max(cell / rows, minimum)
            index += (share - expected) * np.log(share / expected)
        found[line, 1] = index


COUNT = Kernel(_count, OUT, OUT, OUT, writable(types.float64, 1))
"""All its arrays must be writable: numba takes a microsecond to find that such a one may be read only."""

MEASURE = Kernel(_measure, MATRIX, MATRIX, types.float64, OUT)
