"""What boosters need besides a compiled form: one thread, their names of columns, text as categories."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.estimator import input_names, libraries, with_categories

lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
xgboost = pytest.importorskip("xgboost", exc_type=(ImportError, OSError))  # type: ignore[arg-type]

RANDOM = np.random.default_rng(2)
TABLE = pd.DataFrame(RANDOM.normal(size=(400, 3)), columns=["mean size", "b", "c_d"])
Y = (TABLE["b"] > 0).astype(int)
TWO_THREADS = {"n_estimators": 3, "n_jobs": 2}

PREDICT = """
import os, sys, joblib, numpy
from registry.threads import keep_to_one_thread
estimator = joblib.load(sys.argv[1])
keep_to_one_thread(estimator)
estimator.predict(numpy.zeros((5000, 3)))
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_booster_that_was_fitted_with_two_threads_predicts_in_one(tmp_path: Path, library: str) -> None:
    kind = xgboost.XGBClassifier if library == "xgboost" else lightgbm.LGBMClassifier
    estimator = make_pipeline(StandardScaler(), kind(**TWO_THREADS)).fit(TABLE.to_numpy(), Y)
    joblib.dump(estimator, tmp_path / "model.joblib")
    command = [sys.executable, "-W", "ignore", "-c", PREDICT, str(tmp_path / "model.joblib")]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_columns_keep_their_names_where_lightgbm_spells_them_otherwise() -> None:
    estimator = lightgbm.LGBMClassifier(n_estimators=2, n_jobs=1, verbose=-1).fit(TABLE, Y)
    assert input_names(estimator, list(TABLE.columns)) == ["mean size", "b", "c_d"]
    assert input_names(estimator, ["b", "c_d"]) == ["mean_size", "b", "c_d"]


def test_other_estimators_names_are_taken_as_they_are() -> None:
    renamed = TABLE.rename(columns={"mean size": "mean_size"})
    estimator = LogisticRegression().fit(renamed, Y)
    assert input_names(estimator, list(TABLE.columns)) == ["mean_size", "b", "c_d"]
    assert input_names(LogisticRegression().fit(TABLE.to_numpy(), Y), list(TABLE.columns)) is None


def test_text_is_categories_for_boosters_alone() -> None:
    table = pd.DataFrame({"fuel": ["gas", None, "oil"], "size": [1.0, 2.0, None]})
    assert list(map(str, with_categories(xgboost.XGBRegressor(), table).dtypes)) == ["category", "float64"]
    assert with_categories(LogisticRegression(), table) is table
    assert with_categories(make_pipeline(xgboost.XGBRegressor()), table) is table


def test_libraries_are_those_of_all_steps() -> None:
    assert libraries(make_pipeline(StandardScaler(), xgboost.XGBRegressor())) == {"sklearn", "xgboost"}
