"""Model directories as MLflow 3 writes them: the model, its signature and its example are read from them."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import catboost
import cloudpickle
import lightgbm
import numpy as np
import pandas as pd
import pytest
import sklearn
import xgboost
import yaml
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from skops import io

from registry.errors import CannotAdd
from registry.model import LoadedModel
from registry.store.add import add_trained
from registry.store.reading import read_sample, read_trained
from registry.training.script import Trained
from tests.registry.formats.files import TABLE, WORDS

PEOPLE = pd.DataFrame({"age": range(20, 60), "income": np.linspace(-1, 1, 40), "zip": ["01069", "10115"] * 20})
YES = (PEOPLE["income"] > 0).astype(int)
NUMBERS = PEOPLE[["age", "income"]]
SIGNATURE = [
    {"type": "long", "name": "age", "required": True},
    {"type": "double", "name": "income", "required": False},
    {"type": "string", "name": "zip", "required": True},
]


def pipeline() -> Any:
    columns = make_column_transformer((StandardScaler(), ["age", "income"]), (OneHotEncoder(), ["zip"]))
    return make_pipeline(columns, LogisticRegression()).fit(PEOPLE, YES)


def write_mlflow(
    directory: Path, flavors: Mapping[str, Any], content: bytes, name: str, example: Any = None, **others: Any
) -> Path:
    """A directory as `mlflow.*.save_model` leaves it behind."""
    directory.mkdir()
    (directory / name).write_bytes(content)
    stated: dict[str, Any] = {
        "flavors": {
            "python_function": {"loader_module": "mlflow", "python_version": "3.12.1", "model_path": name},
            **flavors,
        },
        "mlflow_version": "3.17.2",
        "model_uuid": "fa851105fda741cca2f65ec504d61236",
        **others,
    }
    if isinstance(example, pd.DataFrame):
        (directory / "input_example.json").write_text(example.to_json(orient="split", index=False))
        stated["saved_input_example_info"] = {
            "artifact_path": "input_example.json",
            "pandas_orient": "split",
            "type": "dataframe",
        }
    elif example is not None:
        (directory / "input_example.json").write_text(json.dumps(example.tolist()))
        stated["saved_input_example_info"] = {"artifact_path": "input_example.json", "type": "ndarray"}
    (directory / "MLmodel").write_text(yaml.safe_dump(stated))
    return directory


def sklearn_flavor(name: str, form: str, version: str = sklearn.__version__) -> dict[str, Any]:
    said = {"code": None, "pickled_model": name, "serialization_format": form, "sklearn_version": version}
    return {"sklearn": said}


def add(directory: Path, data: Path | None = None) -> LoadedModel:
    estimator, artefact = read_trained(directory)
    trained = Trained(estimator=estimator, artefact=artefact, sample=read_sample(data, artefact))
    return add_trained(directory.parent / "models", "model", trained)


DUMPS: list[tuple[str, str, Callable[[Any], bytes], str]] = [
    ("model.pkl", "pickle", pickle.dumps, "pickle"),
    ("model.pkl", "cloudpickle", cloudpickle.dumps, "pickle"),
    ("model.skops", "skops", io.dumps, "skops"),
]


@pytest.mark.parametrize(("name", "form", "dump", "kept_in"), DUMPS)
def test_sklearn_model_is_added_from_its_directory_alone(
    tmp_path: Path, name: str, form: str, dump: Callable[[Any], bytes], kept_in: str
) -> None:
    fitted = pipeline()
    signature = {"inputs": json.dumps(SIGNATURE), "outputs": None, "params": None}
    directory = tmp_path / "mlflow"
    write_mlflow(directory, sklearn_flavor(name, form), dump(fitted), name, PEOPLE[:6], signature=signature)
    model = add(directory)
    assert (model.manifest.artefact, model.manifest.artefact_format) == (name, kept_in)
    assert [feature.kind for feature in model.manifest.features] == ["number", "number", "category"]
    given = model.predict(model.schema.rows(PEOPLE[:6].to_dict("records")))
    assert [one["label"] for one in given] == fitted.predict(PEOPLE[:6]).tolist()


def test_signature_says_what_the_columns_of_a_table_are(tmp_path: Path) -> None:
    signature = {"inputs": json.dumps(SIGNATURE), "outputs": None, "params": None}
    directory = tmp_path / "mlflow"
    content = pickle.dumps(pipeline())
    write_mlflow(directory, sklearn_flavor("model.pkl", "pickle"), content, "model.pkl", signature=signature)
    PEOPLE.assign(income=range(40)).to_csv(tmp_path / "people.csv", index=False)
    sample = read_sample(tmp_path / "people.csv", read_trained(directory)[1])
    assert sample["zip"].tolist() == PEOPLE["zip"].tolist()
    assert sample["income"].dtype == "float64"


def test_array_is_an_example_too(tmp_path: Path) -> None:
    fitted = LogisticRegression().fit(NUMBERS.to_numpy(), YES)
    tensor = [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]
    directory = write_mlflow(
        tmp_path / "mlflow",
        sklearn_flavor("model.skops", "skops"),
        io.dumps(fitted),
        "model.skops",
        NUMBERS[:5].to_numpy(),
        signature={"inputs": json.dumps(tensor)},
    )
    assert add(directory).schema.names == ("x0", "x1")


def booster_files(path: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """A file of each library, and what MLflow says about it."""
    xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(NUMBERS, YES).save_model(path / "model.ubj")
    lightgbm.train(
        {"objective": "binary", "num_threads": 1, "verbose": -1}, lightgbm.Dataset(NUMBERS, YES), 3
    ).save_model(path / "model.lgb")
    fitted = catboost.CatBoostClassifier(iterations=3, verbose=0, allow_writing_files=False, thread_count=1)
    fitted.fit(NUMBERS, YES).save_model(str(path / "model.cb"))
    return {
        "xgboost": ("model.ubj", {"xgb_version": xgboost.__version__}),
        "lightgbm": ("model.lgb", {"lgb_version": lightgbm.__version__}),
        "catboost": ("model.cb", {"catboost_version": catboost.__version__}),
    }


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_booster_is_added_from_its_directory(tmp_path: Path, library: str) -> None:
    name, said = booster_files(tmp_path)[library]
    content = (tmp_path / name).read_bytes()
    directory = write_mlflow(tmp_path / "mlflow", {library: {"data": name, **said}}, content, name, NUMBERS[:5])
    model = add(directory)
    assert model.manifest.artefact_format == library
    assert model.manifest.fitted_with == {library: sys.modules[library].__version__}
    assert model.schema.names == ("age", "income")


def test_version_that_mlflow_states_is_refused_like_one_in_the_file(tmp_path: Path) -> None:
    content = lightgbm.train({"num_threads": 1, "verbose": -1}, lightgbm.Dataset(NUMBERS, YES), 3).model_to_string()
    flavors = {"lightgbm": {"data": "model.lgb", "lgb_version": "99.1.0"}}
    directory = write_mlflow(tmp_path / "mlflow", flavors, content.encode(), "model.lgb")
    with pytest.raises(CannotAdd, match=f"fitted with lightgbm 99.1.0, this is {lightgbm.__version__}"):
        read_trained(directory)


def test_function_that_another_python_has_pickled_is_refused(tmp_path: Path) -> None:
    fitted = make_pipeline(FunctionTransformer(lambda table: table * 2), LogisticRegression()).fit(TABLE, WORDS)
    flavors = sklearn_flavor("model.pkl", "cloudpickle") | {"python_function": {"python_version": "3.9.7"}}
    directory = write_mlflow(tmp_path / "mlflow", flavors, cloudpickle.dumps(fitted), "model.pkl")
    with pytest.raises(CannotAdd, match=r"fitted with python 3\.9\.7, this is 3"):
        read_trained(directory)


@pytest.mark.parametrize(
    ("flavors", "reason"),
    [
        ({"pytorch": {"model_data": "data"}}, "is an MLflow model of the flavors python_function, pytorch"),
        ({}, "is an MLflow model of the flavors python_function"),
        ({"sklearn": {"pickled_model": "../outside.pkl"}}, "which is outside of it"),
        ({"sklearn": {"pickled_model": "/etc/passwd"}}, "which is outside of it"),
        ({"sklearn": {"pickled_model": "gone.pkl"}}, "No such file"),
        ({"sklearn": {"pickled_model": "."}}, "which is a directory"),
    ],
)
def test_other_directories_are_refused(tmp_path: Path, flavors: dict[str, Any], reason: str) -> None:
    directory = write_mlflow(tmp_path / "mlflow", flavors, b"", "model.pkl")
    with pytest.raises(CannotAdd, match=reason):
        read_trained(directory)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no mapping"),
        ("flavors: [", "is damaged|has a damaged file MLmodel"),
        ("flavors: 3", "names no flavors"),
        ("!!python/object/apply:os.system ['false']", "has a damaged file MLmodel"),
        ("\x00", "has a damaged file MLmodel"),
    ],
)
def test_damaged_mlmodel_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(CannotAdd, match=reason):
        read_trained(tmp_path)


def test_without_rows_add_asks_for_them(tmp_path: Path) -> None:
    directory = tmp_path / "mlflow"
    write_mlflow(directory, sklearn_flavor("model.pkl", "pickle"), pickle.dumps(pipeline()), "model.pkl")
    with pytest.raises(CannotAdd, match="give a table of some with --data"):
        add(directory)
