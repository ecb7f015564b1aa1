"""What a model's `train.py` is given and gives, and how it is read: its bytes run only if their hash is the manifest's.

A `train.py` lies beside the versions of its model and defines one function, `train(data: TrainingData) -> Trained`.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from registry.errors import CannotTrain
from registry.store.aliases import current
from registry.store.directory import write_whole
from registry.store.loader import verified_bytes
from registry.store.manifest import Manifest, TrainingRecord, read_manifest

SCRIPT = "train.py"
FUNCTION = "train"
MODULE = "forkserve_train"
"""What the script is called while it runs; a class that it defines cannot be found by this name when it is served."""

OUTCOME, TIME = "outcome", "time"
"""The columns of TrainingData.outcomes besides the features."""


@dataclass(frozen=True)
class TrainingData:
    """What is known when a model is trained anew.

    `live` is the manifest of the version that answers now: features, classes, metrics. `outcomes` is what really
    happened: a row for each, the model's features in the user's own terms (None for a missing value), then OUTCOME, the
    truth, and TIME, when it was; often it has no row.
    """

    model: str
    live: Manifest
    outcomes: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A fitted estimator, and what is needed to make a version of it.

    `sample` is a table of its input, of which it learnt; `held_out` one of the same columns, of which it did not. Both
    have the column `target`, the truth, without missing values. The other fields are as of `add_version`. Clusterers
    and outlier detectors have no target.
    """

    estimator: Any
    sample: pd.DataFrame
    held_out: pd.DataFrame
    target: str | None = None
    labels: Sequence[str] = ()
    margin: float | None = 1.0
    source: str = ""


Train = Callable[[TrainingData], Trained]


def read_script(path: Path) -> bytes:
    """A `train.py` to be put beside versions. Raises CannotTrain."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CannotTrain(f"{path}: {error.strerror}") from error


def record_script(content: bytes) -> TrainingRecord:
    """How a manifest names a `train.py`. Raises CannotTrain for one that cannot be."""
    try:
        body = ast.parse(content).body
    except (SyntaxError, ValueError) as error:
        raise CannotTrain(f"{SCRIPT} is not Python: {error}") from error
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    imported = {name.asname or name.name for node in body if isinstance(node, ast.ImportFrom) for name in node.names}
    if FUNCTION not in defined | imported:
        raise CannotTrain(f"{SCRIPT} defines no function {FUNCTION!r}")
    return TrainingRecord(script=SCRIPT, sha256=hashlib.sha256(content).hexdigest())


def write_script(directory: Path, content: bytes) -> None:
    """Put it beside the versions in `directory`. To be called when there is a version that names it."""
    write_whole(directory / SCRIPT, content)


def live_manifest(directory: Path) -> Manifest:
    """Of the live version of the model kept in `directory`. Raises VersionRefused."""
    return read_manifest(directory / current(directory).live)


def read_train_function(root: Path, directory: Path, record: TrainingRecord) -> Train:
    """The function of the script in `directory`, below the model directory `root`; running the script defines it.

    To be called in a process that may be lost. Raises VersionRefused for a file that is not the recorded one,
    CannotTrain, and whatever the script raises.
    """
    path = directory / record.script
    content = verified_bytes(root, path, record.sha256)
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module  # dataclasses, for one, look their module up
    exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102 - the manifest vouches for these bytes
    function = module.__dict__.get(FUNCTION)
    if not callable(function):
        raise CannotTrain(f"{record.script} defines no function {FUNCTION!r}")
    return function  # type: ignore[no-any-return]


def checked(trained: object) -> Trained:
    """What a training function gave, if it is of the right types. Raises CannotTrain."""
    if not isinstance(trained, Trained):
        raise CannotTrain(f"{FUNCTION} gave a {type(trained).__name__}, not a Trained")
    for name in ("sample", "held_out"):
        table = getattr(trained, name)
        if not isinstance(table, pd.DataFrame) or table.empty:
            raise CannotTrain(f"{FUNCTION} gave no table as {name}")
    return trained
