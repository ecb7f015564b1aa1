"""XGBoost and LightGBM, added by the command line and served by forked workers, though saved with threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from harness.service import FORKSERVE, Service
from registry.store.manifest import read_manifest

lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
xgboost = pytest.importorskip("xgboost", exc_type=(ImportError, OSError))  # type: ignore[arg-type]

RANDOM = np.random.default_rng(1)
TABLE = pd.DataFrame(
    {
        "mean radius": RANDOM.normal(14, 3, 300),
        "fuel": pd.Categorical(RANDOM.choice(["coal", "gas", "oil"], 300)),
        "rooms": RANDOM.integers(1, 6, 300),
    }
)
BOUGHT = (TABLE["mean radius"] + 4 * (TABLE["fuel"] == "gas") + RANDOM.normal(size=300) > 15).astype(int)
ROWS = TABLE[:40]


@pytest.fixture(scope="module")
def boosters() -> dict[str, Any]:
    """Estimators as users save them: fitted with two threads each."""
    made = {
        "xgboost": xgboost.XGBClassifier(n_estimators=20, n_jobs=2, enable_categorical=True),
        "lightgbm": lightgbm.LGBMClassifier(n_estimators=20, n_jobs=2, verbose=-1),
    }
    return {name: estimator.fit(TABLE, BOUGHT) for name, estimator in made.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, boosters: dict[str, Any]) -> Path:
    """A model directory that `forkserve add` has filled, from a table of plain text."""
    directory = tmp_path_factory.mktemp("boosters")
    TABLE.assign(bought=BOUGHT).to_csv(directory / "sample.csv", index=False)
    for name, estimator in boosters.items():
        joblib.dump(estimator, directory / f"{name}.joblib")
        add = [str(FORKSERVE), "add", f"{name}.joblib", "--name", name, "--data", "sample.csv", "--target", "bought"]
        environ = os.environ | {"MODEL_DIR": "models"}
        done = subprocess.run(add, cwd=directory, env=environ, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    return directory / "models"


@pytest.mark.parametrize("compiled", ["true", "false"])
def test_forked_workers_answer_as_the_booster_does(models: Path, boosters: dict[str, Any], compiled: str) -> None:
    body = json.dumps({"instances": json.loads(ROWS.to_json(orient="records", double_precision=15))}).encode()
    with Service({"MODEL_DIR": str(models), "COMPILE": compiled}) as service:
        listed = {model["name"]: model for model in service.get("/v1/models")["models"]}
        for name, estimator in boosters.items():
            assert listed[name]["compiled"] == (compiled == "true")
            url = f"{service.address}/v1/models/{name}:predict"
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                predictions = json.load(answer)["predictions"]
            assert [one["probabilities"]["1"] for one in predictions] == estimator.predict_proba(ROWS)[:, 1].tolist()
            assert [one["label"] for one in predictions] == estimator.predict(ROWS).tolist()


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_manifest_names_the_version_of_the_library(models: Path, name: str) -> None:
    libraries = read_manifest(models / name / "1").libraries
    assert libraries[name] == sys.modules[name].__version__
    assert libraries.keys() == {"python", "scikit-learn", "numpy", "pandas", "joblib", name}


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_features_keep_the_names_of_the_table(models: Path, name: str) -> None:
    features = read_manifest(models / name / "1").features
    assert [(feature.name, feature.kind) for feature in features] == [
        ("mean radius", "number"),
        ("fuel", "category"),
        ("rooms", "number"),
    ]
