"""`forkserve add`: what it makes, and what it refuses with one line."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import joblib
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from registry.store.aliases import promote
from tests.conftest import Run

SOON = "a running service will serve it within a few seconds\n"


def test_add_makes_a_version_that_models_lists_and_check_accepts(run: Run, churn: Path) -> None:
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--target", "left")
    assert (added.returncode, added.stderr) == (0, "")
    again = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    assert "added churn version 2" in again.stdout
    listed = run("models")
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [["churn", "1"], ["churn", "2"]]
    checked = run("check")
    assert (checked.returncode, checked.stdout) == (0, "ready to serve\n")
    manifest = json.loads((churn / "models/churn/1/manifest.json").read_text())
    assert set(manifest["metrics"]) == {"accuracy", "log_loss", "roc_auc"}


def test_add_calibrates_and_names_several_outputs(run: Run, churn: Path) -> None:
    added = run(
        *("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--target", "left"),
        *("--calibrate", "churn.csv"),
    )
    assert "calibrated with 40 rows: a request may ask for a coverage of up to 0.975609" in added.stdout
    table = pd.read_csv(churn / "churn.csv").assign(up=1.5, down=range(40))
    table.to_csv(churn / "two.csv", index=False)
    joblib.dump(Ridge().fit(table[["months", "calls"]], table[["up", "down"]]), churn / "two.joblib")
    two = ("add", "two.joblib", "--name", "two", "--data", "two.csv")
    assert run(*two, "--targets", "up,down").returncode == 0
    manifest = json.loads((churn / "models/two/1/manifest.json").read_text())
    assert [target["name"] for target in manifest["targets"]] == ["up", "down"]
    refused = run(*two, "--target", "up,down")
    assert "the table has no column 'up,down'; name several with --targets" in refused.stderr


def test_add_groups_and_labels_features_and_says_how_they_are_explained(run: Run, churn: Path) -> None:
    added = run(
        *("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--target", "left"),
        *("--group", "usage=months,calls", "--label", "usage=How it is used", "--label", "calls=Calls a=b"),
    )
    assert (added.returncode, added.stderr) == (0, "")
    assert "explained within a request: linear, margin; on request also probability" in added.stdout
    manifest = json.loads((churn / "models/churn/1/manifest.json").read_text())
    assert manifest["groups"] == {"usage": ["months", "calls"]}
    assert manifest["feature_labels"] == {"usage": "How it is used", "calls": "Calls a=b"}
    (churn / "row.json").write_text('{"months": 3, "calls": 5}')
    explained = json.loads(run("explain", "churn", "--row", "row.json", "--space", "probability").stdout)
    assert (list(explained["values"]), explained["space"]) == (["usage"], "probability")
    assert explained["labels"] == {"usage": "How it is used"}


def test_add_puts_a_train_py_beside_the_versions_and_records_its_hash(run: Run, churn: Path) -> None:
    script = b"from forkserve import Trained\n\ndef train(data):\n    raise ValueError('nothing to learn')\n"
    (churn / "mine.py").write_bytes(script)
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--train", "mine.py")
    assert (added.returncode, added.stderr) == (0, "")
    manifest = json.loads((churn / "models/churn/1/manifest.json").read_text())
    assert manifest["training"] == {"script": "train.py", "sha256": hashlib.sha256(script).hexdigest()}
    assert (churn / "models/churn/train.py").read_bytes() == script
    failed = run("retrain", "churn", DATA_DIR=str(churn / "data"))
    assert (failed.returncode, "the training failed: ValueError: nothing to learn" in failed.stderr) == (1, True)


@pytest.mark.parametrize(
    ("script", "reason"),
    [(b"def train(:", "is not Python"), (b"train = 3\n", "does not define a function 'train'"), (None, "No such file")],
)
def test_add_refuses_what_is_no_train_py(run: Run, churn: Path, script: bytes | None, reason: str) -> None:
    if script is not None:
        (churn / "mine.py").write_bytes(script)
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--train", "mine.py")
    assert (added.returncode, reason in added.stderr, (churn / "models").exists()) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target", "gone"], "the table has no column 'gone'"),
        (["--name", "../x"], "is not a model name"),
        (["--labels", "a,b,c"], "3 labels for 2 classes"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_add_refuses_with_one_line_and_leaves_nothing(run: Run, churn: Path, arguments: list[str], reason: str) -> None:
    refused = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", *arguments)
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not list((churn / "models").rglob("*")) if (churn / "models").exists() else True


HARM = {
    "crashes": ("exec, ('import os; os.kill(os.getpid(), 11)',)", "its process was ended by signal 11"),
    "exits": ("os._exit, (3,)", "its process exited with status 3"),
    "hangs": ("time.sleep, (600,)", "takes too long to be read"),
    "prints": ("exec, ('import os\\nwhile True: os.write(1, bytes(1 << 20))',)", "prints more than 10 MB"),
    "starts a thread": (
        "exec, ('import threading, time; threading.Thread(target=time.sleep, args=[600], daemon=True).start()',)",
        "a service could not serve it: starts threads",
    ),
    "forks": ("exec, ('import os, time; os.fork() or time.sleep(600)',)", "a service could not serve it: starts proc"),
}


HARMFUL = """
import os, sys, time, joblib
from sklearn.linear_model import LinearRegression
class Harm:
    def __init__(self, call): self.call = call
    def __reduce__(self): return self.call
estimator = LinearRegression().fit([[0, 0], [1, 1], [3, 2]], [0, 1, 2])
estimator.harm = Harm(({call}))
joblib.dump(estimator, "harm.joblib")
"""


@pytest.mark.parametrize(("call", "reason"), HARM.values(), ids=HARM)
def test_add_refuses_with_one_line_what_would_harm_a_service(run: Run, churn: Path, call: str, reason: str) -> None:
    (churn / "numbers.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    subprocess.run([sys.executable, "-c", HARMFUL.format(call=call)], cwd=churn, check=True)
    added = run("add", "harm.joblib", "--name", "harm", "--data", "numbers.csv", RELOAD_TIMEOUT_SECONDS="5")
    assert (added.returncode, reason in added.stderr) == (1, True), added.stderr
    assert len(added.stderr.splitlines()) == 1
    assert not list((churn / "models").rglob("*")) if (churn / "models").exists() else True


def test_an_added_version_that_is_not_live_says_how_to_make_it_live(run: Run, two_versions: Path) -> None:
    promote(two_versions, "1")
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    assert added.stdout.splitlines()[-1] == f"{SOON.strip()}; version 1 stays live until `forkserve promote churn 3`"
    unreached = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--reload", PORT="1")
    assert "added churn version 4" in unreached.stdout
    assert (unreached.returncode, unreached.stderr.startswith("forkserve: no service is reached (http://")) == (1, True)
    assert "Connection refused" in unreached.stderr


@pytest.mark.usefixtures("churn")
@pytest.mark.parametrize("artefact", ["nowhere.joblib", "churn.csv"])
def test_add_refuses_a_file_that_is_no_artefact_with_one_line(run: Run, artefact: str) -> None:
    refused = run("add", artefact, "--name", "churn", "--data", "churn.csv")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"forkserve: {artefact}: ")
    assert len(refused.stderr.splitlines()) == 1
