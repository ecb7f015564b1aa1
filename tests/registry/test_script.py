"""What users' own code imports, and what a `train.py` may be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import forkserve
from harness.service import ROOT
from registry.errors import CannotTrain, VersionRefused
from registry.store.add import add_version
from registry.store.manifest import TrainingRecord
from registry.training.script import Trained, TrainingData, checked, execute_script, record_script, write_script


def test_users_import_from_one_module() -> None:
    assert forkserve.Trained is Trained
    assert forkserve.TrainingData is TrainingData
    assert forkserve.add_version is add_version
    with pytest.raises(AttributeError, match="no attribute 'remove_version'"):
        forkserve.remove_version  # noqa: B018


def test_importing_that_module_is_cheap() -> None:
    code = "import sys, forkserve; assert not {'numpy', 'pandas', 'sklearn', 'msgspec', 'httpx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_client_imports_no_data_frames() -> None:
    code = "import sys; from forkserve import Client; assert not {'numpy', 'pandas', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


DATA = TrainingData("model", None, pd.DataFrame())  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["forkserve", "registry.training"])
def test_script_of_this_version_and_of_the_one_before_is_read(tmp_path: Path, module: str) -> None:
    script = f"from {module} import Trained, TrainingData\n\ndef train(data: TrainingData): return Trained, data\n"
    write_script(tmp_path, script.encode())
    train: Any = execute_script(tmp_path, tmp_path, record_script(script.encode())).train
    assert train(DATA) == (Trained, DATA)


def test_script_that_is_not_the_recorded_one_is_not_executed(tmp_path: Path) -> None:
    write_script(tmp_path, b"raise SystemExit")
    with pytest.raises(VersionRefused, match=r"train.py: has sha256 .*, its manifest says 000"):
        execute_script(tmp_path, tmp_path, TrainingRecord(script="train.py", sha256="0" * 64))


TABLE = pd.DataFrame({"x": [1.0]})


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        ({"estimator": None}, "train returned a dict, not a Trained"),
        (Trained(estimator=None, sample=TABLE), "train returned no table as held_out"),
        (Trained(estimator=None, sample=TABLE[:0], held_out=TABLE), "train returned no table as sample"),
    ],
)
def test_result_that_makes_no_version_is_refused(trained: object, reason: str) -> None:
    with pytest.raises(CannotTrain, match=reason):
        checked(trained)
