"""0.0 and -0.0 share a cached answer only where nothing but trees sees the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import ensemble, tree
from sklearn.linear_model import LinearRegression

from registry.estimator import only_compares
from registry.store.add import add_version

TABLE = pd.DataFrame({"x": [-1.0, 0.0, 2.0, 3.0]})
Y = [0.0, 1.0, 2.0, 3.0]


class RandomForestRegressor(LinearRegression):  # type: ignore[misc]
    """Named like a tree."""


class Inverse(LinearRegression):  # type: ignore[misc]
    """Tells -0.0 from 0.0."""

    def predict(self, X: Any) -> Any:  # noqa: N803 - scikit-learn's name
        with np.errstate(divide="ignore"):
            return np.sign(1 / np.asarray(X)[:, 0])


@pytest.mark.parametrize(
    ("estimator", "same"),
    [
        (tree.ExtraTreeRegressor(), True),
        (ensemble.RandomForestRegressor(2), True),
        (ensemble.HistGradientBoostingRegressor(max_iter=2), True),
        (ensemble.GradientBoostingRegressor(n_estimators=2), True),
        (ensemble.GradientBoostingRegressor(n_estimators=2, init="zero"), True),
        (ensemble.GradientBoostingRegressor(n_estimators=2, init=Inverse()), False),
        (ensemble.GradientBoostingRegressor(n_estimators=2, init=LinearRegression()), False),
        (ensemble.BaggingRegressor(Inverse(), n_estimators=2), False),
        (LinearRegression(), False),
        (RandomForestRegressor(), False),
        (type("GradientBoostingRegressor", (ensemble.GradientBoostingRegressor,), {})(), False),
    ],
)
def test_only_what_consists_of_trees_alone_ignores_the_sign_of_zero(estimator: Any, *, same: bool) -> None:
    estimator.fit(TABLE.to_numpy(), Y)
    assert only_compares(estimator) == same
    if same:
        assert estimator.predict([[0.0]]) == estimator.predict([[-0.0]])


@pytest.mark.parametrize(("init", "same"), [(None, True), (LinearRegression(), False)])
def test_loaded_model_knows(tmp_path: Path, init: Any, *, same: bool) -> None:
    estimator = ensemble.GradientBoostingRegressor(n_estimators=2, init=init).fit(TABLE, Y)
    assert add_version(tmp_path / "models", "boosted", estimator, TABLE).ignores_sign_of_zero == same
