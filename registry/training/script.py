"""A model's `train.py`: its input, its result, and how it is read.

It lies beside the versions of its model and defines `train(data: TrainingData) -> Trained`. Its bytes are executed only
if they have the hash that the manifest of the live version states.
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
from registry.formats.artefact import Artefact
from registry.outputs import Label
from registry.store.aliases import current
from registry.store.directory import write_whole
from registry.store.loader import verified_bytes
from registry.store.manifest import Manifest, TrainingRecord, read_manifest

SCRIPT = "train.py"
FUNCTION = "train"
MODULE = "forkserve_train"
"""The script's module name while it runs; a class that it defines cannot be imported when the model is served."""

OUTCOME, TIME = "outcome", "time"
"""The columns of TrainingData.outcomes besides the features."""


@dataclass(frozen=True)
class TrainingData:
    """The data for retraining a model.

    `live` is the manifest of the version that answers now: features, classes, metrics. `outcomes` has a row for each
    recorded outcome: the model's features in the user's own terms (None for a missing value), then OUTCOME, the true
    value, and TIME, when it was recorded. It may have no rows.
    """

    model: str
    live: Manifest
    outcomes: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A fitted estimator, and everything needed to make a version of it.

    `sample` is a table of the estimator's input, one column a feature; `held_out` one of the same columns, of rows that
    were not used for fitting. With `target`, the column of true values without gaps, metrics are measured: on
    `held_out`, else on the sample. `targets` name several outputs in their order; columns of these names, if the tables
    have them, are the true values. `labels` name the classes in the order of `classes_`. For `margin` see
    `infer_features`. `source` says where the data came from. A `train.py` must return held-out rows.
    `artefact` is the file that the estimator was read from; a version then keeps that file with its own code, otherwise
    a pickle with the own code that is found by the names of the estimator's classes.
    """

    estimator: Any
    sample: pd.DataFrame
    held_out: pd.DataFrame | None = None
    target: str | None = None
    targets: Sequence[str] = ()
    labels: Sequence[Label] = ()
    margin: float | None = 1.0
    source: str = ""
    artefact: Artefact | None = None

    @property
    def target_columns(self) -> list[str]:
        """The columns of the sample with true values; there may be none."""
        names = [*self.targets, *([] if self.target is None else [self.target])]
        return [name for name in names if name == self.target or name in self.sample]


def read_script(path: Path) -> bytes:
    """A `train.py` that is to lie beside versions. Raises CannotTrain."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CannotTrain(f"{path}: {error.strerror}") from error


def record_script(content: bytes) -> TrainingRecord:
    """The manifest's record of a `train.py`. Raises CannotTrain if it is not Python or defines no `train`."""
    try:
        body = ast.parse(content).body
    except (SyntaxError, ValueError) as error:
        raise CannotTrain(f"{SCRIPT} is not Python: {error}") from error
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    imported = {name.asname or name.name for node in body if isinstance(node, ast.ImportFrom) for name in node.names}
    if FUNCTION not in defined | imported:
        raise CannotTrain(f"{SCRIPT} does not define a function {FUNCTION!r}")
    return TrainingRecord(script=SCRIPT, sha256=hashlib.sha256(content).hexdigest())


def write_script(directory: Path, content: bytes) -> None:
    """Write `train.py` beside the versions in `directory`, once there is a version that names it."""
    write_whole(directory / SCRIPT, content)


def live_manifest(directory: Path) -> Manifest:
    """The manifest of the live version of the model kept in `directory`. Raises VersionRefused."""
    return read_manifest(directory / current(directory).live)


def read_train_function(root: Path, directory: Path, record: TrainingRecord) -> Callable[[TrainingData], Trained]:
    """Execute the script in `directory`, below the model directory `root`, and return its function.

    Call it in a process that may be lost. Raises VersionRefused for a file that is not the recorded one, CannotTrain,
    and whatever the script raises.
    """
    path = directory / record.script
    content = verified_bytes(root, path, record.sha256)
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module  # dataclasses, for one, look their module up
    exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102 - the manifest states the hash of these bytes
    function = module.__dict__.get(FUNCTION)
    if not callable(function):
        raise CannotTrain(f"{record.script} does not define a function {FUNCTION!r}")
    return function  # type: ignore[no-any-return]


def checked(trained: object) -> Trained:
    """The result of a training function, if its types are right. Raises CannotTrain."""
    if not isinstance(trained, Trained):
        raise CannotTrain(f"{FUNCTION} returned a {type(trained).__name__}, not a Trained")
    for name in ("sample", "held_out"):
        table = getattr(trained, name)
        if not isinstance(table, pd.DataFrame) or table.empty:
            raise CannotTrain(f"{FUNCTION} returned no table as {name}")
    return trained
