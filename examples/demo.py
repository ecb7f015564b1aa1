"""A demo model: its data, its estimator, and how it is split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

SEED = 20

Table = tuple[pd.DataFrame, "pd.Series[Any]"]


@dataclass(frozen=True)
class Demo:
    """One demo model.

    `named_columns`: fit on a DataFrame, so that the estimator looks its columns up by name. `gap`: the rows are ordered
    by time, the last quarter is held out, and this many rows before it are left out, so that no row for fitting looks
    ahead into the held-out ones. `entities`: predict from the records of entities.
    """

    name: str
    source: str
    read: Callable[[], Table]
    estimator: Callable[[], Any]
    named_columns: bool = False
    gap: int | None = None
    entities: bool = False
