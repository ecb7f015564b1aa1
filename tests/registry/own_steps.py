"""Steps of one's own, which say nothing about what they take."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin


class OwnStep(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer that learns nothing."""

    def fit(self, _table: Any, _y: Any = None) -> Self:
        return self


class KnownCities(OwnStep):
    """A number for each city, however it is written."""

    def transform(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(city=table["city"].str.strip().str.lower().map({"bern": 1.0, "rome": 2.0}).fillna(0.0))


class Months(OwnStep):
    """The month and the weekday of a column of times."""

    def transform(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(when=table["when"].dt.month, weekday=table["when"].dt.day_of_week)


class WrittenMonths(OwnStep):
    """The month of a date that is a string."""

    def transform(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(when=table["when"].str[5:7].astype(int))


class Regions(OwnStep):
    """The first two digits of a postcode."""

    def transform(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(zip=table["zip"].str[:2].astype(int))


class WrittenRegions(OwnStep):
    """The first two digits of a postcode, of whatever type it is."""

    def transform(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(zip=table["zip"].astype(str).str[:2].astype(int))


class Clipped(OwnStep):
    """Numbers within a range; takes whatever numpy takes."""

    def transform(self, table: Any) -> Any:
        return np.clip(np.asarray(table, np.float64), -1.0, 100.0)


class Lengths(OwnStep):
    """The number of characters of a text."""

    def transform(self, table: pd.DataFrame) -> Any:
        return table.iloc[:, :1].apply(lambda texts: texts.str.len())
