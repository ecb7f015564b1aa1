"""All models by name and version, and which versions are live; immutable once loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NoReturn

from registry.errors import ModelNotFound, NotLoaded, NotYetLoaded, VersionNotFound
from registry.model import LoadedModel
from registry.store.aliases import Aliases, newest, read_aliases
from registry.store.directory import NAME, directories, find_model, model_directories, version_order
from registry.store.listing import FILENAME
from registry.store.loader import load_version
from registry.store.options import DEFAULT_OPTIONS, LoadOptions

Selected = Literal["all", "live"]
"""Which versions are loaded: all on disk, or of each model the live and the previous one, and those that are tried."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version on disk that could not be loaded; `version` is empty if it is the whole model."""

    model: str
    version: str
    reason: str
    """One line that names the file below the model directory."""


class Registry:
    """Names to versions to models, and what is on disk but could not be loaded."""

    def __init__(
        self,
        models: Sequence[LoadedModel],
        aliases: Mapping[str, Aliases] | None = None,
        refusals: Sequence[Refusal] = (),
        root: Path | None = None,
    ) -> None:
        """`aliases` by model name; for a model without, the newest version is live. They were loaded from `root`.

        A model whose live version is not among its versions has none: only its others can be asked for, by name.
        """
        versions: dict[str, dict[str, LoadedModel]] = {}
        for model in sorted(models, key=lambda model: (model.name, version_order(model.version))):
            versions.setdefault(model.name, {})[model.version] = model
        self._versions: Mapping[str, Mapping[str, LoadedModel]] = {
            name: MappingProxyType(of_name) for name, of_name in versions.items()
        }
        by_age = {name: newest(list(of_name)) for name, of_name in versions.items()}
        self._aliases = by_age | dict(aliases or {})
        live = {name: self._aliases[name].live for name in versions}
        self._live = {name: versions[name][version] for name, version in live.items() if version in versions[name]}
        self.refusals = tuple(refusals)
        self._root = root

    def get(self, name: str, version: str | None = None) -> LoadedModel:
        """One version of a model, the live one if none is named. Raises ModelNotFound, VersionNotFound, NotLoaded."""
        found = self._live.get(name) if version is None else self._versions.get(name, {}).get(version)
        return found or self._missing(name, version)

    def _missing(self, name: str, version: str | None) -> NoReturn:
        refused = [refusal.version for refusal in self.refusals if refusal.model == name]
        if "" in refused or (refused and version is None):
            raise NotLoaded(f"the model {name} could not be loaded; /health says why")
        if version in refused:
            raise NotLoaded(f"version {version} of the model {name} could not be loaded; /health says why")
        if self._is_on_disk(name, version):
            which = f"the model {name}" if version is None else f"version {version} of the model {name}"
            raise NotYetLoaded(f"{which} is there but not loaded; a reload does it: POST /api/admin/models:reload")
        if refused or name in self._versions:
            raise VersionNotFound
        raise ModelNotFound

    def _is_on_disk(self, name: str, version: str | None) -> bool:
        if self._root is None or not all(NAME.fullmatch(part) for part in (name, version or name)):
            return False
        # a look at what is there opens nothing, whatever a client asks for
        return (self._root / name).is_dir() if version is None else (self._root / name / version / FILENAME).is_file()

    def versions(self, name: str) -> Mapping[str, LoadedModel]:
        """All versions of a model, oldest first. Raises ModelNotFound, NotLoaded."""
        if name not in self._versions:
            self._missing(name, None)
        return self._versions[name]

    def aliases(self, name: str) -> Aliases:
        """Which version of a model is live, and which was before. Raises ModelNotFound, NotLoaded."""
        if name not in self._versions:
            self._missing(name, None)
        return self._aliases[name]

    def live(self) -> list[LoadedModel]:
        """The live version of every model, by name."""
        return list(self._live.values())

    def __contains__(self, name: str) -> bool:
        return name in self._versions

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
        versions = [path for path in versions if path.name in aliases.used()]
    return versions, aliases


def load_registry(root: Path, options: LoadOptions = DEFAULT_OPTIONS, *, selected: Selected = "all") -> Registry:
    """Load all versions below `root` in this process, untried. Raises VersionRefused for the first that is not fit."""
    found = {directory.name: select_versions(directory, selected) for directory in model_directories(root)}
    return Registry(
        [load_version(root, path, options) for versions, _ in found.values() for path in versions],
        {name: aliases for name, (_, aliases) in found.items()},
    )


def load_one(root: Path, name: str, version: str | None = None, options: LoadOptions = DEFAULT_OPTIONS) -> LoadedModel:
    """One version of a model, the live one if none is named. Raises ModelNotFound, VersionNotFound, VersionRefused."""
    directory = find_model(root, name)
    versions = {path.name: path for path in directories(directory)}
    if version is None:
        version = read_aliases(directory, list(versions)).live
    if version not in versions:
        raise VersionNotFound(f"model {name!r} has no version {version!r}")
    return load_version(root, versions[version], options)
