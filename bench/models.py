"""Models that the demos lack and benchmarks need: larger trees, and some models that nothing can compile."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from examples.train import breast_cancer
from registry.store.add import add_version

SECONDS_A_ROW = 0.005


class UntaughtRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Learns nothing."""

    def fit(self, X: Any, _y: Any) -> Self:  # noqa: N803 - scikit-learn's names
        self.n_features_in_ = X.shape[1]
        return self


class SlowRegressor(UntaughtRegressor):
    """Multiplies matrices, without the GIL, until the time of its rows is over; answers the first feature."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        matrix, until = np.ones((200, 200)), time.thread_time() + SECONDS_A_ROW * len(X)
        while time.thread_time() < until:
            matrix = matrix @ matrix / 200
        return X[:, 0] + matrix[0, 0] - 1


class HoldingRegressor(UntaughtRegressor):
    """Runs Python code until the time of its rows is over; answers the first feature.

    With `switch_seconds` it changes for how long at a time.
    """

    def __init__(self, switch_seconds: float | None = None) -> None:
        self.switch_seconds = switch_seconds

    def predict(self, X: Any) -> Any:  # noqa: N803
        if self.switch_seconds is not None:
            sys.setswitchinterval(self.switch_seconds)
        until = time.thread_time() + SECONDS_A_ROW * len(X)
        while time.thread_time() < until:
            sum(range(200))
        return X[:, 0]


class LeakingRegressor(UntaughtRegressor):
    """Keeps a hundred kilobytes for every row that it is asked; answers the first feature."""

    def fit(self, X: Any, _y: Any) -> Self:  # noqa: N803
        self.kept_: list[bytearray] = []
        return super().fit(X, _y)

    def predict(self, X: Any) -> Any:  # noqa: N803
        self.kept_ += [bytearray(b"x" * 100_000) for _ in X]
        return X[:, 0]


def add_untaught(root: Path, name: str, estimator: UntaughtRegressor, *, margin: float | None) -> None:
    """A version of one feature."""
    sample = pd.DataFrame({"x": np.linspace(0, 1, 5)})
    add_version(root, name, estimator.fit(sample.to_numpy(), None), sample, margin=margin)


def add_leaking(root: Path) -> None:
    """`leaking`: what it is asked grows the process that asks."""
    add_untaught(root, "leaking", LeakingRegressor(), margin=1.0)


def add_slow(root: Path) -> None:
    """`slow`: so many milliseconds for every row, in a batch as well as alone."""
    add_untaught(root, "slow", SlowRegressor(), margin=1e6)


def add_holding(root: Path, switch_seconds: float | None) -> None:
    """`holding`: as slow as `slow`, and nobody else runs Python code meanwhile but for the interpreter's switching."""
    add_untaught(root, "holding", HoldingRegressor(switch_seconds), margin=1e6)


def forest_of_100() -> tuple[pd.DataFrame, Any]:
    """6,000 rows of 30 features, of two classes; a forest on them has trees of some hundred leaves."""
    x, y = make_classification(6000, 30, n_informative=10, flip_y=0.1, random_state=0)
    return pd.DataFrame(x, columns=[f"x{index}" for index in range(30)]), pd.Series(y)


def add_forest(root: Path) -> None:
    """`forest`: 100 trees of depth 12."""
    table, target = forest_of_100()
    estimator = RandomForestClassifier(100, max_depth=12, random_state=0).fit(table.to_numpy(), target)
    add_version(root, "forest", estimator, table)


def add_histogram(root: Path) -> None:
    """`histogram`: histogram boosting of 100 stages, on the tumours of the forest."""
    table, target = breast_cancer()
    estimator = HistGradientBoostingClassifier(random_state=0).fit(table.to_numpy(), target)
    add_version(root, "histogram", estimator, table)


def add_support_vectors(root: Path) -> None:
    """`support-vectors`: 2,000 of them, of 30 features each, which every row is compared with."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(2000, 30)), columns=[f"x{index}" for index in range(30)])
    target = np.sin(table["x0"]) + random.normal(size=len(table))
    estimator = make_pipeline(StandardScaler(), SVR(epsilon=0.0)).fit(table.to_numpy(), target)
    add_version(root, "support-vectors", estimator, table)
