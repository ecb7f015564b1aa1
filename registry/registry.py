"""All models by name and version, and which versions are live; immutable once loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import structlog

from registry.errors import ModelNotFound, VersionNotFound
from registry.model import LoadedModel
from registry.store.aliases import Aliases, newest, read_aliases
from registry.store.directory import directories, find_model, model_directories, version_order
from registry.store.loader import load_version
from registry.store.options import DEFAULT_OPTIONS, LoadOptions

log = structlog.get_logger(__name__)

Selected = Literal["all", "live"]
"""Which versions are loaded: all on disk, or the live and the previous one of each model."""


class Registry:
    """Names to versions to models."""

    def __init__(self, models: list[LoadedModel], aliases: Mapping[str, Aliases] | None = None) -> None:
        """`aliases` by model name; for a model without, the newest version is live."""
        versions: dict[str, dict[str, LoadedModel]] = {}
        for model in sorted(models, key=lambda model: (model.name, version_order(model.version))):
            versions.setdefault(model.name, {})[model.version] = model
        self._versions: Mapping[str, Mapping[str, LoadedModel]] = {
            name: MappingProxyType(of_name) for name, of_name in versions.items()
        }
        by_age = {name: newest(list(of_name)) for name, of_name in versions.items()}
        self._aliases = by_age | dict(aliases or {})
        self._live = {name: of_name[self._aliases[name].live] for name, of_name in versions.items()}

    def get(self, name: str, version: str | None = None) -> LoadedModel:
        """One version of a model, the live one if none is named. Raises ModelNotFound, VersionNotFound."""
        if name not in self._live:
            raise ModelNotFound
        if version is None:
            return self._live[name]
        if version not in self._versions[name]:
            raise VersionNotFound
        return self._versions[name][version]

    def versions(self, name: str) -> Mapping[str, LoadedModel]:
        """All versions of a model, oldest first. Raises ModelNotFound."""
        if name not in self._versions:
            raise ModelNotFound
        return self._versions[name]

    def aliases(self, name: str) -> Aliases:
        """Which version of a model is live, and which was before. Raises ModelNotFound."""
        if name not in self._live:
            raise ModelNotFound
        return self._aliases[name]

    def live(self) -> list[LoadedModel]:
        """The live version of every model, by name."""
        return list(self._live.values())

    def __contains__(self, name: str) -> bool:
        return name in self._live

    def __iter__(self) -> Iterator[LoadedModel]:
        """Every version of every model."""
        return (model for versions in self._versions.values() for model in versions.values())

    def __len__(self) -> int:
        return len(self._live)


def select_versions(directory: Path, selected: Selected) -> tuple[list[Path], Aliases]:
    """The version directories of a model that are to be loaded, oldest first, and its aliases.

    Raises VersionRefused for aliases that are damaged or name a live version that does not exist.
    """
    versions = directories(directory)
    aliases = read_aliases(directory, [path.name for path in versions])
    if selected == "live":
        versions = [path for path in versions if path.name in (aliases.live, aliases.previous)]
    return versions, aliases


def load_registry(
    root: Path, options: LoadOptions = DEFAULT_OPTIONS, *, selected: Selected = "all", fallback: bool = False
) -> Registry:
    """Load and verify the versions below `root`. Raises VersionRefused for the first that is not fit to serve."""
    found = {directory.name: select_versions(directory, selected) for directory in model_directories(root)}
    registry = Registry(
        [load_version(root, path, options, fallback=fallback) for versions, _ in found.values() for path in versions],
        {name: aliases for name, (_, aliases) in found.items()},
    )
    log.info(
        f"Model registry initialized with {len(registry)} models",
        versions=[f"{model.name}/{model.version}" for model in registry],
    )
    return registry


def load_one(root: Path, name: str, version: str | None = None, options: LoadOptions = DEFAULT_OPTIONS) -> LoadedModel:
    """One version of a model, the live one if none is named. Raises ModelNotFound, VersionNotFound, VersionRefused."""
    directory = find_model(root, name)
    versions = {path.name: path for path in directories(directory)}
    if version is None:
        version = read_aliases(directory, list(versions)).live
    if version not in versions:
        raise VersionNotFound(f"model {name!r} has no version {version!r}")
    return load_version(root, versions[version], options)
