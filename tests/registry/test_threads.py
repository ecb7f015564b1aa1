"""Every estimator that another one holds predicts in one thread, wherever it is kept and whatever its parameter is."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from harness.service import ROOT
from registry.threads import THREADS, in_one_thread, keep_to_one_thread, parts_of

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(120, 3))
Y = (X[:, 0] > 0).astype(int)


def boosted() -> Any:
    lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
    return lightgbm.LGBMClassifier(n_estimators=3, n_jobs=2, verbose=-1)


def boosted_with_alias() -> Any:
    lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
    return lightgbm.LGBMClassifier(n_estimators=3, num_threads=2, verbose=-1)


def boosted_regressor() -> Any:
    lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
    return lightgbm.LGBMRegressor(n_estimators=3, n_jobs=2, verbose=-1)


def catboost() -> Any:
    library = pytest.importorskip("catboost", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
    return library.CatBoostClassifier(iterations=3, thread_count=2, verbose=0, allow_writing_files=False)


def bagged() -> Any:
    return BaggingClassifier(LogisticRegression(), n_estimators=4, n_jobs=2)


MAKERS: dict[str, Any] = {
    "LightGBM": boosted,
    "LightGBM, by another name of the parameter": boosted_with_alias,
    "CatBoost": catboost,
    "CatBoost in a pipeline": lambda: make_pipeline(StandardScaler(), catboost()),
    "GridSearchCV": lambda: GridSearchCV(boosted(), {"num_leaves": [3, 5]}, cv=2, n_jobs=2),
    "CalibratedClassifierCV": lambda: CalibratedClassifierCV(boosted(), cv=2, n_jobs=2),
    "VotingClassifier": lambda: VotingClassifier([("a", boosted()), ("b", LogisticRegression())], n_jobs=2),
    "StackingClassifier": lambda: StackingClassifier([("a", boosted())], boosted(), cv=2, n_jobs=2),
    "OneVsRestClassifier": lambda: OneVsRestClassifier(boosted(), n_jobs=2),
    "AdaBoostClassifier": lambda: AdaBoostClassifier(boosted(), n_estimators=2),
    "BaggingClassifier": bagged,
    "TransformedTargetRegressor": lambda: TransformedTargetRegressor(boosted_regressor(), transformer=StandardScaler()),
    "ColumnTransformer": lambda: make_pipeline(
        ColumnTransformer([("a", StandardScaler(), [0]), ("b", StandardScaler(), [1, 2])], n_jobs=2),
        LogisticRegression(),
    ),
    "FeatureUnion": lambda: make_pipeline(
        FeatureUnion([("a", StandardScaler()), ("b", StandardScaler())], n_jobs=2), LogisticRegression()
    ),
    "RandomForestRegressor": lambda: RandomForestRegressor(5, n_jobs=-1),
    "ExtraTreesRegressor in a pipeline": lambda: make_pipeline(StandardScaler(), ExtraTreesRegressor(5, n_jobs=-1)),
    "RandomForestClassifier": lambda: RandomForestClassifier(5, n_jobs=2),
    "KNeighborsClassifier": lambda: KNeighborsClassifier(n_jobs=2),
}

LOAD = """
import sys, numpy
from pathlib import Path
from registry.formats.artefact import load_content
from serving.process.kernel import lasting_threads
for path in map(Path, sys.argv[1:]):
    load_content(path, path.read_bytes(), "joblib").predict(numpy.zeros((5000, 3)))
    print(path.stem, len(lasting_threads()))
"""


def test_whatever_holds_it_predicts_in_one_thread(tmp_path: Path) -> None:
    names = []
    for number, make in enumerate(MAKERS.values()):
        joblib.dump(make().fit(X, Y), tmp_path / f"{number}.joblib")
        names.append(str(tmp_path / f"{number}.joblib"))
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LOAD, *names]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    threads = dict(line.split() for line in done.stdout.splitlines() if line[:1].isdigit())
    assert {name: threads[str(number)] for number, name in enumerate(MAKERS)} == dict.fromkeys(MAKERS, "1")


def several(estimator: Any) -> set[str]:
    """What in an estimator still asks for threads."""
    found = set()
    for part in parts_of(estimator):
        values = vars(part)
        extra = values.get("_other_params") or {}
        found |= {f"{type(part).__name__}.{name}" for name in THREADS if values.get(name, 1) != 1}
        found |= {f"{type(part).__name__}.{name}" for name in THREADS if extra.get(name, 1) != 1}
    return found


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_parameters_of_all_parts_say_one(make: Any) -> None:
    estimator = make().fit(X, Y)
    keep_to_one_thread(estimator)
    assert several(estimator) == set()


def test_an_estimator_of_ones_own_code_is_looked_into() -> None:
    class Plain:
        """No estimator of scikit-learn's."""

        def __init__(self) -> None:
            self.by_name = {"one": [RandomForestClassifier(2, n_jobs=3)]}
            self.several = np.array([RandomForestClassifier(2, n_jobs=3), None], dtype=object)
            self.call = RandomForestClassifier(2, n_jobs=3).fit
            self.later = partial(RandomForestClassifier(2, n_jobs=3).fit, sample_weight=None)
            self.itself = self

    class Own(BaseEstimator):  # type: ignore[misc]
        @property
        def n_jobs(self) -> int:
            return self._threads

        @n_jobs.setter
        def n_jobs(self, value: int) -> None:
            self._threads = value

    own = Own()
    own.n_jobs = 5
    estimator = make_pipeline(FunctionTransformer(Plain), own)
    estimator.extra = Plain()
    assert len(several(estimator)) == 1
    keep_to_one_thread(estimator)
    assert several(estimator) == set()
    assert own.n_jobs == 1


def test_what_it_was_fitted_with_comes_back() -> None:
    for make in (bagged, boosted_with_alias, catboost):
        estimator = make().fit(X, Y)
        before = {name: value for name, value in estimator.get_params().items() if name in THREADS}
        predict = estimator.predict
        with in_one_thread(estimator):
            assert several(estimator) == set()
        assert {name: value for name, value in estimator.get_params().items() if name in THREADS} == before
        assert estimator.predict == predict


def test_no_more_values_are_looked_at_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = LinearRegression()
    holder.many = [LinearRegression() for _ in range(100)]
    assert len(list(parts_of(holder))) == 101
    monkeypatch.setattr("registry.threads.MAX_VALUES", 20)
    assert len(list(parts_of(holder))) <= 20
