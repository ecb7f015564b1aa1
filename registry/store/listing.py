"""What is in the model directory by its manifests alone; cheap to import, so that a list takes no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from registry.errors import VersionRefused
from registry.store.aliases import current
from registry.store.directory import NAME, directories, model_directories, read_file

FILENAME = "manifest.json"


class _Head(msgspec.Struct, frozen=True):
    """The part of a manifest that a list shows; for the whole see `Manifest`."""

    name: str
    version: str
    task: str
    estimator: str
    artefact: str
    metrics: dict[str, float] = {}


Kind = TypeVar("Kind")


class ListedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version, or a whole model whose `version` is empty; it is broken if there is a `fault`."""

    model: str
    version: str = ""
    live: bool = False
    task: str = ""
    estimator: str = ""
    metrics: dict[str, float] = {}
    fault: str = ""


def list_versions(root: Path) -> Iterator[ListedVersion]:
    """Every version below `root`, unloaded, by name and in the order of versions. Raises VersionRefused if none."""
    for directory in model_directories(root):
        live = ""
        try:
            live = current(directory).live
        except VersionRefused as error:
            yield ListedVersion(model=directory.name, fault=f"{error.path.name} {error.reason}")
        for version in directories(directory):
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
        manifest: Any = msgspec.json.decode(read_file(path), type=kind)
    except OSError as error:
        raise VersionRefused(path, error.strerror or str(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VersionRefused(path, f"is not a manifest: {error}") from error
    if (manifest.name, manifest.version) != (directory.parent.name, directory.name):
        raise VersionRefused(path, f"is the manifest of {manifest.name}/{manifest.version}")
    return manifest  # type: ignore[no-any-return]
