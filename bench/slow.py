"""A model that is slow by nature: so many milliseconds of arithmetic for every row, in a batch as well as alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin

from registry.adding import add_version

SECONDS_A_ROW = 0.005


class SlowRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Multiplies matrices, without the GIL, until the time of its rows is over; answers the first feature."""

    def fit(self, X: Any, _y: Any) -> SlowRegressor:  # noqa: N803 - scikit-learn's names
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        matrix, until = np.ones((200, 200)), time.thread_time() + SECONDS_A_ROW * len(X)
        while time.thread_time() < until:
            matrix = matrix @ matrix / 200
        return X[:, 0] + matrix[0, 0] - 1


def add_slow_model(root: Path) -> None:
    """Write it as `slow` below a model directory."""
    sample = pd.DataFrame({"x": np.linspace(0, 1, 5)})
    add_version(root, "slow", SlowRegressor().fit(sample.to_numpy(), None), sample, margin=None)
