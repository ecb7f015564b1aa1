"""Models that another release of their library has fitted are refused, or say so in every answer."""

from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.errors import CannotAdd, VersionRefused
from registry.formats import versions
from registry.formats.pickles import Survey, survey_pickle
from registry.formats.versions import Format, mismatch
from registry.store.add import add_trained, add_version
from registry.store.loader import load_version
from registry.store.reading import read_trained
from registry.training.script import Trained
from serving.predict.operation import encode_answer
from tests.registry.formats.files import TABLE, WORDS, forest, old_pickle, write

HERE = sklearn.__version__
BOTH = f"fitted with scikit-learn 1.3.2, this is {HERE}"


def pipeline() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(TABLE, WORDS)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("make", [forest, pipeline])
def test_model_of_another_release_is_refused_before_it_is_loaded(tmp_path: Path, make: Any, compress: Any) -> None:
    path = write(tmp_path / "model.pkl", compress(old_pickle(make())))
    with pytest.raises(CannotAdd, match=BOTH) as refusal:
        read_trained(path)
    assert "fit it again" in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_pickle_whose_classes_have_moved_is_refused_for_its_version(tmp_path: Path) -> None:
    content = old_pickle(forest()).replace(b"sklearn.tree._tree", b"sklearn.gone._tree")
    with pytest.raises(CannotAdd, match=BOTH):
        read_trained(write(tmp_path / "model.pkl", content))


def test_version_is_found_in_a_pickle_that_cannot_be_looked_into(tmp_path: Path) -> None:
    old = old_pickle(forest())
    old = old[:2] + b"\x82\x07" + old[2:]  # an extension that nobody has registered
    assert not survey_pickle(old).complete
    with pytest.raises(CannotAdd, match=BOTH):
        read_trained(write(tmp_path / "model.pkl", gzip.compress(old)))


def test_joblib_file_of_another_release_is_refused(tmp_path: Path) -> None:
    joblib.dump(forest(), tmp_path / "model.joblib", protocol=2)
    content = (tmp_path / "model.joblib").read_bytes()
    with pytest.raises(CannotAdd, match=BOTH):
        read_trained(write(tmp_path / "model.joblib", content.replace(HERE.encode(), b"1.3.2")))


@pytest.mark.parametrize(
    ("fitted", "kept_in", "refused"),
    [
        ({"scikit-learn": "1.9.0"}, "pickle", False),
        ({"scikit-learn": "1.9.2rc1"}, "joblib", False),
        ({"scikit-learn": "1.8.1"}, "pickle", True),
        ({"scikit-learn": "1.10.0"}, "skops", True),
        ({"scikit-learn": "0.24.2"}, "pickle", True),
        ({"scikit-learn": "unknown"}, "pickle", True),
        ({"xgboost": "3.2.0"}, "pickle", True),
        ({"xgboost": "3.2.0"}, "xgboost", False),
        ({"xgboost": "9.0.0"}, "xgboost", True),
        ({"catboost": "1.0.6"}, "pickle", False),
        ({"numpy": "1.2.3"}, "pickle", False),
        ({}, "pickle", False),
    ],
)
def test_patch_releases_and_what_a_library_promises_are_taken(
    monkeypatch: pytest.MonkeyPatch, fitted: dict[str, str], kept_in: Format, refused: object
) -> None:
    here = {"scikit-learn": "1.9.1", "xgboost": "3.4.1", "catboost": "1.2.10"}
    monkeypatch.setattr(versions, "installed_version", here.get)
    clause = mismatch(fitted, kept_in)
    assert bool(clause) == refused
    assert all(version in clause for library, version in fitted.items() if refused)


def test_forced_version_is_recorded_and_said_in_every_answer(tmp_path: Path) -> None:
    estimator, artefact = read_trained(write(tmp_path / "model.pkl", old_pickle(forest())), force_version=True)
    model = add_trained(tmp_path / "models", "old", Trained(estimator=estimator, artefact=artefact, sample=TABLE))
    assert model.manifest.forced == BOTH
    assert model.manifest.fitted_with == {"scikit-learn": "1.3.2"}
    assert model.manifest.libraries["scikit-learn"] == "1.3.2"
    assert json.loads(encode_answer(model, {"predict": [b"1"]}))["forced"] == BOTH


def test_file_is_kept_as_it_was(tmp_path: Path) -> None:
    content = gzip.compress(pickle.dumps(forest()))
    estimator, artefact = read_trained(write(tmp_path / "my.model.pkl.gz", content))
    model = add_trained(tmp_path / "models", "old", Trained(estimator=estimator, artefact=artefact, sample=TABLE))
    assert (model.manifest.artefact, model.manifest.artefact_format) == ("model.pkl.gz", "pickle")
    assert (tmp_path / "models/old/1/model.pkl.gz").read_bytes() == content
    assert "forced" not in json.loads(encode_answer(model, {"predict": [b"1"]}))


def test_version_that_was_added_before_versions_were_read_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    estimator, artefact = read_trained(write(tmp_path / "model.pkl", old_pickle(forest())), force_version=True)
    before = replace(artefact, forced="", format="joblib", survey=Survey())
    trained = Trained(estimator=estimator, artefact=before, sample=TABLE)
    add_trained(tmp_path / "models", "old", trained)
    path = tmp_path / "models/old/1/manifest.json"
    manifest = json.loads(path.read_text())
    for member in ("fitted_with", "forced", "artefact_format"):
        del manifest[member]
    path.write_text(json.dumps(manifest))
    with pytest.raises(VersionRefused, match=BOTH):
        load_version(tmp_path / "models", path.parent)


def test_version_is_refused_once_the_library_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(tmp_path, "new", forest(), TABLE)
    monkeypatch.setattr(versions, "installed_version", {"scikit-learn": "2.0.0"}.get)
    with pytest.raises(VersionRefused, match=f"fitted with scikit-learn {HERE}, this is 2.0.0"):
        load_version(tmp_path, tmp_path / "new" / "1")
