"""Own code goes with a version: it is found, hashed, and loaded for that version alone."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from harness.project import DUMP, SCALER, SCALER_HEAD, TABLE, Project
from registry.errors import CannotAdd, VersionRefused
from registry.model import LoadedModel
from registry.store.add import add_trained, add_version, pickled
from registry.store.reading import read_trained, with_imports_of
from registry.training.candidates import HeldOut
from registry.training.metrics import Better
from registry.training.promotion import find_decline, measure_both
from registry.training.script import Trained, TrainingData, execute_script, record_script, write_script


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def answers(model: LoadedModel) -> list[float]:
    return [float(value) for value in model.predict(model.schema.rows(TABLE.to_dict("records")))]


LAYOUTS: dict[str, tuple[dict[str, str], str, set[str]]] = {
    "a module": ({"helpers.py": f"FACTOR = 2\n{SCALER}"}, "helpers", {"helpers.py"}),
    "two modules": (
        {"helpers.py": f"from numbers_of_mine import FACTOR\n{SCALER}", "numbers_of_mine.py": "FACTOR = 2"},
        "helpers",
        {"helpers.py", "numbers_of_mine.py"},
    ),
    "a package": (
        {
            "mine/__init__.py": "",
            "mine/steps/__init__.py": "from .scaler import Scaler",
            "mine/steps/scaler.py": f"from ..factors import FACTOR\n{SCALER}",
            "mine/factors.py": "import json\nfrom importlib import resources\n"
            "FACTOR = json.loads(resources.files('mine').joinpath('data/factor.json').read_text())",
            "mine/data/factor.json": "2",
        },
        "mine.steps",
        {
            "mine/__init__.py",
            "mine/steps/__init__.py",
            "mine/steps/scaler.py",
            "mine/factors.py",
            "mine/data/factor.json",
        },
    ),
    "directories without __init__": (
        {
            "src/features/scaler.py": f"from src.factors import FACTOR\n{SCALER}",
            "src/factors.py": "FACTOR = 2",
            "src/x.csv": "",
        },
        "src.features.scaler",
        {"src/features/scaler.py", "src/factors.py"},
    ),
    "an import when it predicts": (
        {
            "mine/__init__.py": "",
            "mine/factors.py": "FACTOR = 2",
            "late.py": "FACTOR = 1",
            "mine/scaler.py": f"{SCALER_HEAD}\n    def predict(self, X):\n        import mine.factors\n"
            "        from late import FACTOR\n"
            "        from . import factors\n        import importlib\n"
            "        assert factors is mine.factors is importlib.import_module('mine.factors')\n"
            "        return X[:, 0] * factors.FACTOR * FACTOR\n",
        },
        "mine.scaler",
        {"mine/__init__.py", "mine/factors.py", "mine/scaler.py", "late.py"},
    ),
    "names of ours and of Python's": (
        {
            "serving/__init__.py": "",
            "serving/features.py": f"from cache import FACTOR\nfrom utils import ONE\n{SCALER}",
            "cache.py": "FACTOR = 2",
            "utils.py": "from code import ONE",
            "code.py": "ONE = 1",
        },
        "serving.features",
        {"serving/__init__.py", "serving/features.py", "cache.py", "utils.py", "code.py"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_own_code_is_found_and_goes_with_the_version(project: Project, layout: str) -> None:
    files, module, expected = LAYOUTS[layout]
    project.write(files)
    project.run(f"from {module} import Scaler\n{DUMP}")
    before = {name: sys.modules.get(name) for name in ("serving", "cache", "code", "utils")}
    added = project.add()
    assert set(added.manifest.code) == expected
    assert answers(added) == [2, 4, 6, 8]
    for name in files:
        (project.directory / name).unlink()
    assert answers(project.load()) == [2, 4, 6, 8]
    assert {name: sys.modules.get(name) for name in before} == before


def test_versions_with_different_code_of_one_name_answer_side_by_side(project: Project) -> None:
    for factor in (2, 3):
        project.write({"helpers.py": f"FACTOR = {factor}\n{SCALER}"})
        project.run(f"from helpers import Scaler\n{DUMP}")
        project.add()
    first, second, again = project.load("1"), project.load("2"), project.load("1")
    assert [answers(model)[0] for model in (first, second, again)] == [2, 3, 2]


def test_modules_of_a_version_are_let_go_with_it(project: Project) -> None:
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}"})
    project.run(f"from helpers import Scaler\n{DUMP}")
    project.add()
    gc.collect()
    before, finders = set(sys.modules), len(sys.meta_path)
    model = project.load()
    assert len(set(sys.modules) - before) == 2
    del model
    gc.collect()
    assert (set(sys.modules), len(sys.meta_path)) == (before, finders)


SCRIPT = f"""
import sys
from pathlib import Path
from made_once import mark
FACTOR = 1
FACTOR += 1
{SCALER}
Scaler.unit = "m"
mark()
model = Scaler()
{DUMP}
if __name__ == "__main__":
    FACTOR = FACTOR
"""

ONCE = "from pathlib import Path\ndef mark():\n    with Path('marks').open('a') as file:\n        file.write('x')\n"


@pytest.mark.parametrize("name", ["make.py", "make.ipynb"])
def test_classes_of_a_script_are_taken_from_it_without_its_work(project: Project, name: str) -> None:
    project.write({"made_once.py": ONCE})
    project.run(SCRIPT)
    if name.endswith("ipynb"):
        cells = [
            {"cell_type": "markdown", "source": ["# class"]},
            {"cell_type": "code", "source": ["%matplotlib inline\n", "!ls\n", *SCRIPT.splitlines(keepends=True)]},
            {"cell_type": "code", "source": ["this is no Python"]},
        ]
        project.write({name: json.dumps({"cells": cells})})
        (project.directory / "make.py").unlink()
    advice = f"which was defined in the script or notebook that made it; {name} defines the same: add --code .*{name}"
    with pytest.raises(CannotAdd, match=f"model.joblib needs Scaler, {advice}"):
        project.add()
    added = project.add(name)
    assert set(added.manifest.code) == {"__main__.py"}
    assert answers(added) == answers(project.load()) == [2, 4, 6, 8]
    assert (project.directory / "marks").read_text() == "x"
    assert project.load().manifest.estimator == "Scaler"


def test_script_that_is_nowhere_is_asked_for(project: Project) -> None:
    project.run(f"FACTOR = 2\n{SCALER}\n{DUMP}")
    (project.directory / "make.py").unlink()
    with pytest.raises(CannotAdd, match=r"needs Scaler, which was defined in .*; add --code with that file"):
        project.add()
    project.write({"other.py": "x = 1"})
    with pytest.raises(CannotAdd, match="needs Scaler"):
        project.add("other.py")


def test_data_beside_a_module_goes_with_it_when_it_is_given(project: Project) -> None:
    source = (
        f"from pathlib import Path\nFACTOR = int((Path(__file__).parent / 'data' / 'factor.txt').read_text())\n{SCALER}"
    )
    project.write({"helpers.py": source, "data/factor.txt": "2"})
    project.run(f"from helpers import Scaler\n{DUMP}")
    with pytest.raises(CannotAdd, match=r"factor.txt.*add it with --code"):
        project.add()
    assert set(project.add("data/factor.txt").manifest.code) == {"helpers.py", "data/factor.txt"}
    assert answers(project.load()) == [2, 4, 6, 8]


GIVEN = {
    "elsewhere/helpers.py": ["helpers.py"],
    "elsewhere": ["helpers.py"],
}


@pytest.mark.parametrize("given", GIVEN)
def test_code_that_lies_elsewhere_is_given(project: Project, given: str) -> None:
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}"})
    project.run(f"from helpers import Scaler\n{DUMP}")
    (project.directory / "elsewhere").mkdir()
    (project.directory / "helpers.py").rename(project.directory / "elsewhere" / "helpers.py")
    with pytest.raises(CannotAdd, match=r"No module named 'helpers'.*--code"):
        project.add()
    assert list(project.add(given).manifest.code) == GIVEN[given]
    assert answers(project.load()) == [2, 4, 6, 8]


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BREACHES: dict[str, tuple[Any, str]] = {
    "changed": (lambda path: path.write_text("FACTOR = 3"), "has sha256"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "a pipe": (make_pipe, "is not a file"),
    "a link that leaves": (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "is a link that leaves"),
    "too large": (lambda path: os.truncate(path, 65 << 20), "beyond 64 MB"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_code_that_is_not_what_the_manifest_says_is_not_executed(project: Project, breach: str) -> None:
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}"})
    project.run(f"from helpers import Scaler\n{DUMP}")
    project.add()
    harm, reason = BREACHES[breach]
    harm(project.models / "own/1/code/helpers.py")
    with pytest.raises(VersionRefused, match=f"code/helpers.py: .*{reason}"):
        project.load()


@pytest.mark.parametrize("path", ["../1/x.py", "/etc/x.py", "a//b.py", "", "."])
def test_manifest_names_no_code_outside_its_version(project: Project, path: str) -> None:
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}"})
    project.run(f"from helpers import Scaler\n{DUMP}")
    project.add()
    manifest = project.models / "own/1/manifest.json"
    manifest.write_text(manifest.read_text().replace('"helpers.py"', json.dumps(path)))
    with pytest.raises(VersionRefused, match="is not a path inside code"):
        project.load()


def test_file_that_the_manifest_does_not_list_is_not_executed(project: Project) -> None:
    late = f"{SCALER_HEAD}\n    def predict(self, X):\n        import mine.extra\n        return X[:, 0]\n"
    project.write({"mine/__init__.py": "", "mine/scaler.py": late})
    project.run(f"from mine.scaler import Scaler\n{DUMP}")
    project.write({"mine/extra.py": ""})
    project.add()
    manifest = json.loads((project.models / "own/1/manifest.json").read_text())
    del manifest["code"]["mine/extra.py"]
    (project.models / "own/1/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VersionRefused, match=r"No module named 'mine.extra'"):
        project.load()


BROKEN = {
    "raises": ("raise ValueError('the well is dry')", "does not load: ValueError: the well is dry"),
    "exits": ("import sys; sys.exit(3)", "does not load: SystemExit: 3"),
    "lacks a library": ("import library_that_nobody_has", "No module named 'library_that_nobody_has'"),
    "lacks a name": ("from mine_too import nothing", "cannot import name 'nothing' from 'mine_too'"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_code_that_breaks_when_it_is_imported_is_refused_by_its_own_words(project: Project, broken: str) -> None:
    line, reason = BROKEN[broken]
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}", "mine_too.py": ""})
    project.run(f"from helpers import Scaler\n{DUMP}")
    project.write({"helpers.py": f"{line}\nFACTOR = 2\n{SCALER}"})
    with pytest.raises(CannotAdd, match=reason):
        project.add()
    assert not project.models.exists()


def test_what_python_adds_brings_its_modules_too(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write({"helpers_of_this_test.py": f"FACTOR = 2\n{SCALER}"})
    monkeypatch.syspath_prepend(project.directory)
    import helpers_of_this_test  # type: ignore[import-not-found]

    estimator = helpers_of_this_test.Scaler().fit(TABLE.to_numpy())
    model = add_version(project.models, "own", estimator, TABLE)
    del sys.modules["helpers_of_this_test"]
    assert list(model.manifest.code) == ["helpers_of_this_test.py"]
    (project.directory / "helpers_of_this_test.py").unlink()
    assert answers(project.load()) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("lambda X: X * 2", "a lambda has no name that it could be found by; define a function with def"),
        ("inner()", "define it at the top level"),
    ],
)
def test_function_without_a_name_is_refused_with_advice(project: Project, function: str, reason: str) -> None:
    def inner() -> Any:
        def double(X: Any) -> Any:  # noqa: N803
            return X * 2

        return double

    transformer = FunctionTransformer(eval(function, {"inner": inner}))
    estimator = make_pipeline(transformer, LinearRegression()).fit(TABLE.to_numpy(), TABLE["a"])
    with pytest.raises(CannotAdd, match=reason):
        add_version(project.models, "own", estimator, TABLE)


def test_classes_and_modules_of_a_train_script_go_with_the_versions_that_it_makes(project: Project) -> None:
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}", "amounts.py": "ROWS = 4"})
    project.run(f"from helpers import Scaler\n{DUMP}")
    source = f"""
import numpy as np
from amounts import ROWS
from forkserve import Trained
from helpers import FACTOR
{SCALER}

def train(data):
    assert ROWS == 4
    estimator = Scaler().fit(np.ones((4, 2)))
    return Trained(estimator=estimator, sample=data.outcomes, held_out=data.outcomes)
"""
    script = source.encode()
    estimator, artefact = read_trained(project.artefact)
    artefact = with_imports_of(project.directory / "train.py", script, artefact)
    trained = Trained(estimator=estimator, sample=TABLE, artefact=artefact)
    live = add_trained(project.models, "own", trained, training=record_script(script)).manifest
    write_script(project.models / "own", script)
    assert set(live.code) == {"helpers.py", "amounts.py"}
    for name in live.code:
        (project.directory / name).unlink()

    assert live.training is not None
    made = execute_script(project.models, project.models / "own", live.training, live)
    again = made.train(TrainingData("own", live, TABLE))
    again = dataclasses.replace(again, artefact=pickled(again.estimator, made.code_for))
    add_trained(project.models, "own", again, training=live.training)
    second = project.load("2")
    assert answers(second) == [2, 4, 6, 8]
    assert set(second.manifest.code) == {"helpers.py", "amounts.py", "forkserve_train.py"}
    taken = (project.models / "own/2/code/forkserve_train.py").read_text()
    assert ("class Scaler" in taken, "def train" in taken) == (True, False)
    # and once more, from what the second version brought
    third = execute_script(project.models, project.models / "own", live.training, second.manifest)
    assert set(third.code) == {"helpers.py", "amounts.py"}


def test_two_different_files_of_one_name_are_refused(project: Project) -> None:
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}", "training/helpers.py": "ROWS = 4"})
    project.run(f"from helpers import Scaler\n{DUMP}")
    _, artefact = read_trained(project.artefact)
    with pytest.raises(CannotAdd, match=r"two different files helpers.py"):
        with_imports_of(project.directory / "training/train.py", b"from helpers import ROWS", artefact)


COSTS = """
def profit(y_true, y_pred):
    return 10.0 - abs(y_true - y_pred).sum()

def count(y_true, y_pred):
    assert list(y_true) == ["cold", "cold", "warm", "warm"], y_true
    return (y_true != y_pred).sum()

def broken(y_true, y_pred):
    raise SystemExit(3)

def accuracy(y_true, y_pred):
    return 1
"""


def test_metric_of_ones_own_goes_with_the_version_and_compares_it(project: Project) -> None:
    project.write({"helpers.py": f"FACTOR = 2\n{SCALER}", "costs.py": COSTS})
    project.run(f"from helpers import Scaler\n{DUMP}")
    metrics: dict[str, Better] = {"costs:profit": "higher"}
    estimator, artefact = read_trained(project.artefact, names=metrics)
    sample = TABLE.assign(y=[2.0, 4.0, 6.0, 9.0])
    trained = Trained(estimator=estimator, sample=sample, artefact=artefact, target="y", metrics=metrics)
    model = add_trained(project.models, "own", trained)
    assert set(model.manifest.code) == {"helpers.py", "costs.py"}
    assert model.manifest.metrics["profit"] == 9.0
    (project.directory / "costs.py").unlink()
    live, new = project.load(), project.load()
    held_out = HeldOut(live.schema.rows(TABLE.to_dict("records")), sample["y"].to_numpy())
    measured = measure_both(live, new, held_out)
    assert measured.new["profit"] == measured.live["profit"] == 9.0
    worse = dataclasses.replace(measured, new=measured.new | {"profit": 8.9})
    assert find_decline("regression", worse, 0.01, metrics) == ["profit is 8.9, that of the live version is 9"]
    assert find_decline("regression", worse, 0.02, metrics) == []
    assert find_decline("regression", worse, 0.0, {"costs:profit": "lower"}) == []


def test_metric_is_given_the_labels_that_are_served(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write({"costs.py": COSTS})
    monkeypatch.syspath_prepend(project.directory)
    estimator = LogisticRegression().fit(TABLE[["a"]], [0, 0, 1, 1])
    sample = TABLE[["a"]].assign(y=[0, 0, 1, 1])
    trained = Trained(estimator=estimator, sample=sample, target="y", labels=["cold", "warm"])
    model = add_trained(project.models, "own", dataclasses.replace(trained, metrics={"costs:count": "lower"}))
    assert model.manifest.metrics["count"] == 0.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("costs", "name it as module:function"),
        ("costs:nothing", "cannot be imported: AttributeError: module 'costs' has no attribute 'nothing'"),
        ("costs_that_nobody_has:profit", "cannot be imported: ModuleNotFoundError"),
        ("costs:broken", "the metric costs:broken failed: SystemExit: 3"),
        ("costs:accuracy", "there is another metric called accuracy"),
    ],
)
def test_metric_that_does_not_work_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    project.write({"costs.py": COSTS})
    monkeypatch.syspath_prepend(project.directory)
    sample = TABLE[["a"]].assign(y=TABLE["a"])
    estimator = LinearRegression().fit(sample[["a"]], sample["y"])
    trained = Trained(estimator=estimator, sample=sample, target="y", metrics={name: "higher"})
    with pytest.raises(CannotAdd, match=reason):
        add_trained(project.models, "own", trained)
    with pytest.raises(CannotAdd, match="name the column of true values"):
        add_trained(project.models, "own", dataclasses.replace(trained, target=None, sample=sample[["a"]]))


def test_own_class_that_is_called_like_a_tree_may_tell_minus_zero_from_zero(project: Project) -> None:
    source = f"FACTOR = 1\n{SCALER}".replace("class Scaler", "class RandomForestRegressor")
    project.write({"helpers.py": source})
    project.run(f"from helpers import RandomForestRegressor as Scaler\n{DUMP}")
    assert project.add().manifest.estimator == "RandomForestRegressor"
    assert not project.load().ignores_sign_of_zero
