"""Searches and other wrappers are compiled and explained as the estimators inside of them are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier, VotingRegressor
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - the search cannot be imported without
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier

from registry.estimator import libraries, unwrap
from registry.store.add import add_version
from tests.registry.ensembles import SMALL
from tests.registry.parity import mixed, numbers, pair, rows_of_table, target

TABLE = numbers()
ROWS = np.ascontiguousarray(TABLE.to_numpy()[:60])


def scaled() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression())


def resampled() -> Any:
    sampling, pipelines = pytest.importorskip("imblearn.over_sampling"), pytest.importorskip("imblearn.pipeline")
    return pipelines.make_pipeline(StandardScaler(), sampling.RandomOverSampler(random_state=0), LogisticRegression())


WRAPPERS: dict[str, tuple[Callable[[], Any], int]] = {
    "grid search of a forest": (lambda: GridSearchCV(RandomForestClassifier(**SMALL), {"max_depth": [2, 3]}, cv=2), 3),
    "grid search of a pipeline": (lambda: GridSearchCV(scaled(), {"logisticregression__C": [0.1, 1.0]}, cv=2), 2),
    "random search": (lambda: RandomizedSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, n_iter=2, cv=2, random_state=0), 0),
    "halving search": (lambda: HalvingGridSearchCV(scaled(), {"logisticregression__C": [0.1, 1.0]}, cv=2), 2),
    "search in a pipeline": (
        lambda: make_pipeline(StandardScaler(), GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2)),
        3,
    ),
    "frozen step in a pipeline": (
        lambda: make_pipeline(FrozenEstimator(StandardScaler().fit(TABLE.to_numpy())), LogisticRegression()),
        2,
    ),
    "self-trained": (lambda: SelfTrainingClassifier(LogisticRegression()), 2),
    "imbalanced-learn's pipeline": (resampled, 2),
}
"""Each with its number of classes, 0 for numbers."""


def labels(estimator: Any, classes: int) -> Any:
    """A target for an estimator; classes are numbers, and some are unknown to one that labels them itself."""
    values = target(TABLE, classes)
    found = np.unique(values, return_inverse=True)[1] if classes else values
    if isinstance(estimator, SelfTrainingClassifier):
        found[::5] = -1
    return found


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_estimator_answers_the_same(name: str) -> None:
    make, classes = WRAPPERS[name]
    estimator = make()
    pair(estimator, TABLE, labels(estimator, classes)).assert_same(ROWS)


def test_search_fitted_on_named_columns_answers_the_same() -> None:
    table = mixed().drop(columns=["income"]).dropna()
    encoded = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["city", "heating"]), remainder="passthrough"
    )
    search = GridSearchCV(
        make_pipeline(encoded, LogisticRegression(max_iter=2000)), {"logisticregression__C": [0.1]}, cv=2
    )
    made = pair(search, table, target(table, 2), frame=True)
    made.assert_same(rows_of_table(made.schema, table)[:60])


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_estimator_is_explained_as_it_is_alone(name: str, tmp_path: Path) -> None:
    make, classes = WRAPPERS[name]
    estimator = make()
    estimator.fit(TABLE.to_numpy(), labels(estimator, classes))
    rows = ROWS[:5]
    wrapped, alone = (
        add_version(tmp_path, model, inner, TABLE)
        for model, inner in (("wrapped", estimator), ("alone", unwrap(estimator)))
    )
    assert wrapped.compiled
    assert wrapped.explainer is not None
    assert alone.explainer is not None
    assert wrapped.explainer.method in ("linear", "tree-path-dependent")
    np.testing.assert_array_equal(wrapped.contributions(rows).values, alone.contributions(rows).values)


def test_libraries_inside_of_wrappers_are_found() -> None:
    lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
    booster = lightgbm.LGBMRegressor(n_estimators=2, verbose=-1)
    search = GridSearchCV(booster, {"num_leaves": [3]}, cv=2)
    vote = VotingRegressor([("linear", Ridge()), ("boosted", make_pipeline(StandardScaler(), booster))])
    for estimator in (search, vote):
        assert libraries(estimator.fit(TABLE.to_numpy(), target(TABLE))) == {"lightgbm", "sklearn"}


def test_class_that_extends_a_wrapper_is_left_alone() -> None:
    class Own(GridSearchCV):  # type: ignore[misc]
        pass

    search = Own(Ridge(), {"alpha": [1.0]}, cv=2).fit(TABLE.to_numpy(), target(TABLE))
    assert unwrap(search) is search
