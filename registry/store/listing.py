"""What is in the model directory by its manifests alone; cheap to import, so that a list takes no time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from registry.errors import VersionRefused
from registry.store.aliases import current
from registry.store.directory import NAME, Kind, directories, model_directories, read_json

FILENAME = "manifest.json"

MAX_MANIFEST_BYTES = 32 << 20
"""A hundred background rows of 10,000 features take less; all processes that read it may need ten times as much."""


class _Head(msgspec.Struct, frozen=True):
    """The part of a manifest that a list shows; for the whole see `Manifest`."""

    name: str
    version: str
    task: str
    estimator: str
    artefact: str
    metrics: dict[str, float] = {}


class ListedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version, or a whole model whose `version` is empty; it is broken if there is a `fault`."""

    model: str
    version: str = ""
    live: bool = False
    task: str = ""
    estimator: str = ""
    metrics: dict[str, float] = {}
    fault: str = ""


class KeptVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version on disk. `trained_by` is the job of a retraining; empty for a version that was added by hand."""

    name: str
    version: str
    created: str
    metrics: dict[str, float] = {}
    trained_by: str = ""


def kept_versions(directory: Path) -> Iterator[KeptVersion]:
    """The versions of the model in `directory` whose manifests can be read, oldest first. Raises VersionRefused."""
    for path in directories(directory):
        with suppress(VersionRefused):
            yield decode_manifest(path, KeptVersion)


def list_versions(root: Path) -> Iterator[ListedVersion]:
    """Every version below `root`, unloaded, by name and in the order of versions. Raises VersionRefused if none."""
    for directory in model_directories(root):
        live, versions = "", []
        try:
            versions = directories(directory)
            live = current(directory).live
        except VersionRefused as error:
            yield ListedVersion(model=directory.name, fault=f"{error.path.name} {error.reason}")
        for version in versions:
            yield _listed(version, live=live == version.name)


def _listed(directory: Path, *, live: bool) -> ListedVersion:
    name, version = directory.parent.name, directory.name
    try:
        head = _read_head(directory)
    except VersionRefused as error:
        return ListedVersion(model=name, version=version, live=live, fault=f"{error.path.name} {error.reason}")
    return ListedVersion(
        model=name, version=version, live=live, task=head.task, estimator=head.estimator, metrics=head.metrics
    )


def _read_head(directory: Path) -> _Head:
    """Raises VersionRefused."""
    head = decode_manifest(directory, _Head)
    artefact = directory / head.artefact
    if not NAME.fullmatch(head.artefact) or not artefact.exists():
        raise VersionRefused(artefact, "does not exist")
    return head


def decode_manifest(directory: Path, kind: type[Kind]) -> Kind:
    """The manifest of the version kept in `directory`, or the part of it that `kind` has. Raises VersionRefused."""
    path = directory / FILENAME
    try:
        manifest: Any = read_json(path, kind, "is not a manifest", max_bytes=MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise VersionRefused(path, "No such file or directory") from error
    if (manifest.name, manifest.version) != (directory.parent.name, directory.name):
        raise VersionRefused(path, f"is the manifest of {manifest.name}/{manifest.version}")
    return manifest  # type: ignore[no-any-return]
