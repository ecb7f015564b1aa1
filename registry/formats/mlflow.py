"""Model directories of MLflow: the model file in one, the columns that it takes, and rows of its input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from registry.errors import CannotRead, one_line
from registry.store.directory import read_file

MODEL_FILE = "MLmodel"
MAX_BYTES = 10 << 20
"""The largest MLmodel and input example that are read."""

FLAVORS: Mapping[str, tuple[str, str, str]] = {
    "sklearn": ("pickled_model", "sklearn_version", "scikit-learn"),
    "xgboost": ("data", "xgb_version", "xgboost"),
    "lightgbm": ("data", "lgb_version", "lightgbm"),
    "catboost": ("data", "catboost_version", "catboost"),
}
"""For each flavor its members with the model's file and with the library's version, and the library."""

DTYPES: Mapping[str, str] = {
    "boolean": "bool",
    "datetime": "datetime64[us]",
    "double": "float64",
    "float": "float32",
    "integer": "int32",
    "long": "int64",
    "string": "str",
}
"""The dtype of a column for each type of a signature."""


@dataclass(frozen=True, kw_only=True)
class MLflowModel:
    """What the MLmodel file of a directory says; `columns` are dtypes by name, in the order of the signature."""

    file: Path
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    code: tuple[Path, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    example: pd.DataFrame | None = None


def read_mlflow(directory: Path) -> MLflowModel:
    """Read the MLmodel file of a directory. Raises CannotRead."""
    stated = _read_yaml(directory / MODEL_FILE)
    flavors = stated.get("flavors")
    if not isinstance(flavors, dict):
        raise CannotRead(f"has a file {MODEL_FILE} that names no flavors")
    flavor = next((name for name in FLAVORS if isinstance(flavors.get(name), dict)), None)
    if flavor is None:
        names = ", ".join(one_line(name) for name in flavors)
        raise CannotRead(f"is an MLflow model of the flavors {names}; those that can be added are {', '.join(FLAVORS)}")
    member, version, library = FLAVORS[flavor]
    said = flavors[flavor]
    generic = flavors.get("python_function")
    python = generic.get("python_version") if isinstance(generic, dict) else None
    columns = _signature(stated)
    code = said.get("code")
    return MLflowModel(
        file=_inside(directory, said.get(member) or said.get("data") or "model.pkl"),
        versions={library: str(said[version])} if said.get(version) else {},
        python=str(python or ""),
        code=(_inside(directory, code),) if code else (),
        columns={name: DTYPES[kind] for name, kind in columns if kind in DTYPES},
        example=_example(directory, stated, {name: DTYPES.get(kind) for name, kind in columns}),
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise CannotRead("is a model of MLflow; to read it, run `pip install 'forkserve[mlflow]'`") from error
    try:
        found = yaml.safe_load(_limited(path))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CannotRead(f"has a damaged file {MODEL_FILE}: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise CannotRead(f"has a damaged file {MODEL_FILE}: it holds no mapping")
    return found


def _limited(path: Path) -> bytes:
    try:
        content = read_file(path)
    except OSError as error:
        raise CannotRead(f"has a file {path.name} that cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise CannotRead(f"has a file {path.name} of more than {MAX_BYTES >> 20} MB")
    return content


def _inside(directory: Path, name: object) -> Path:
    """A path that an MLmodel file states, which must be below its directory. Raises CannotRead."""
    path = directory / str(name)
    if not path.resolve().is_relative_to(directory.resolve()):
        raise CannotRead(f"names {one_line(name)}, which is outside of it")
    return path


def _signature(stated: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and type of each column; [] for a tensor or without a signature."""
    try:
        inputs = json.loads(stated["signature"]["inputs"])
        return [(str(one["name"]), str(one["type"])) for one in inputs]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _example(directory: Path, stated: Mapping[str, Any], dtypes: Mapping[str, str | None]) -> pd.DataFrame | None:
    """The rows that the model was saved with, if it was. Raises CannotRead."""
    info = stated.get("saved_input_example_info")
    if not isinstance(info, dict) or info.get("type") not in ("dataframe", "ndarray") or "artifact_path" not in info:
        return None
    path = _inside(directory, info["artifact_path"])
    try:
        found = json.loads(_limited(path))
        if isinstance(found, dict) and "inputs" in found:  # as MLflow wrote arrays
            found = found["inputs"]
        if info["type"] == "dataframe":
            table = pd.DataFrame(found["data"], columns=found["columns"])
        else:
            table = pd.DataFrame(found)
            table.columns = pd.Index([f"x{place}" for place in range(table.shape[1])])
        known = {name: dtype for name, dtype in dtypes.items() if dtype is not None and name in table}
        return table.astype({name: dtype for name, dtype in known.items() if table[name].notna().all()})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CannotRead(f"has a damaged input example: {one_line(error)}") from error
