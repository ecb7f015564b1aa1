"""Steps of their own, as people write them; `bench.zoo` copies this file beside an artefact as `own_steps.py`."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin

# the names of arguments and attributes are scikit-learn's
# ruff: noqa: N803, ARG002


class Ratios(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Adds the ratio of two columns to a DataFrame; fails for an array."""

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:
        self.columns_ = list(X.columns)
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        return X.assign(ratio=X["age"] / (X["income"].abs() + 1.0))


class Clip(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Clips an array to the quantiles that it was fitted on."""

    def __init__(self, share: float = 0.01) -> None:
        self.share = share

    def fit(self, X: Any, y: Any = None) -> Self:
        values = np.asarray(X, np.float64)
        self.low_, self.high_ = np.nanquantile(values, self.share, 0), np.nanquantile(values, 1 - self.share, 0)
        return self

    def transform(self, X: Any) -> Any:
        return np.clip(np.asarray(X, np.float64), self.low_, self.high_)


class DateParts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Month and weekday of every column of dates."""

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:
        return self

    def transform(self, X: pd.DataFrame) -> Any:
        times = [pd.to_datetime(X[name]) for name in X.columns]
        return np.column_stack([part for time in times for part in (time.dt.month, time.dt.weekday)]).astype(np.float64)


class Lengths(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Characters and words of a text."""

    def fit(self, X: Any, y: Any = None) -> Self:
        return self

    def transform(self, X: Any) -> Any:
        texts = pd.Series(np.ravel(X)).fillna("")
        return np.column_stack([texts.str.len(), texts.str.split().str.len()]).astype(np.float64)


class NearestMean(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of one's own: the class with the nearest mean."""

    def fit(self, X: Any, y: Any) -> Self:
        values = np.asarray(X, np.float64)
        self.classes_ = np.unique(y)
        self.means_ = np.stack([values[np.asarray(y) == one].mean(axis=0) for one in self.classes_])
        self.n_features_in_ = values.shape[1]
        return self

    def predict(self, X: Any) -> Any:
        values = np.asarray(X, np.float64)
        return self.classes_[((values[:, None] - self.means_) ** 2).sum(axis=2).argmin(axis=1)]
