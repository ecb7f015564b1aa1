"""A registry of what is in the model directory now, from one of what was: what has not changed is taken over.

What is broken leaves what was there before in service. A version that does not load is left out, or stays as it was
loaded before; if it is to be the live one and was not there before, its model stays as it was altogether.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import VersionRefused
from registry.model import LoadedModel
from registry.registry import Registry, Selected, read_offer
from registry.store.aliases import Aliases
from registry.store.directory import model_directories
from registry.store.manifest import read_manifest

Load = Callable[[Path], LoadedModel]
"""Loads the version kept in a directory. Raises VersionRefused."""


@dataclass(frozen=True)
class Renewal:
    """What is served now, and a line for everything on disk that was not fit to be."""

    registry: Registry
    refused: tuple[str, ...]


def renew_registry(old: Registry, root: Path, load: Load, *, selected: Selected = "all") -> Renewal:
    """The models below `root`; those of `old` whose manifests are the same are not loaded again. Never raises.

    `load` is asked for one version at a time.
    """
    try:
        names = model_directories(root)
    except VersionRefused as error:
        return Renewal(old, (_line(root, error),))
    renewing = _Renewing(old, root, load, selected)
    for directory in names:
        renewing.take(directory)
    return Renewal(Registry(renewing.models, renewing.aliases), tuple(renewing.refused))


@dataclass
class _Renewing:
    """The models taken so far."""

    old: Registry
    root: Path
    load: Load
    selected: Selected
    models: list[LoadedModel] = field(default_factory=list)
    aliases: dict[str, Aliases] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def take(self, directory: Path) -> None:
        """The model kept in `directory`, or as it was before."""
        name = directory.name
        before = dict(self.old.versions(name)) if name in self.old else {}
        try:
            offer = read_offer(directory, self.selected)
        except VersionRefused as error:
            self.refused.append(_line(self.root, error))
            self._keep(name, before)
            return
        found = {path.name: self._version(path, before.get(path.name)) for path in offer.versions}
        loaded = {version: model for version, model in found.items() if model is not None}
        if offer.aliases.live not in loaded:
            self._keep(name, before)
            return
        self.models.extend(loaded.values())
        previous = offer.aliases.previous if offer.aliases.previous in loaded else None
        self.aliases[name] = Aliases(offer.aliases.live, previous)

    def _version(self, path: Path, before: LoadedModel | None) -> LoadedModel | None:
        """The version kept in `path`; if that is not fit to serve, as it was loaded before, or None."""
        try:
            # a fallback is no model to keep: its artefact may have been mended
            if before is not None and not before.fallback and before.manifest == read_manifest(path):
                return before
            return self.load(path)
        except VersionRefused as error:
            self.refused.append(_line(self.root, error))
            return before

    def _keep(self, name: str, before: dict[str, LoadedModel]) -> None:
        if before:
            self.models.extend(before.values())
            self.aliases[name] = self.old.aliases(name)


def _line(root: Path, error: VersionRefused) -> str:
    """What is wrong with which file, without where the model directory is: others than the operator may read it."""
    place = error.path.relative_to(root) if error.path.is_relative_to(root) else Path(error.path.name)
    return f"{place}: {error.reason}"
