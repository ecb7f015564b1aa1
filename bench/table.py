"""A table for the terminal."""

from __future__ import annotations


class Table:
    """Rows under headings, every column as wide as it has to be."""

    def __init__(self, *headings: str) -> None:
        self._rows = [headings]

    def add(self, *cells: object) -> None:
        """One more row."""
        self._rows.append(tuple(str(cell) for cell in cells))

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in self._rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)
