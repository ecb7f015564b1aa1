"""Makes a registry of what the model directory contains now, taking over unchanged versions from the registry before.

A version that does not load is left out, or stays as it was loaded before. If it is to be live and was not loaded
before, its model stays as it was altogether; a model that was not there before has its previous version live, or none.
So a broken file never stops what is in service, nor the other models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from registry.errors import VersionRefused, one_line
from registry.model import LoadedModel
from registry.registry import Refusal, Registry, Selected, select_versions
from registry.store.aliases import Aliases
from registry.store.directory import model_directories
from registry.store.manifest import read_manifest

log = structlog.get_logger(__name__)

Load = Callable[[Path], LoadedModel]
"""Loads the version kept in a directory. Raises VersionRefused."""


def versions_to_load(root: Path, selected: Selected) -> list[Path]:
    """The directories of all versions below `root` that a start loads, in its order. Raises VersionRefused if none."""
    found: list[Path] = []
    for directory in model_directories(root):
        try:
            found += select_versions(directory, selected)[0]
        except VersionRefused:  # damaged aliases are reported when it is loaded
            continue
    return found


def renew_registry(old: Registry, root: Path, load: Load, *, selected: Selected) -> tuple[Registry, tuple[str, ...]]:
    """The models below `root`, and a line for every file that was not fit to serve. Never raises.

    Models of `old` whose manifests are equal are not loaded again. `load` is called for one version at a time.
    """
    try:
        names = model_directories(root)
    except VersionRefused as error:
        return old, (_line(root, error),)
    renewal = _Renewal(old, root, load, selected)
    for directory in names:
        renewal.take_model(directory)
    refusals = renewal.refusals
    registry = Registry(renewal.models, renewal.aliases, refusals, root)
    return registry, tuple(refusal.reason for refusal in refusals)


@dataclass(frozen=True)
class _Renewal:
    old: Registry
    root: Path
    load: Load
    selected: Selected
    models: list[LoadedModel] = field(default_factory=list)
    aliases: dict[str, Aliases] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def take_model(self, directory: Path) -> None:
        """Take the model kept in `directory`, or else as it was before."""
        name = directory.name
        before = dict(self.old.versions(name)) if name in self.old else {}
        loaded: dict[str, LoadedModel] = {}
        wanted = None
        try:
            versions, wanted = select_versions(directory, self.selected)
        except VersionRefused as error:
            self.refusals.append(Refusal(name, "", _line(self.root, error)))
        else:
            found = [self._version(path, before.get(path.name)) for path in versions]
            loaded = {one.version: one for one in found if one is not None}
        if before and (wanted is None or wanted.live not in loaded):
            loaded, self.aliases[name] = before, self.old.aliases(name)
        elif wanted is not None and loaded:
            self.aliases[name] = _aliases_of(name, wanted, loaded)
        self.models.extend(loaded.values())

    def _version(self, path: Path, before: LoadedModel | None) -> LoadedModel | None:
        """The version kept in `path`; if it is not fit to serve, as it was loaded before, or None."""
        try:
            # a fallback is always loaded again: its artefact may have been mended
            if before is not None and not before.fallback and before.manifest == read_manifest(path):
                return before
            return self.load(path)
        except VersionRefused as error:
            refused = error
        except Exception as error:  # noqa: BLE001 - foreign code; it must not take the other models along
            refused = VersionRefused(path, f"does not load: {type(error).__name__}: {one_line(error)}")
        self.refusals.append(Refusal(path.parent.name, path.name, _line(self.root, refused)))
        return before


def _aliases_of(name: str, wanted: Aliases, loaded: dict[str, LoadedModel]) -> Aliases:
    """The aliases of a model of which only these versions are loaded."""
    found = wanted.among(list(loaded))
    if wanted.live in loaded or found.previous is None:
        return found
    log.error("Previous version is live", model=name, version=found.previous, refused=wanted.live)
    return Aliases(found.previous)


def _line(root: Path, error: VersionRefused) -> str:
    """One line about a refused file, without the model directory's path: not only the operator may read it."""
    place = error.path.relative_to(root) if error.path.is_relative_to(root) else Path(error.path.name)
    return f"{place}: {error.reason}"
