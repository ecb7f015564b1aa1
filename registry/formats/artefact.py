"""Model files as they are added: read, identified and looked into before anything in them is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from registry.errors import CannotRead, one_line
from registry.formats.boosters import as_estimator, read_booster
from registry.formats.identify import identify, identify_directory
from registry.formats.mlflow import MLflowModel, read_mlflow
from registry.formats.pickles import Survey, load_pickle, survey_pickle
from registry.formats.skops_files import check_trust, load_skops, survey_skops
from registry.formats.versions import NATIVE_FORMATS, Format, catboost_version, mismatch, refusal, xgboost_version
from registry.store.code import CLOUDPICKLE, OwnCode
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

    `code` are the source files of own modules by path.
    """

    path: Path
    content: bytes
    format: Format
    filename: str
    survey: Survey = field(default_factory=Survey)
    code: Mapping[str, bytes] = field(default_factory=dict)
    forced: str = ""
    """The sentence that is shown where a mismatch of versions was forced."""
    trusted: tuple[str, ...] = ()
    """Types that a skops file may have besides those that skops trusts."""
    mlflow: MLflowModel | None = None
    """What the directory said that the file was in."""

    @property
    def fitted_with(self) -> dict[str, str]:
        """Versions of libraries by distribution."""
        return dict(self.survey.versions)

    @property
    def names(self) -> frozenset[str]:
        """The classes and functions that it needs, as `Survey` has them."""
        return frozenset(self.survey.names)

    def load(self, code: OwnCode | None = None) -> Any:
        """The estimator in it, which is executed, with its own code. Raises CannotRead."""
        return load_content(self.path, self.content, self.format, code, self.trusted)


def read_artefact(path: Path, *, force_version: bool = False, trusted: Sequence[str] = ()) -> Artefact:
    """The model in a file, or in a directory of MLflow, which is not executed yet.

    Raises CannotRead for what is no model, for one of another version of its library unless that is forced, and for a
    skops file with types that are not `trusted`.
    """
    artefact = open_artefact(path)
    clause = mismatch(artefact.fitted_with, artefact.format)
    if clause and not force_version:
        raise CannotRead(refusal(clause))
    if artefact.format == "skops":
        check_trust(artefact.content, trusted)
    elif trusted:
        raise CannotRead("is no skops file: there is nothing to trust")
    return replace(artefact, forced=clause, trusted=tuple(trusted))


def open_artefact(path: Path) -> Artefact:
    """The model in a file, or in a directory of MLflow, identified and looked into. Raises CannotRead."""
    try:
        if path.is_dir():
            return _open_mlflow(path)
        content = read_file(path)
    except OSError as error:
        raise CannotRead(error.strerror or str(error)) from error
    except (RuntimeError, ValueError) as error:
        raise CannotRead(f"cannot be opened: {one_line(error)}") from error
    kind = identify(content)
    return Artefact(
        path=path, content=content, format=kind, filename=_filename(path, kind), survey=look_into(content, kind)
    )


def _open_mlflow(directory: Path) -> Artefact:
    identify_directory(directory)
    model = read_mlflow(directory)
    if model.file.is_dir():
        raise CannotRead(f"names {model.file.name}, which is a directory and no file")
    artefact = open_artefact(model.file)
    survey = artefact.survey
    # the code of a function is that of one release of Python
    by_value = model.python and any(name.startswith(f"{CLOUDPICKLE}:_make_function") for name in survey.names)
    versions = {**model.versions, **survey.versions, **({"python": model.python} if by_value else {})}
    return replace(artefact, survey=replace(survey, versions=versions), mlflow=model)


def look_into(content: bytes, kind: Format) -> Survey:
    """What a file's content says about itself: library versions, and the names that it needs. Raises CannotRead."""
    match kind:
        case "xgboost":
            return Survey(versions=xgboost_version(content))
        case "catboost":
            return Survey(versions=catboost_version(content))
        case "lightgbm":
            return Survey()  # it states the version of its format alone
        case "skops":
            return survey_skops(content)
    return survey_pickle(content)


def load_content(
    path: Path, content: bytes, kind: Format, code: OwnCode | None = None, trusted: Sequence[str] = ()
) -> Any:
    """The estimator in the content of a file at `path`, which is executed, kept to one thread. Raises CannotRead."""
    if kind in NATIVE_FORMATS:
        estimator = read_booster(content, kind)
    elif kind == "skops":
        estimator = as_estimator(load_skops(content, trusted, code))
    else:
        estimator = as_estimator(load_pickle(path, content, code))
    keep_to_one_thread(estimator)
    return estimator


def _filename(path: Path, kind: Format) -> str:
    """The name under which a version keeps a file: its suffixes tell people its format."""
    name = f"model{''.join(path.suffixes[-2:])}" if path.suffix else f"model{SUFFIXES[kind]}"
    return name if NAME.fullmatch(name) else f"model{SUFFIXES[kind]}"
