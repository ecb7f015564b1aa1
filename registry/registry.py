"""All models by name and version; immutable once loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import structlog

from registry.errors import ModelNotFound, VersionNotFound, VersionRefused
from registry.explainers.budget import Budget
from registry.loader import load_version
from registry.manifest import NAME, version_order
from registry.model import LoadedModel

log = structlog.get_logger(__name__)


class Registry:
    """Names to versions to models. The live version of a model is its newest."""

    def __init__(self, models: list[LoadedModel]) -> None:
        versions: dict[str, dict[str, LoadedModel]] = {}
        for model in sorted(models, key=lambda model: (model.name, version_order(model.version))):
            versions.setdefault(model.name, {})[model.version] = model
        self._versions: Mapping[str, Mapping[str, LoadedModel]] = {
            name: MappingProxyType(of_name) for name, of_name in versions.items()
        }
        self._live = {name: list(of_name.values())[-1] for name, of_name in versions.items()}

    def get(self, name: str, version: str | None = None) -> LoadedModel:
        """The live version of a model, or the one asked for. Raises ModelNotFound, VersionNotFound."""
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

    def live(self) -> list[LoadedModel]:
        """The live version of every model, by name."""
        return list(self._live.values())

    def __iter__(self) -> Iterator[LoadedModel]:
        """Every version of every model."""
        return (model for versions in self._versions.values() for model in versions.values())

    def __len__(self) -> int:
        return len(self._live)


def version_directories(root: Path) -> list[Path]:
    """Every `{name}/{version}` directory below `root` that has a fitting name, in order.

    Names that do not fit (a `.git`, a half-written `.new-...`) are not models.
    Raises VersionRefused when there is none.
    """
    found = [
        version
        for name in sorted(_directories(root))
        for version in sorted(_directories(name), key=lambda path: version_order(path.name))
    ]
    if not found:
        raise VersionRefused(root, "holds no model; make one with `forkserve train` or `forkserve add`")
    return found


def _directories(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [inner for inner in path.iterdir() if NAME.fullmatch(inner.name) and inner.is_dir()]


def load_registry(
    root: Path, *, fallback: bool = False, compiled: bool = True, budget: Budget | None = None
) -> Registry:
    """Load and verify every version below `root`. Raises VersionRefused for the first that is not fit to serve."""
    registry = Registry(
        [
            load_version(root, path, fallback=fallback, compiled=compiled, budget=budget)
            for path in version_directories(root)
        ]
    )
    log.info(
        f"Model registry initialized with {len(registry)} models",
        versions=[f"{model.name}/{model.version}" for model in registry],
    )
    return registry


def load_one(root: Path, name: str, version: str | None = None) -> LoadedModel:
    """One version of a model, the newest if none is named. Raises ModelNotFound, VersionNotFound, VersionRefused."""
    versions = {path.name: path for path in version_directories(root) if path.parent.name == name}
    if not versions:
        raise ModelNotFound(f"there is no model {name!r} in {root}")
    if version is None:
        version = list(versions)[-1]
    if version not in versions:
        raise VersionNotFound(f"model {name!r} has no version {version!r}")
    return load_version(root, versions[version])
