"""Makes a registry of what the model directory contains now, taking over unchanged versions from the registry before.

A version that does not load is left out, or stays as it was loaded before. If it is to be live and was not loaded
before, its model stays as it was altogether. So a broken file never stops what is in service.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from registry.errors import VersionRefused
from registry.model import LoadedModel
from registry.registry import Registry, Selected, select_versions
from registry.store.aliases import Aliases
from registry.store.directory import model_directories
from registry.store.manifest import read_manifest

Load = Callable[[Path], LoadedModel]
"""Loads the version kept in a directory. Raises VersionRefused."""


def renew_registry(old: Registry, root: Path, load: Load, *, selected: Selected) -> tuple[Registry, tuple[str, ...]]:
    """The models below `root`, and a line for every file that was not fit to serve. Never raises.

    Models of `old` whose manifests are equal are not loaded again. `load` is called for one version at a time.
    """
    models: list[LoadedModel] = []
    aliases: dict[str, Aliases] = {}
    refused: list[str] = []

    def version(path: Path, before: LoadedModel | None) -> LoadedModel | None:
        """The version kept in `path`; if it is not fit to serve, as it was loaded before, or None."""
        try:
            # a fallback is always loaded again: its artefact may have been mended
            if before is not None and not before.fallback and before.manifest == read_manifest(path):
                return before
            return load(path)
        except VersionRefused as error:
            refused.append(_line(root, error))
            return before

    def model(directory: Path) -> None:
        """Take the model kept in `directory`, or else as it was before."""
        name = directory.name
        before = dict(old.versions(name)) if name in old else {}
        try:
            versions, wanted = select_versions(directory, selected)
            found = [version(path, before.get(path.name)) for path in versions]
            loaded = {one.version: one for one in found if one is not None}
        except VersionRefused as error:
            refused.append(_line(root, error))
            loaded = {}
        if loaded and wanted.live in loaded:
            models.extend(loaded.values())
            aliases[name] = Aliases(wanted.live, wanted.previous if wanted.previous in loaded else None)
        elif before:
            models.extend(before.values())
            aliases[name] = old.aliases(name)

    try:
        names = model_directories(root)
    except VersionRefused as error:
        return old, (_line(root, error),)
    for directory in names:
        model(directory)
    return Registry(models, aliases), tuple(refused)


def _line(root: Path, error: VersionRefused) -> str:
    """One line about a refused file, without the model directory's path: not only the operator may read it."""
    place = error.path.relative_to(root) if error.path.is_relative_to(root) else Path(error.path.name)
    return f"{place}: {error.reason}"
