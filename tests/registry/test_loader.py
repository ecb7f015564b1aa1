"""Loading: only what answers as it did when it was added; for files that were exchanged see tests/attacks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from registry.errors import ModelFailed, VersionRefused
from registry.model import LoadedModel
from registry.store.add import add_version
from registry.store.loader import load_version

TABLE = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0], "b": [1.0, 0.0, 1.0, 0.0]})


def exchange(directory: Path, estimator: Any) -> None:
    """Another estimator in the place of the first, properly vouched for."""
    joblib.dump(estimator, directory / "model.joblib")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["sha256"] = hashlib.sha256((directory / "model.joblib").read_bytes()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A version whose model answers 2a + 1."""
    add_version(tmp_path, "line", LinearRegression().fit(TABLE, TABLE["a"] * 2 + 1), TABLE)
    return tmp_path / "line" / "1"


def load(directory: Path, **options: Any) -> LoadedModel:
    return load_version(directory.parents[1], directory, **options)


def test_loaded_model_answers(line: Path) -> None:
    model = load(line)
    assert not model.fallback
    assert model.predict(model.schema.rows([{"a": 1.5, "b": 0.5}])) == pytest.approx([4.0])


def test_version_that_answers_otherwise_than_when_it_was_added_is_refused(line: Path) -> None:
    exchange(line, LinearRegression().fit(TABLE, TABLE["a"] * 2 + 1.00001))
    with pytest.raises(VersionRefused, match="does not answer as it did when it was added"):
        load(line)


def test_difference_that_only_another_machine_makes_is_accepted(line: Path) -> None:
    exchange(line, LinearRegression().fit(TABLE, TABLE["a"] * 2 + 1 + 1e-12))
    assert not load(line).fallback


def test_estimator_of_another_task_is_refused(line: Path) -> None:
    exchange(line, LogisticRegression().fit(TABLE, ["x", "y", "x", "y"]))
    with pytest.raises(VersionRefused, match="holds a LogisticRegression, its manifest says regression"):
        load(line)


def test_estimator_that_does_not_take_these_features_is_refused(line: Path) -> None:
    exchange(line, LinearRegression().fit(TABLE[["a"]], TABLE["a"]))
    with pytest.raises(VersionRefused, match="does not predict"):
        load(line)


def test_fallback_answers_the_mean_of_the_sample(line: Path) -> None:
    (line / "model.joblib").unlink()
    model = load(line, fallback=True)
    assert model.fallback
    assert model.predict(model.schema.rows([[0, 0], [3, 1]])) == pytest.approx([4.0, 4.0])


def test_fallback_of_a_classifier_answers_the_mean_probabilities(tmp_path: Path) -> None:
    classes = ["x", "x", "x", "y"]
    whole = add_version(tmp_path, "letters", LogisticRegression().fit(TABLE, classes), TABLE)
    (tmp_path / "letters" / "1" / "model.joblib").unlink()
    model = load(tmp_path / "letters" / "1", fallback=True)
    (prediction,) = model.predict(model.schema.rows([[3, 0]]))
    rows = model.schema.rows(TABLE.to_dict("records"))
    mean = sum(one["probabilities"]["x"] for one in whole.predict(rows)) / 4
    assert prediction["label"] == "x"
    assert prediction["probabilities"] == pytest.approx({"x": mean, "y": 1 - mean})


def test_result_that_is_not_finite_is_a_failure(line: Path) -> None:
    model = load(line)
    spoilt = LoadedModel(model.manifest, lambda rows: rows[:, :1] / 0 * 0)
    with pytest.raises(ModelFailed, match="line/1 returned a result that is not finite"), pytest.warns(RuntimeWarning):
        spoilt.predict(model.schema.rows([[1, 1]]))
