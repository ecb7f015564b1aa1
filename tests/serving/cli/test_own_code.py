"""Own code on the command line: added with a version, used by its metrics, and by a retraining."""

from __future__ import annotations

import json
from pathlib import Path

from harness.project import DUMP, SCALER, TABLE, Project
from registry.store.loader import load_version
from tests.conftest import Run

COSTS = "from amounts import TEN\n\ndef profit(y_true, y_pred):\n    return TEN - abs(y_true - y_pred).sum()\n"

TRAIN = f"""
import numpy as np
import pandas as pd
from forkserve import Trained
from helpers import FACTOR
from amounts import TEN
{SCALER}

def train(data):
    table = pd.DataFrame({{"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0], "y": [2.0, 4.0, 6.0]}})
    estimator = Scaler().fit(table[["a", "b"]].to_numpy())
    return Trained(estimator=estimator, sample=table, held_out=table, target="y")
"""


def test_own_code_is_added_measured_and_retrained_after_its_source_is_gone(run: Run, tmp_path: Path) -> None:
    project = Project(tmp_path)
    sources = {"helpers.py": f"FACTOR = 2\n{SCALER}", "elsewhere/amounts.py": "TEN = 10.0", "costs.py": COSTS}
    project.write(sources | {"mine/train.py": TRAIN})
    project.run(f"from helpers import Scaler\n{DUMP}")
    TABLE.assign(y=[2.0, 4.0, 6.0, 9.0]).to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "tmp").mkdir()
    options = ["--target", "y", "--code", "elsewhere", "--metric", "costs:profit", "--train", "mine/train.py"]
    added = run("add", "model.joblib", "--name", "own", "--data", "table.csv", *options, TMPDIR=str(tmp_path / "tmp"))
    assert (added.returncode, added.stderr) == (0, "")
    assert "own code: amounts.py, costs.py, helpers.py\n" in added.stdout
    assert list((tmp_path / "tmp").iterdir()) == []
    manifest = json.loads((tmp_path / "models/own/1/manifest.json").read_text())
    assert manifest["metrics"]["profit"] == 9.0
    for name in sources:
        (tmp_path / name).unlink()
    trained = run("retrain", "own", DATA_DIR=str(tmp_path / "data"))
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "profit 10.000" in trained.stdout
    second = load_version(tmp_path / "models", tmp_path / "models/own/2")
    assert set(second.manifest.code) == {"amounts.py", "costs.py", "helpers.py", "forkserve_train.py"}
    assert second.predict(second.schema.rows([[3.0, 0.0]])) == [6.0]
