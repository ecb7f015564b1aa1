"""Says what a model file is and what `add` would make of it, as lines of aligned text, without adding anything."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer

from registry.errors import CannotAdd, CannotRead, one_line
from registry.estimator import task_of, unwrap
from registry.formats.artefact import Artefact, open_artefact
from registry.formats.boosters import RescaledClassifier
from registry.formats.versions import installed_version, mismatch, refusal
from registry.model import LoadedModel
from registry.rows.features import Feature
from registry.rows.infer_schema import SAMPLE, Use
from registry.store.add import add_trained
from registry.store.fitted import takes_series, uses_of
from registry.store.reading import read_sample, read_trained
from registry.training.script import Trained
from serving.cli.features import feature_table

LABEL_WIDTH = 13
MAX_SHOWN = 12
"""Classes, modules or columns that a line shows."""

MAX_TREE_LINES = 60
MAX_FEATURE_LINES = 200
MAX_DEPTH = 8
MADE_UP_ROWS = 24
MADE_UP_TEXTS = ("a first text", "another one, of seven words in all", "and a third")

POWERFUL = frozenset(
    {"os", "posix", "nt", "subprocess", "sys", "socket", "shutil", "pty", "runpy", "importlib", "webbrowser"}
)
"""Modules whose functions a model has no use for when it is loaded."""

POWERFUL_BUILTINS = frozenset(f"builtins:{name}" for name in ("__import__", "compile", "eval", "exec", "open"))

Say = Callable[[str], object]
"""Takes a line."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A model file and what it is to be read with, as `read_trained` takes it; `data` is a CSV of its input."""

    path: Path
    data: Path | None = None
    target: str | None = None
    force_version: bool = False
    trusted: Sequence[str] = ()
    code: Sequence[Path] = ()


def inspect_file(inspection: Inspection, say: Say) -> None:
    """Say what a file is, line by line. Raises CannotAdd for one that `add` would refuse."""
    try:
        artefact = open_artefact(inspection.path)
    except CannotRead as error:
        raise CannotAdd(f"{inspection.path}: {error}") from error
    _say_all(say, _about_file(artefact))
    clause = mismatch(artefact.fitted_with, artefact.format)
    if clause and not inspection.force_version:
        raise CannotAdd(f"{inspection.path}: {refusal(clause)}")
    estimator, artefact = read_trained(
        inspection.path, force_version=inspection.force_version, code=inspection.code, trusted=inspection.trusted
    )
    if artefact.code:
        say(_line("own code", _listed(artefact.code)))
    _say_all(say, _about_estimator(estimator))
    if task_of(estimator) is None:
        raise CannotAdd(f"{inspection.path}: a {type(estimator).__name__} is no estimator that predicts")
    _say_trial(inspection, estimator, artefact, say)


def _say_all(say: Say, lines: Iterator[str]) -> None:
    for line in lines:
        say(line)


def _line(label: str, text: str) -> str:
    return f"{label:{LABEL_WIDTH}} {text}".rstrip()


def _listed(values: Sequence[Any] | Any) -> str:
    shown = [one_line(value) for value in list(values)[:MAX_SHOWN]]
    return ", ".join(shown) + (f", ... ({len(values)} in all)" if len(values) > MAX_SHOWN else "")


def _about_file(artefact: Artefact) -> Iterator[str]:
    size = len(artefact.content)
    shown = f"{size / 1e6:.1f} MB" if size > 1e6 else f"{size / 1e3:.1f} KB"
    yield _line("file", f"{one_line(artefact.path)}, {shown}")
    yield _line("format", artefact.format + (", in a directory of MLflow" if artefact.mlflow else ""))
    for library, version in sorted(artefact.fitted_with.items()):
        here = installed_version(library)
        yield _line("fitted with", f"{library} {version}" + (f" (installed: {here})" if here else " (not installed)"))
    if not artefact.fitted_with:
        yield _line("fitted with", "it states no version")
    modules = sorted({name.partition(":")[0].partition(".")[0] for name in artefact.names} - {"builtins", ""})
    if modules:
        yield _line("needs", _listed(modules))
    calls = sorted(
        name.replace(":", ".")
        for name in artefact.names
        if name.partition(":")[0] in POWERFUL or name in POWERFUL_BUILTINS
    )
    if calls:
        yield _line("may call", _listed(calls))
    if not artefact.survey.complete:
        yield _line("", "it could be looked into in part only")


def _about_estimator(estimator: Any) -> Iterator[str]:
    lines = list(_tree(estimator, "", 0))
    yield _line("estimator", lines[0])
    yield from (_line("", line) for line in lines[1:MAX_TREE_LINES])
    if len(lines) > MAX_TREE_LINES:
        yield _line("", f"... ({len(lines)} in all)")
    yield _line("task", task_of(estimator) or "none: it does not predict")
    classes = getattr(estimator, "classes_", None)
    if isinstance(classes, np.ndarray):
        yield _line("classes", _listed(classes.tolist()))


def _tree(part: Any, name: str, depth: int) -> Iterator[str]:
    """A line for an estimator and for each that it was made of, those inside indented."""
    label = f"{'  ' * depth}{one_line(name)}{': ' if name else ''}"
    if isinstance(part, str):
        yield f"{label}{one_line(part)}"
        return
    part = part.model if isinstance(part, RescaledClassifier) else part
    yield f"{label}{type(part).__name__}"
    if depth >= MAX_DEPTH:
        return
    for inner_name, inner in _inside(part):
        yield from _tree(inner, inner_name, depth + 1)


def _inside(part: Any) -> list[tuple[str, Any]]:
    """The estimators that a part was made of, with their names."""
    if isinstance(part, ColumnTransformer):
        fitted = getattr(part, "transformers_", part.transformers)
        return [(f"{name} ({_columns(columns)})", inner) for name, inner, columns in fitted]
    unwrapped = unwrap(part)
    if unwrapped is not part:
        return [("", unwrapped)]
    for attribute in ("steps", "transformer_list"):
        if hasattr(part, attribute):
            return [(name, inner) for name, inner, *_ in getattr(part, attribute) if inner is not None]
    given: dict[str, Any] = {}
    if hasattr(part, "get_params"):
        with suppress(Exception):  # of another release, whose parameters it lacks
            given = part.get_params(deep=False)
    several = [pair for value in given.values() if isinstance(value, list) for pair in value if _is_named(pair)]
    return [*several, *((name, value) for name, value in given.items() if _is_estimator(value))]


def _is_named(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and _is_estimator(pair[1])


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)


def _columns(columns: Any) -> str:
    if callable(columns) or isinstance(columns, slice):
        return "chosen columns"
    return _listed([columns] if isinstance(columns, str | int) else list(columns))


def _say_trial(inspection: Inspection, estimator: Any, artefact: Artefact, say: Say) -> None:
    """Say what becomes of the model when it is added, to a directory that is thrown away."""
    sample, made_up = _sample(inspection, estimator, artefact)
    if sample is None:
        say(_line("features", "unknown; give rows of its input with --data"))
        return
    trained = Trained(estimator=estimator, artefact=artefact, sample=sample, target=inspection.target)
    with tempfile.TemporaryDirectory(prefix="forkserve-") as scratch:
        try:
            model = add_trained(Path(scratch), "model", trained)
        except CannotAdd as error:
            if not made_up:
                raise
            say(_line("features", f"unknown ({one_line(error)}); give rows of its input with --data"))
            return
    _say_all(say, _about_model(model, made_up=made_up))


def _sample(inspection: Inspection, estimator: Any, artefact: Artefact) -> tuple[pd.DataFrame | None, bool]:
    """Rows of the model's input, and whether they are made up from what the estimator knows. Raises CannotAdd."""
    if inspection.data is not None or (artefact.mlflow is not None and artefact.mlflow.example is not None):
        targets = () if inspection.target is None else (inspection.target,)
        return read_sample(inspection.data, artefact, estimator, targets=targets), False
    return made_up_sample(estimator), True


def made_up_sample(estimator: Any) -> pd.DataFrame | None:
    """Rows that an estimator may take: numbers, texts, and the categories that its encoders know.

    They are good enough to see whether it is compiled and explained. None for one that says too little about its input.
    """
    names = getattr(estimator, "feature_names_in_", None)
    count = 1 if takes_series(estimator) else getattr(estimator, "n_features_in_", None)
    if not count:
        return None
    columns = [f"x{place}" for place in range(count)] if names is None else [str(name) for name in names]
    numbers = np.random.default_rng(0).normal(size=(MADE_UP_ROWS, count))
    table = pd.DataFrame(numbers, columns=pd.Index(columns))
    for column, uses in zip(columns, uses_of(estimator, table), strict=True):
        values = next((_values(use) for use in uses if use.role in ("encoder", "text")), None)
        if values:
            table[column] = pd.Series([values[place % len(values)] for place in range(MADE_UP_ROWS)])
    return table


def _values(use: Use) -> list[Any]:
    return list(MADE_UP_TEXTS) if use.role == "text" else [value for value in use.categories if not pd.isna(value)]


def _guessed(feature: Feature) -> Feature:
    """What is known of a feature without rows: nothing of the rows that were made up."""
    origin = "a guess" if feature.origin == SAMPLE else feature.origin
    return msgspec.structs.replace(feature, seen=None, origin=origin)


def _about_model(model: LoadedModel, *, made_up: bool) -> Iterator[str]:
    doubt = " (as far as can be seen without --data)" if made_up else ""
    features = model.manifest.features
    lines = list(feature_table(list(map(_guessed, features)) if made_up else features))
    for place, line in enumerate(lines[:MAX_FEATURE_LINES]):
        yield _line("" if place else "features", one_line(line) if not line.isprintable() else line)
    if len(lines) > MAX_FEATURE_LINES:
        yield _line("", f"... ({len(lines) - 1} in all)")
    if model.python_steps:
        yield _line("compiled", f"yes, all but {_listed(model.python_steps)}{doubt}")
    else:
        yield _line("compiled", f"no: {model.reason}{doubt}" if model.reason else f"yes{doubt}")
    if model.explainer is None:
        yield _line("explained", f"no: {model.not_explained}{doubt}")
    else:
        where = ", in jobs only" if model.explainer.jobs_only else ""
        yield _line(
            "explained", f"{model.explainer.method}, in {model.explainer.space}s{where}{doubt}".replace("ys", "ies")
        )
    for name, value in model.manifest.metrics.items():
        yield _line(name, f"{value:.4g}")
