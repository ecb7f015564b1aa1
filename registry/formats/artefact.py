"""Model files as they are added: read, identified and looked into before anything in them is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.errors import CannotRead
from registry.formats.boosters import as_estimator, read_booster
from registry.formats.identify import identify, identify_directory
from registry.formats.pickles import load_pickle, survey_pickle
from registry.formats.versions import NATIVE_FORMATS, Format, catboost_version, mismatch, refusal, xgboost_version
from registry.store.code import OwnCode
from registry.store.directory import NAME, read_file
from registry.threads import keep_to_one_thread

SUFFIXES: Mapping[Format, str] = {
    "joblib": ".joblib",
    "pickle": ".pkl",
    "skops": ".skops",
    "xgboost": ".ubj",
    "lightgbm": ".txt",
    "catboost": ".cbm",
}


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A model file: its bytes, which a version keeps as they are, and what they say about themselves.

    `fitted_with` are versions of libraries by distribution; `modules` those that are imported to load it, `names` their
    classes and functions as `Survey` has them, `code` the source files of own modules by path.
    """

    path: Path
    content: bytes
    format: Format
    filename: str
    fitted_with: Mapping[str, str] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    code: Mapping[str, bytes] = field(default_factory=dict)
    forced: str = ""
    """The sentence that is shown where a mismatch of versions was forced."""

    def load(self, code: OwnCode | None = None) -> Any:
        """The estimator in it, which is executed, with its own code. Raises CannotRead."""
        return load_content(self.path, self.content, self.format, code)


def read_artefact(path: Path, *, force_version: bool = False) -> Artefact:
    """The model in a file, which is not executed yet.

    Raises CannotRead for what is no model, and for one of another version of its library unless that is forced.
    """
    content = _read(path)
    kind = identify(content)
    fitted_with, modules = look_into(content, kind)
    clause = mismatch(fitted_with, kind)
    if clause and not force_version:
        raise CannotRead(refusal(clause))
    return Artefact(
        path=path,
        content=content,
        format=kind,
        filename=_filename(path, kind),
        fitted_with=fitted_with,
        modules=frozenset(modules),
        names=frozenset(survey_pickle(content).names if kind in ("joblib", "pickle") else ()),
        forced=clause,
    )


def look_into(content: bytes, kind: Format) -> tuple[dict[str, str], set[str]]:
    """The library versions that a file's content states, and the modules that it needs. Raises CannotRead."""
    match kind:
        case "xgboost":
            return xgboost_version(content), set()
        case "catboost":
            return catboost_version(content), set()
        case "lightgbm":
            return {}, set()  # it states the version of its format alone
    survey = survey_pickle(content)
    return survey.versions, survey.modules


def load_content(path: Path, content: bytes, kind: Format, code: OwnCode | None = None) -> Any:
    """The estimator in the content of a file at `path`, which is executed, kept to one thread. Raises CannotRead."""
    native = kind in NATIVE_FORMATS
    estimator = read_booster(content, kind) if native else as_estimator(load_pickle(path, content, code))
    keep_to_one_thread(estimator)
    return estimator


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            identify_directory(path)
        return read_file(path)
    except OSError as error:
        raise CannotRead(error.strerror or str(error)) from error
    except (RuntimeError, ValueError) as error:
        raise CannotRead(f"cannot be opened: {error}") from error


def _filename(path: Path, kind: Format) -> str:
    """The name under which a version keeps a file: its suffixes tell people its format."""
    name = f"model{''.join(path.suffixes[-2:])}" if path.suffix else f"model{SUFFIXES[kind]}"
    return name if NAME.fullmatch(name) else f"model{SUFFIXES[kind]}"
