"""A version as it travels to another machine: its bytes, loaded and verified there as a server loads it, and asked."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.errors import VersionRefused
from registry.model import LoadedModel
from registry.store.loader import load_version
from registry.store.manifest import FILENAME, read_manifest
from registry.store.options import LoadOptions
from serving.predict.operation import Operation, Verb
from serving.process.executor import run_call
from serving.process.wire import CallOutcome

LIBRARIES = ("forkserve", "numpy", "scipy", "pandas", "scikit-learn", "numba", "shap", "xgboost", "lightgbm")
"""What the bits of an answer depend on."""


class Unfit(Exception):
    """A machine cannot answer as the sender would; the message says why."""


def platform_of_answers() -> dict[str, str]:
    """The machine's kind, Python and the libraries that are installed, with their versions."""
    found = {"machine": platform.machine(), "python": ".".join(platform.python_version_tuple()[:2])}
    for name in LIBRARIES:
        for distribution in (name, f"{name}-cpu"):  # the same library, by another name
            try:
                found[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


class Parcel:
    """One version: manifest, artefact, and what the sender's answers depend on.

    Only bytes travel, for compiled models cannot be pickled; each process that has it loads it once.
    """

    def __init__(
        self, model: LoadedModel, files: Mapping[str, bytes], made_on: Mapping[str, str], *, evaluations: int
    ) -> None:
        """`files` are those of the version's directory, by name; `made_on` is `platform_of_answers()` of the sender."""
        self.content_hash = model.content_hash
        self._place = (model.name, model.version)
        self._files = files
        self._made_on = made_on
        self._options = LoadOptions(compiled=model.compiled, shap_evaluations=evaluations)
        self._lock = threading.Lock()
        self._model: LoadedModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_model": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __dask_tokenize__(self) -> bytes:
        """Equal for equal versions, so that a cluster keeps each once."""
        return self.content_hash

    def model(self) -> LoadedModel:
        """The version, loaded here. Raises Unfit, VersionRefused."""
        with self._lock:  # a worker may have several threads
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> LoadedModel:
        here = platform_of_answers()
        for name, version in self._made_on.items():
            if here.get(name) != version:
                raise Unfit(f"it has {name} {here.get(name, 'none')}, the runner {version}")
        with tempfile.TemporaryDirectory(prefix="forkserve-") as root:
            directory = Path(root, *self._place)
            directory.mkdir(parents=True)
            for name, content in self._files.items():
                (directory / name).write_bytes(content)
            model = load_version(Path(root), directory, self._options)
        if model.compiled != self._options.compiled or model.content_hash != self.content_hash:
            raise Unfit(f"{'/'.join(self._place)} is not what the runner has once it is loaded there")
        return model


def pack_version(root: Path, model: LoadedModel, *, evaluations: int) -> Parcel:
    """The version as it was loaded from below `root`. Raises VersionRefused when its files have changed since."""
    directory = root / model.name / model.version
    if read_manifest(directory) != model.manifest:
        raise VersionRefused(directory / FILENAME, "is not what was loaded")
    names = (FILENAME, model.manifest.artefact)
    try:
        files = {name: (directory / name).read_bytes() for name in names}
    except OSError as error:
        raise VersionRefused(directory, error.strerror or str(error)) from error
    return Parcel(model, files, platform_of_answers(), evaluations=evaluations)


def answer(parcel: Parcel, verb: Verb, payload: bytes) -> tuple[CallOutcome, bytes]:
    """What the version answers to a payload of `encode_rows`, or how it broke: a retry elsewhere would change nothing.

    Raises Unfit, VersionRefused.
    """
    return run_call(Operation(parcel.model(), verb).answer_call, payload)
