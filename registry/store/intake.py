"""Decides what a model takes: what its pipeline and its sample show, and what works beyond that when it is tried.

A step of scikit-learn says whether it takes missing values or unknown categories, own code does not, and either may be
fed by another. So each of these is tried: rows of the sample with a missing value, a fraction, another string. What the
estimator answers is accepted, as long as all other rows are answered as before. Columns are tried together, and half
by half where that fails.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from registry.errors import CannotAdd
from registry.estimator import library_of, steps_of
from registry.rows.features import PLAIN_INTEGERS, Feature, Input, python_value
from registry.rows.infer_schema import (
    OPTION,
    FeatureOptions,
    Use,
    accepted_range,
    infer_features,
    is_named,
    number_limits,
)
from registry.rows.schema import Schema
from registry.rows.times import are_times
from registry.store.fitted import takes_series, uses_of

TRIED_ROWS = 20
MAX_CALLS = 200
MAX_BOUNDS_CALLS = 30
"""Calls to find the columns whose numbers need bounds."""
MAX_SECONDS = 5.0
"""Once trying has taken this long, columns take no more than their sample shows."""

CLOSE = 1e-9
"""The tolerance between the answers for equal rows: batches of other sizes are summed in other orders."""

WIDE = 1.0
"""The margin of numbers where those far outside of the sample do not work."""

FAR = (1000.0, 10.0)
"""Margins to try where not all numbers work."""

UNUSUAL_TEXTS = ("", "x", "Zebra crossings, 2 of them!", "\N{SNOWMAN} \N{HEBREW LETTER ALEF}")

LIBRARIES = frozenset({"catboost", "imblearn", "lightgbm", "sklearn", "xgboost"})
"""Their estimators remember whether they were fitted on a DataFrame; own code may not."""

Uses = Sequence[Sequence[Use]]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a model should take: options, the margin of `infer_features`, and the features of the version before."""

    options: FeatureOptions
    margin: float | None
    before: Sequence[Feature] = ()


def instances_of(frame: pd.DataFrame) -> list[list[Any]]:
    """The rows of a table as JSON would give them."""
    table = frame.astype(object).where(frame.notna(), None).to_numpy(dtype=object)
    return [[_plain(cell) for cell in row] for row in table.tolist()]


def decide_schema(estimator: Any, sample: pd.DataFrame, wishes: Wishes) -> Schema:
    """The schema of an estimator whose input is like `sample`. Raises CannotAdd."""
    wishes.options.check(list(map(str, sample.columns)))
    uses = uses_of(estimator, sample)
    first: tuple[Schema, Exception] | None = None
    for table in _readings(sample):
        features = _inferred(table, uses, wishes)
        for form in _forms(estimator, table):
            try:
                trial = _Trial(estimator, Schema(features, form), table)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - own code may raise anything; another form may work
                first = first or (Schema(features, form), error)
                continue
            return Schema(_Decision(trial, uses, wishes).features(), form)
    assert first is not None
    return first[0]  # of which the caller finds the error again


def answers_to(estimator: Any, table: pd.DataFrame) -> NDArray[Any] | None:
    """What an estimator answers the rows of a table, in the first form that it takes; None if it takes none."""
    forms: dict[Input, Any] = {"series": table.iloc[:, 0], "frame": table, "array": table.to_numpy()}
    for form in _forms(estimator, table):
        try:
            return _answers(estimator, forms[form])
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001, S112 - own code may raise anything; another form may work
            continue
    return None


def are_equal(answers: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Return whether answers are the same but for the order of sums."""
    if answers.dtype.kind not in "fiu":
        return bool(np.array_equal(answers, expected))
    return answers.shape == expected.shape and np.allclose(answers, expected, rtol=CLOSE, atol=CLOSE)


def _inferred(table: pd.DataFrame, uses: Uses, wishes: Wishes) -> tuple[Feature, ...]:
    """What the pipeline and the sample show; numbers are bounded until others have been tried."""
    before = {feature.name: feature for feature in wishes.before}
    inferred = infer_features(table, WIDE if wishes.margin is None else wishes.margin, uses, wishes.options)
    return tuple(feature.widened(before.get(feature.name, feature)) for feature in inferred)


def _forms(estimator: Any, table: pd.DataFrame) -> list[Input]:
    """The forms in which an estimator may take a table, to be tried in turn."""
    if table.shape[1] == 1 and takes_series(estimator):
        return ["series"]
    try:
        if hasattr(estimator, "feature_names_in_"):
            return ["frame"]
    except Exception:  # noqa: BLE001 - a property of own code
        return ["frame", "array"]
    steps, last = steps_of(estimator)
    if library_of((steps or [last])[0]) in LIBRARIES:
        return ["array"]
    return ["array", "frame"] if _same_in_both(estimator, table) else ["frame", "array"]


def _same_in_both(estimator: Any, table: pd.DataFrame) -> bool:
    """Return whether own code answers an array as it answers a DataFrame, so that the quicker one will do."""
    rows = table.iloc[:TRIED_ROWS]
    try:
        return are_equal(_answers(estimator, rows.to_numpy(np.float64)), _answers(estimator, rows))
    except Exception:  # noqa: BLE001 - own code may raise anything
        return False


def _readings(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The table, and then with its dates and times as pandas has them, where they may be strings or objects."""
    times = {}
    for name in table.columns:
        column = table[name]
        if column.dtype != object and not pd.api.types.is_string_dtype(column):
            continue
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind in ("date", "datetime", "datetime64"):
            table = table.assign(**{str(name): pd.to_datetime(column)})
        elif kind == "string" and are_times(column.dropna().unique()):
            with suppress(ValueError):  # of several offsets, whose zone nobody knows
                times[str(name)] = pd.to_datetime(column, format="ISO8601")
    yield table
    if times:
        yield table.assign(**times)


@dataclass(frozen=True, slots=True)
class Change:
    """What the feature at `index` would become, and values to try it with."""

    index: int
    feature: Feature
    values: tuple[Any, ...]


class _Trial:
    """An estimator that answers some rows of its sample, and may be asked others."""

    def __init__(self, estimator: Any, schema: Schema, table: pd.DataFrame) -> None:
        """Whatever the estimator raises for the rows is raised."""
        self.features = schema.features
        self._form = schema.input
        self._estimator = estimator
        places = np.unique(np.linspace(0, len(table) - 1, TRIED_ROWS).astype(int))
        self._instances = instances_of(table.iloc[places])
        self._expected = self._ask(schema.features, self._instances)
        self._calls = 0
        self._ends = time.monotonic() + MAX_SECONDS

    def change(self, changes: Sequence[Change], calls: int = MAX_CALLS) -> dict[int, str]:
        """Make those changes that work, and return the reasons against the others, by the feature's index."""
        return self._change(changes, self._calls + calls)

    def _change(self, changes: Sequence[Change], last: int) -> dict[int, str]:
        """Try until `last` calls have been made in all."""
        if not changes:
            return {}
        if self._calls >= last or time.monotonic() > self._ends:
            return {change.index: "there was no time to try" for change in changes}
        reason = self._try(changes)
        if not reason:
            self.features = self._changed(changes)
            return {}
        if len(changes) == 1:
            return {changes[0].index: reason}
        half = len(changes) // 2
        return self._change(changes[:half], last) | self._change(changes[half:], last)

    def _try(self, changes: Sequence[Change]) -> str:
        """Why the changes do not work together; empty if they do."""
        self._calls += 1
        rows = list(self._instances)
        for change in changes:
            for value in change.values:
                row = list(self._instances[len(rows) % len(self._instances)])
                row[change.index] = value
                rows.append(row)
        try:
            answers = self._ask(self._changed(changes), rows)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it raises, it does not work
            return f"{type(error).__name__}: {error}".splitlines()[0]
        if answers.dtype.kind == "f" and not np.isfinite(answers).all():
            return "the answer is not finite"
        return "" if are_equal(answers[: len(self._expected)], self._expected) else "other rows are answered otherwise"

    def _changed(self, changes: Sequence[Change]) -> tuple[Feature, ...]:
        by_index = {change.index: change.feature for change in changes}
        return tuple(by_index.get(index, feature) for index, feature in enumerate(self.features))

    def _ask(self, features: Sequence[Feature], instances: Sequence[Any]) -> NDArray[Any]:
        schema = Schema(features, self._form)
        return _answers(self._estimator, schema.table(schema.rows(instances)))


def _answers(estimator: Any, table: Any) -> NDArray[Any]:
    """What an estimator answers, one row a row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ask = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.predict
        made = ask(table)
    made = np.hstack(made) if isinstance(made, list) and np.ndim(made[0]) > 1 else np.asarray(made)
    return made.reshape(len(table), -1)


@dataclass(frozen=True, slots=True)
class _Decision:
    """The changes of features that are tried, one kind after the other."""

    trial: _Trial
    uses: Uses
    wishes: Wishes

    def features(self) -> tuple[Feature, ...]:
        """The features after all changes that work. Raises CannotAdd where an option asks for one that does not."""
        options = self.wishes.options
        self._change(self._opened, options.open, "takes no other strings")
        self._change(self._as_text, options.text, "takes no other texts")
        self._change(self._with_fractions, options.fractions, "takes no fractions")
        if self.wishes.margin is None:
            self._unbind()
        self._change(self._nullable, (), "")
        self._change(self._nullable_otherwise, options.nullable, "cannot be missing")
        return tuple(map(self._required, self.trial.features))

    def _unbind(self) -> None:
        """Try numbers as large and as small as the column can hold, then less and less far outside of the sample.

        What works for all columns is taken for all, and then wider bounds are tried for some.
        """
        attempts = [(margin, keeps_sign) for margin in (None, *FAR) for keeps_sign in (False, True)]
        together = (n for n, attempt in enumerate(attempts) if not self.trial.change(self._bounded(*attempt), calls=1))
        for attempt in attempts[: next(together, len(attempts))]:
            self.trial.change(self._bounded(*attempt), calls=MAX_BOUNDS_CALLS)

    def _bounded(self, margin: float | None, keeps_sign: bool) -> list[Change]:  # noqa: FBT001 - a pair in a list
        return [
            _bounded(index, feature, margin, keeps_sign=keeps_sign)
            for index, feature in enumerate(self.trial.features)
            if feature.seen is not None
        ]

    def _change(self, make: Callable[[int, Feature], Change | None], wanted: Any, fault: str) -> None:
        """Try a change of all features that it is made for; `wanted` are the columns that an option asks it for."""
        changes = [made for index, one in enumerate(self.trial.features) if (made := make(index, one)) is not None]
        for index, reason in self.trial.change(changes).items():
            name = self.trial.features[index].name
            if name in wanted:
                raise CannotAdd(f"column {name!r} {fault}: {reason}")

    def _opened(self, index: int, feature: Feature) -> Change | None:
        """Features that are open already by their encoder are not tried: it says so itself."""
        wanted = is_named(feature.name, self.wishes.options.open) or self._before(feature, lambda one: one.open)
        if feature.kind != "category" or feature.open or not wanted:
            return None
        changed = msgspec.structs.replace(feature, open=True, origin=OPTION)
        return Change(index, changed, UNUSUAL_TEXTS)

    def _as_text(self, index: int, feature: Feature) -> Change | None:
        """Strings that own code reads: another string may be answered in its own way, and is handed on as it is."""
        options = self.wishes.options
        if feature.kind == "text" and feature.name in options.text:
            return Change(index, feature, UNUSUAL_TEXTS)
        encoded = any(use.role == "encoder" for use in self.uses[index])
        if feature.kind != "category" or feature.open or encoded or is_named(feature.name, options.closed):
            return None
        if feature.dtype == "category" or not all(type(value) is str for value in feature.categories):
            return None
        changed = msgspec.structs.replace(feature, kind="text", categories=(), origin="tried")
        values = [
            other for one in feature.categories[:3] if isinstance(one, str) for other in (one.upper(), f" {one} ")
        ]
        return Change(index, changed, (*UNUSUAL_TEXTS, *values))

    def _with_fractions(self, index: int, feature: Feature) -> Change | None:
        encoded = any(use.role == "encoder" for use in self.uses[index])
        wanted = is_named(feature.name, self.wishes.options.fractions)
        if feature.kind == "category" and feature.name in self.wishes.options.fractions:
            raise CannotAdd(
                f"column {feature.name!r} takes no fractions: {feature.origin} knows {len(feature.categories)} values"
            )
        if feature.kind != "integer" or (encoded and not wanted):
            return None
        changed = msgspec.structs.replace(feature, kind="number", origin="tried")
        low, high = feature.seen or (0.0, 1.0)
        middle = low + 0.5 if low < high or feature.maximum is None or feature.maximum > low else low
        return Change(index, changed, (middle, (low + high) / 2))

    def _nullable(self, index: int, feature: Feature) -> Change | None:
        options = self.wishes.options
        wanted = is_named(feature.name, options.nullable) or self._before(feature, lambda one: one.nullable)
        impossible = any(use.takes_missing is False for use in self.uses[index])
        if feature.nullable or is_named(feature.name, options.required) or (impossible and not wanted):
            return None
        return Change(index, msgspec.structs.replace(feature, nullable=True), (None,))

    def _nullable_otherwise(self, index: int, feature: Feature) -> Change | None:
        """With what else may stand for a missing value: NaN in objects, or objects for booleans."""
        change = self._nullable(index, feature)
        if change is None:
            return None
        if feature.dtype == "bool":
            return Change(index, msgspec.structs.replace(change.feature, dtype="object"), (None,))
        if feature.dtype == "object":
            other = "none" if feature.missing == "nan" else "nan"
            return Change(index, msgspec.structs.replace(change.feature, missing=other), (None,))
        return change if feature.name in self.wishes.options.nullable else None

    def _before(self, feature: Feature, has: Callable[[Feature], bool]) -> bool:
        """Return whether the version before had the feature so."""
        return any(one.name == feature.name and has(one) for one in self.wishes.before)

    def _required(self, feature: Feature) -> Feature:
        if feature.name in self.wishes.options.required and feature.nullable:
            raise CannotAdd(f"column {feature.name!r} has missing values in the table, and cannot be required")
        return feature


def _bounded(index: int, feature: Feature, margin: float | None, *, keeps_sign: bool) -> Change:
    """A change of the bounds of a number, to be tried at both."""
    assert feature.seen is not None
    dtype = "float64" if feature.kind == "number" and feature.dtype in PLAIN_INTEGERS else feature.dtype
    limits = number_limits(pd.api.types.pandas_dtype(dtype))
    low, high = accepted_range(feature.seen, margin, limits, keeps_sign=keeps_sign)
    low = low if feature.minimum is None else min(low, feature.minimum)
    high = high if feature.maximum is None else max(high, feature.maximum)
    return Change(index, msgspec.structs.replace(feature, minimum=low, maximum=high), (low, high))


def _plain(cell: Any) -> Any:
    if hasattr(cell, "isoformat"):
        return cell.isoformat()
    return python_value(cell)
