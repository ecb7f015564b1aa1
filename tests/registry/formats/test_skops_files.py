"""Files of skops: versions are read, types are trusted by name when a model is added and never afterwards."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skops import io

from harness.estimators import SleepingRegressor
from registry.errors import CannotAdd, VersionRefused
from registry.store.add import add_trained
from registry.store.loader import load_version
from registry.store.reading import read_trained
from registry.training.script import Trained
from tests.registry.formats.files import TABLE, VALUES, WORDS, forest, write

OWN = "harness.estimators.SleepingRegressor"


def own() -> Any:
    return SleepingRegressor().fit(TABLE.to_numpy(), VALUES)


def test_types_of_scikit_learn_need_no_trust(tmp_path: Path) -> None:
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(TABLE, WORDS)
    estimator, artefact = read_trained(write(tmp_path / "model.skops", io.dumps(fitted)))
    model = add_trained(tmp_path, "model", Trained(estimator=estimator, artefact=artefact, sample=TABLE))
    assert (model.manifest.artefact_format, model.manifest.trusted, model.compiled) == ("skops", (), True)
    assert model.manifest.fitted_with == {"scikit-learn": sklearn.__version__}
    given = model.predict(model.schema.rows(TABLE.to_numpy().tolist()))
    assert [one["label"] for one in given] == fitted.predict(TABLE).tolist()


def test_other_types_must_be_trusted_by_name_and_are_only_that_once(tmp_path: Path) -> None:
    path = write(tmp_path / "model.skops", io.dumps(own()))
    with pytest.raises(CannotAdd, match=f"add it with --trust {OWN}$"):
        read_trained(path)
    with pytest.raises(CannotAdd, match=f"--trust {OWN}"):
        read_trained(path, trusted=["harness.estimators.Other"])
    estimator, artefact = read_trained(path, trusted=[OWN])
    sample = TABLE.abs() / 1e6  # it sleeps for that long
    add_trained(tmp_path, "model", Trained(estimator=estimator, artefact=artefact, sample=sample))
    directory = tmp_path / "model" / "1"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["trusted"] == [OWN]
    (directory / "manifest.json").write_text(json.dumps(manifest | {"trusted": []}))
    with pytest.raises(VersionRefused, match="has types that skops does not trust"):
        load_version(tmp_path, directory)


def test_trust_is_for_skops_files_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "model.ubj", b'{"learner": {}}')
    with pytest.raises(CannotAdd, match="is no skops file: there is nothing to trust"):
        read_trained(path, trusted=[OWN])


def test_skops_file_of_another_release_is_refused(tmp_path: Path) -> None:
    content = changed(io.dumps(make_pipeline(forest())), lambda schema: schema.replace(sklearn.__version__, "1.3.2"))
    with pytest.raises(CannotAdd, match=f"fitted with scikit-learn 1.3.2, this is {sklearn.__version__}"):
        read_trained(write(tmp_path / "model.skops", content))


@pytest.mark.parametrize("schema", ["", "[", "3", "[]", "{}", '{"__class__": 1}', '{"__loader__": "ReduceNode"}'])
def test_damaged_skops_file_is_refused(tmp_path: Path, schema: str) -> None:
    with pytest.raises(CannotAdd):
        read_trained(write(tmp_path / "model.skops", changed(io.dumps(forest()), lambda _: schema)))


def changed(content: bytes, change: Any) -> bytes:
    """A skops file with another schema."""
    made = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as before, zipfile.ZipFile(made, "w") as after:
        for name in before.namelist():
            part = before.read(name)
            after.writestr(name, change(part.decode()) if name == "schema.json" else part)
    return made.getvalue()
