"""A model's `train.py`: its input, its result, and how it is read.

It lies beside the versions of its model and defines `train(data: TrainingData) -> Trained`. Its bytes are executed only
if they have the hash that the manifest of the live version states.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import decode_source
from pathlib import Path
from typing import Any

import pandas as pd

from registry.errors import CannotTrain
from registry.formats.artefact import Artefact
from registry.outputs import Label
from registry.rows.infer_schema import NO_OPTIONS, FeatureOptions
from registry.store.aliases import current
from registry.store.code import CODE, OwnCode
from registry.store.definitions import definitions
from registry.store.directory import write_whole
from registry.store.loader import read_code, verified_bytes
from registry.store.manifest import Manifest, TrainingRecord, read_manifest
from registry.store.sources import Sources, collect_code, merged
from registry.training.metrics import Better

SCRIPT = "train.py"
FUNCTION = "train"
MODULE = "forkserve_train"
"""The script's module name while it runs, and that of its classes in the versions that it makes."""

MODULE_FILE = f"{MODULE}.py"

TABLES = ("sample", "held_out", "calibration")
"""The tables of Trained."""

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
    have them, are the true values. `labels` name the classes in the order of `classes_`. Numbers beyond the sample's
    are accepted unless a `margin` is given (see `infer_features`); `features` says what else a model should take than
    its pipeline and its sample show. `source` says where the data came from. `calibration` has further rows that were
    not used for fitting, with the target; intervals and sets of labels are made from them. A `train.py` must return
    held-out rows. `artefact` is the file that the estimator was read from; a version then keeps that file with its own
    code, otherwise a pickle with the own code that is found by the names of the estimator's classes. `metrics` are
    functions of your own to be measured, `{"costs:profit": "higher"}`: module and name of an `f(y_true, y_pred)`, and
    what is better.
    `groups` are features whose contributions explanations sum, by the name of the sum; `feature_labels` are labels for
    people, by feature or group. A retrained version keeps those of the live one where a `train.py` gives none.
    """

    estimator: Any
    sample: pd.DataFrame
    held_out: pd.DataFrame | None = None
    target: str | None = None
    targets: Sequence[str] = ()
    labels: Sequence[Label] = ()
    margin: float | None = None
    features: FeatureOptions = NO_OPTIONS
    source: str = ""
    artefact: Artefact | None = None
    metrics: Mapping[str, Better] = field(default_factory=dict)
    calibration: pd.DataFrame | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    feature_labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Columns that are numbered, as those of an array, have their numbers for names."""
        for name in TABLES:
            table = getattr(self, name)
            if isinstance(table, pd.DataFrame):  # a train.py may have given anything
                object.__setattr__(self, name, table.rename(columns=str))

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


@dataclass(frozen=True)
class Script:
    """A `train.py` that has been executed; `code` are the own modules that it may import, source files by path."""

    train: Callable[[TrainingData], Trained]
    content: bytes
    code: Mapping[str, bytes]

    def code_for(self, names: Iterable[str]) -> dict[str, bytes]:
        """The own code of a version whose artefact has these `names`: definitions in the script are taken from it.

        Raises CannotAdd.
        """
        mine = {name.rpartition(":")[2].partition(".")[0] for name in names if name.startswith(f"{MODULE}:")}
        tops = {path.partition("/")[0].removesuffix(".py") for path in self.code} | {MODULE}
        others = {name for name in names if name.partition(":")[0].partition(".")[0] not in tops}
        code = merged(self.code, collect_code(others, Sources()))
        return {**code, MODULE_FILE: definitions(decode_source(self.content), mine).encode()} if mine else code


def execute_script(root: Path, directory: Path, record: TrainingRecord, live: Manifest | None = None) -> Script:
    """Execute the script in `directory`, below the model directory `root`, with the own code of the live version.

    Call it in a process that may be lost. Raises VersionRefused for a file that is not the recorded one, CannotTrain,
    and whatever the script raises.
    """
    path = directory / record.script
    content = verified_bytes(root, path, record.sha256)
    place, files = directory, {}
    if live is not None:
        place = directory / live.version / CODE
        files = {name: source for name, source in read_code(root, place.parent, live).items() if name != MODULE_FILE}
    code = OwnCode(place, {**files, MODULE_FILE: content}, {MODULE_FILE: path})
    function = getattr(code.find(MODULE, ""), FUNCTION, None)
    if not callable(function):
        raise CannotTrain(f"{record.script} does not define a function {FUNCTION!r}")
    return Script(function, content, files)


def checked(trained: object) -> Trained:
    """The result of a training function, if its types are right. Raises CannotTrain."""
    if not isinstance(trained, Trained):
        raise CannotTrain(f"{FUNCTION} returned a {type(trained).__name__}, not a Trained")
    for name in TABLES:
        table = getattr(trained, name)
        if table is None and name == "calibration":
            continue
        if not isinstance(table, pd.DataFrame) or table.empty:
            raise CannotTrain(f"{FUNCTION} returned no table as {name}")
    return trained
