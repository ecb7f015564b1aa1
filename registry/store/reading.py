"""Reads what a version is made from: a model file with its own code, and rows of the model's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from registry.errors import CannotAdd, CannotRead
from registry.formats.artefact import Artefact, read_artefact
from registry.rows.infer_schema import NO_OPTIONS, FeatureOptions
from registry.store.code import OwnCode
from registry.store.sources import Sources, collect_code, collect_imports, merged
from registry.store.tables import read_table


def read_trained(
    path: Path,
    *,
    force_version: bool = False,
    code: Sequence[Path] = (),
    names: Iterable[str] = (),
    trusted: Sequence[str] = (),
) -> tuple[Any, Artefact]:
    """The estimator in a model file, which is executed, and the file itself, with the own code that it needs.

    `code` are files and directories of such code that are not found by themselves; `names` are functions that are
    needed too, `module:function`. Raises CannotAdd.
    """
    own = None
    try:
        artefact = read_artefact(path, force_version=force_version, trusted=trusted)
        code = (*code, *(artefact.mlflow.code if artefact.mlflow else ()))
        sources = Sources(tuple(code), _project_of(path), artefact=path.name)
        artefact = dataclasses.replace(artefact, code=collect_code(artefact.names | {*names}, sources))
        own = OwnCode.unpacked(artefact.code) if artefact.code else None
        return artefact.load(own), artefact
    except CannotRead as error:
        raise CannotAdd(f"{path}: {error}{_advice(error.__cause__, own)}") from error
    except MemoryError as error:
        raise CannotAdd(f"{path}: needs more memory than there is") from error


def with_imports_of(script: Path, content: bytes, artefact: Artefact, code: Sequence[Path] = ()) -> Artefact:
    """The artefact with the own code that a `train.py` imports besides. Raises CannotAdd."""
    found = collect_imports(script, content, Sources(tuple(code), _project_of(script)))
    return dataclasses.replace(artefact, code=merged(artefact.code, found))


def _project_of(path: Path) -> tuple[Path, ...]:
    """Where the own code of a file may lie: beside it or above, in the current directory, and in `src` there."""
    around = (path.resolve().parent, Path.cwd(), path.resolve().parent.parent)
    return tuple(place for one in around for place in (one, one / "src"))


def _advice(cause: BaseException | None, code: OwnCode | None) -> str:
    """How to mend own code that is incomplete."""
    if isinstance(cause, ModuleNotFoundError):
        return "; if that is code of your own, add its file or directory with --code"
    if isinstance(cause, FileNotFoundError) and code is not None and (missing := code.inside(cause.filename)):
        return f"; if your code needs {missing}, add it with --code"
    return ""


def read_sample(
    path: Path | None,
    artefact: Artefact,
    estimator: Any = None,
    options: FeatureOptions = NO_OPTIONS,
    targets: Sequence[str] = (),
) -> pd.DataFrame:
    """Rows of a model's input: a CSV file, else the rows that an MLflow model was saved with. Raises CannotAdd."""
    model = artefact.mlflow
    if path is None:
        if model is None or model.example is None:
            raise CannotAdd(f"{artefact.path}: no rows of its input came with it; give a table of some with --data")
        return model.example
    columns = model.columns if model is not None else {}
    strings = [name for name, dtype in columns.items() if dtype == "str"]
    table = read_table(path, estimator, options, targets, strings)
    # a column of whole numbers may be one of decimals, as the signature says
    numbers = {name: dtype for name, dtype in columns.items() if name in table and table[name].dtype.kind in "iub"}
    return table.astype({name: dtype for name, dtype in numbers.items() if dtype.startswith("float")})
