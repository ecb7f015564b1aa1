"""What a demo model is made of."""

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

    `named_columns`: fit on a DataFrame, so that the estimator looks its columns up by name. `gap`: the rows are in the
    order of time, and the last quarter is held out, after so many rows that are left out, so that what a row is to
    foresee has not begun when the last row that was learnt from ends. `entities`: asked about the records of entities.
    """

    name: str
    source: str
    read: Callable[[], Table]
    estimator: Callable[[], Any]
    named_columns: bool = False
    gap: int | None = None
    entities: bool = False
