"""A service over models in formats of their own, which are loaded once and answered by forked workers."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skops import io

from harness.service import FORKSERVE, Service

RANDOM = np.random.default_rng(3)
TABLE = pd.DataFrame(RANDOM.normal(size=(60, 3)), columns=["a", "b", "c"])
YES = (TABLE["a"] + TABLE["b"] > 0).astype(int)


def save_all(directory: Path) -> dict[str, Any]:
    """A model in each format; what each answers."""
    boosted = xgboost.XGBClassifier(n_estimators=5, n_jobs=2).fit(TABLE, YES)
    boosted.save_model(directory / "xgboost.ubj")
    light = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 2}, lightgbm.Dataset(TABLE, YES), 5)
    light.save_model(directory / "lightgbm.txt")
    cat = catboost.CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False).fit(TABLE, YES)
    cat.save_model(str(directory / "catboost.cbm"))
    linear = make_pipeline(StandardScaler(), LogisticRegression()).fit(TABLE, YES)
    io.dump(linear, directory / "skops.skops")
    return {
        "xgboost": boosted.predict_proba(TABLE)[:, 1],
        "lightgbm": light.predict(TABLE),
        "catboost": cat.predict_proba(TABLE)[:, 1],
        "skops": linear.predict_proba(TABLE)[:, 1],
    }


def post(service: Service, path: str, content: Any) -> Any:
    url = f"{service.address}{path}"
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_models_of_all_formats_are_added_and_answer_from_workers(tmp_path: Path) -> None:
    expected = save_all(tmp_path)
    TABLE.to_csv(tmp_path / "rows.csv", index=False)
    environ = {"MODEL_DIR": str(tmp_path / "models")}
    for path in sorted(tmp_path.glob("*.[ustc][bxk]*")):
        command = [str(FORKSERVE), "add", path.name, "--name", path.stem, "--data", "rows.csv"]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | environ, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    with Service(environ) as service:
        for name, shares in expected.items():
            shown = service.get(f"/v1/models/{name}")
            assert (shown["format"], shown["forced"]) == (name, "")
            body = {"instances": TABLE.to_dict("records")}
            predictions = post(service, f"/v1/models/{name}:predict", body)["predictions"]
            assert [one["probabilities"]["1"] for one in predictions] == pytest.approx(shares, abs=1e-6)
            explained = post(service, f"/v1/models/{name}:explain", {"instances": body["instances"][:2]})
            assert set(explained["explanations"][0]["values"]) == {"a", "b", "c"}
        assert service.get("/health")["status"] == "ok"
