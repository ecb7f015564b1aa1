"""A version's manifest: what its artefact is, its features and outputs, and the hash that it must have."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from registry.errors import VersionRefused
from registry.estimator import Task
from registry.explain.shap_values import Budget, Method, Space
from registry.formats.versions import Format
from registry.outputs import Label, Layout, Part, Target
from registry.rows.features import Feature, Input
from registry.store.code import CODE
from registry.store.directory import NAME
from registry.store.distributions import Distributions
from registry.store.listing import FILENAME, decode_manifest


class ExplainerRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The explainer that was chosen when the version was added.

    `importance` is the mean of |SHAP| over outputs and the first `importance_rows` background rows, by feature.
    """

    method: Method
    space: Space
    importance: dict[str, float]
    importance_rows: int
    budgets: dict[Space, Budget] = {}
    """What was decided on the time of explanations that are sampled, by the space that they explain."""


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The script that retrains the model: a Python file beside the versions, and the hash that it must have."""

    script: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of one model. `background` rows and `example` are in the user's own terms, as JSON values."""

    format: Literal[1] = 1
    name: str
    version: str
    task: Task
    estimator: str
    artefact: str
    sha256: str
    code: dict[str, str] = {}
    """The version's own code: the sha256 of each file, by its path below `code` in the version's directory."""
    created: str
    libraries: dict[str, str]
    """Versions that it was fitted with; of those that the artefact does not state, versions that it was added with."""
    features: tuple[Feature, ...]
    input: Input
    classes: tuple[Label, ...] = ()
    """The labels of a classifier with one target; strings in manifests written before labels kept their types."""
    outputs: tuple[Part, ...] = ()
    """The parts of the outputs of each target; empty in manifests written before there were margins and scores."""
    targets: tuple[Target, ...] = ()
    """The targets of a model with several."""
    conformal: tuple[float, ...] = ()
    """The sorted scores of calibration rows; see `registry.conformal`."""
    example: dict[str, Any]
    background: tuple[tuple[Any, ...], ...]
    expected: tuple[tuple[float, ...], ...]
    """The estimator's outputs for the first background rows when the version was added."""
    baseline: tuple[float, ...]
    """Mean output over the sample, which a fallback model answers."""
    metrics: dict[str, float] = {}
    custom_metrics: dict[str, Literal["higher", "lower"]] = {}
    """Metrics of the user's own, `module:function`, and which of their values are better."""
    source: str = ""
    entities: bool = False
    """True if the model predicts from records of entities; its features are then columns of a record."""
    kind: str = ""
    """The kind of these entities; empty for those that have no kind."""
    explainer: ExplainerRecord | None = None
    """None for a version that was added before explainers were recorded, or where none fits."""
    distributions: Distributions | None = None
    """What is usual in the sample; None for a version of before this was recorded."""
    groups: dict[str, tuple[str, ...]] = {}
    """Features whose contributions are shown as one sum, by the name of the sum."""
    feature_labels: dict[str, str] = {}
    """Labels for people, by feature or group."""
    training: TrainingRecord | None = None
    """None for a model that cannot be retrained."""
    artefact_format: Format = "joblib"
    fitted_with: dict[str, str] | None = None
    """The versions of libraries that the artefact itself states; None for a version of before this was recorded."""
    trusted: tuple[str, ...] = ()
    """Types that the user trusts in a skops file with this hash."""
    forced: str = ""
    """A sentence for a model that was added although it was fitted with another version of its library."""
    trained_by: str = ""
    """The job that trained this version; empty for one that was added by hand."""


def layout_in(manifest: Manifest) -> Layout:
    """The layout of the outputs of a version, which manifests written before layouts only imply."""
    if manifest.outputs:
        return Layout(manifest.outputs, manifest.targets or (Target(name="", classes=manifest.classes),))
    width, classes = len(manifest.baseline), len(manifest.classes)
    parts: tuple[Part, ...] = ("probabilities",) if width == classes else ("probabilities", "label")
    if manifest.task == "regression":
        parts = ("value",)
    elif width == 1 and classes != 1:
        parts = ("label",)
    return Layout(parts, (Target(name="", classes=manifest.classes),))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the version kept in `directory`. Raises VersionRefused."""
    path, manifest = directory / FILENAME, decode_manifest(directory, Manifest)
    scripts = () if manifest.training is None else (manifest.training.script,)
    for name in (manifest.name, manifest.version, manifest.artefact, *scripts):
        if not NAME.fullmatch(name):
            raise VersionRefused(path, f"{name!r} is not a plain file name")
    for name in manifest.code:
        if not _is_inside(name):
            raise VersionRefused(path, f"{name!r} is not a path inside {CODE}")
    if not manifest.features:
        raise VersionRefused(path, "lists no features")
    return manifest


def _is_inside(path: str) -> bool:
    """Return whether a relative path stays where it starts, spelled as `as_posix` spells it."""
    plain = PurePosixPath(path)
    return not plain.is_absolute() and ".." not in plain.parts and str(plain) == path != "." and path.isprintable()


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of a manifest's file, indented, so that people can read it too."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the file into the directory of the version."""
    (directory / FILENAME).write_bytes(encode_manifest(manifest))
