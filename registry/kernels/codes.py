"""Categories of a DataFrame as the codes that boosters give them: their places in lists kept from the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from registry.rows.features import Rows


@dataclass(frozen=True, slots=True)
class CategoryCodes:
    """What a booster itself does to a DataFrame first, as a transformer.

    `categories` has a list for each column of categories, None for the others. A category that is not listed is
    missing, or refused if `refuses_unknown`.
    """

    categories: tuple[Sequence[Any] | None, ...]
    refuses_unknown: bool

    def transform(self, frame: pd.DataFrame) -> Rows:
        """The matrix of codes and numbers, shape (rows, columns); NaN for missing. Raises ValueError."""
        matrix = np.empty(frame.shape)
        for index, listed in enumerate(self.categories):
            column = frame.iloc[:, index]
            if listed is None:
                matrix[:, index] = column.to_numpy(np.float64, na_value=np.nan)
                continue
            codes = column.cat.set_categories(listed).cat.codes.to_numpy(np.float64)
            if self.refuses_unknown and ((codes < 0) & column.notna().to_numpy()).any():
                raise ValueError(f"a category of {column.name!r} is not listed")
            matrix[:, index] = np.where(codes < 0, np.nan, codes)
        return matrix
