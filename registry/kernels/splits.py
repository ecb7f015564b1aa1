"""Splits by category as columns of their own.

A split by category asks whether the category is in a set. The set becomes a column: 0 for the categories that go
left, 1 for those that go right, looked up from the feature's own value. So walking needs to know nothing of
categories.
"""

from __future__ import annotations

from collections.abc import Callable

from registry.kernels.columns import Computed, Tabled
from registry.kernels.unsupported import Unsupported

Plan = list[Computed | Tabled]


class Splits:
    """The columns that splits by category add to a plan; equal splits share one."""

    THRESHOLD = 0.5

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._places: dict[Tabled, int] = {}

    def add(self, feature: int, goes_left: Callable[[float], bool]) -> int:
        """The place of the column for a split of the column at `feature`, which holds codes of categories.

        `goes_left` is asked for each code, NaN for a missing value and whatever has no code. Raises Unsupported.
        """
        column = self._plan[feature]
        if isinstance(column, Computed):
            raise Unsupported("a split by category of a computed number")
        table = tuple(0.0 if goes_left(code) else 1.0 for code in column.table)
        split = Tabled(column.source, table, column.searched)
        if split not in self._places:
            self._places[split] = len(self._plan)
            self._plan.append(split)
        return self._places[split]
