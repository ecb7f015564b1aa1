"""How far a version agrees with answers that were given before: labels are equal, numbers within a tolerance."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

import msgspec

from registry.errors import InvalidRows
from registry.model import LoadedModel
from registry.rows.features import Rows

TOLERANCE = 0.01
"""Numbers agree that differ by at most this share of the first one."""

NOISE = 1e-12
"""Numbers agree that differ by less than this."""

MOST_SHOWN = 20
"""Rows that are shown because they differ most, and kinds of changes because they are the commonest."""

MAX_CHANGES = 1000
"""Kinds of changes that are told apart; a classifier of many classes has a million."""


class LabelChange(msgspec.Struct, frozen=True):
    """One kind of change: of a target, if a model has several, from one label to another."""

    target: str
    before: str
    after: str


class Difference(msgspec.Struct, frozen=True):
    """A row on which two versions differ."""

    request_id: str
    place: int
    """Of the row in its request, from 0."""
    version: str
    """The version that had answered."""
    difference: float
    before: Any
    after: Any


class Agreement(msgspec.Struct, kw_only=True):
    """The sums over some rows; those of other rows can be added."""

    rows: int = 0
    agreed: int = 0
    unfit: int = 0
    """Rows that the version does not take; they do not agree."""
    failed: int = 0
    """Rows that the version breaks on; they do not agree."""
    difference: float = 0.0
    """The sum over the rows that both versions answer: of numbers, or of the probability that has changed most."""
    seconds: float = 0.0
    """That the version took for the rows that it takes."""
    versions: dict[str, int] = {}
    """Rows by the version that had answered."""
    changes: list[tuple[LabelChange, int]] = []
    largest: list[Difference] = []

    def add(self, other: Agreement) -> None:
        """Add the sums over other rows."""
        for name in ("rows", "agreed", "unfit", "failed", "difference", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.versions = _added(self.versions, other.versions)
        changes = _added(dict(self.changes), dict(other.changes))
        self.changes = nlargest(MAX_CHANGES, changes.items(), key=lambda item: item[1])
        self.largest = nlargest(MOST_SHOWN, [*self.largest, *other.largest], key=lambda one: one.difference)

    @property
    def share(self) -> float | None:
        """The share of the rows that agree; None without any."""
        return self.agreed / self.rows if self.rows else None

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        compared = self.rows - self.unfit - self.failed
        return {
            "rows": self.rows,
            "agreed": self.agreed,
            "share": self.share,
            "unfit": self.unfit,
            "failed": self.failed,
            "versions": self.versions,
            "mean_difference": self.difference / compared if compared else None,
            "row_seconds": self.seconds / compared if compared else None,
            "changes": [
                {**({"target": one.target} if one.target else {}), "from": one.before, "to": one.after, "rows": count}
                for one, count in self.changes[:MOST_SHOWN]
            ],
            "largest": msgspec.to_builtins(self.largest),
        }


def _added(one: Mapping[Any, int], other: Mapping[Any, int]) -> dict[Any, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in (*one, *other)}


@dataclass(frozen=True, slots=True)
class Given:
    """A row and the answer that a version has given."""

    instance: Mapping[str, Any]
    answer: Any
    version: str
    request_id: str
    place: int


def compare(model: LoadedModel, given: Sequence[Given], tolerance: float) -> Agreement:
    """Have the model predict rows that were answered before. Runs foreign code, which may take any time."""
    instances = [dict(one.instance) for one in given]
    rows, taken = _fitting(model, instances)
    started = time.perf_counter()
    answers = _predict(model, rows)
    seconds = time.perf_counter() - started
    found = Agreement(rows=len(given), unfit=len(given) - len(taken), seconds=seconds)
    changes: dict[LabelChange, int] = {}
    differences = []
    for one in given:
        found.versions[one.version] = found.versions.get(one.version, 0) + 1
    for place, answer in zip(taken, answers, strict=True):
        if answer is None:
            found.failed += 1
            continue
        one = given[place]
        agrees, difference = True, 0.0
        for change, equal, size in compared(one.answer, answer, tolerance):
            agrees, difference = agrees and equal, max(difference, size)
            if change is not None:
                changes[change] = changes.get(change, 0) + 1
        found.agreed += agrees
        found.difference += difference
        if difference or not agrees:
            differences.append(Difference(one.request_id, one.place, one.version, difference, one.answer, answer))
    found.changes = nlargest(MAX_CHANGES, changes.items(), key=lambda item: item[1])
    found.largest = nlargest(MOST_SHOWN, differences, key=lambda one: one.difference)
    return found


def _fitting(model: LoadedModel, instances: list[dict[str, Any]]) -> tuple[Rows, Sequence[int]]:
    """The rows that the model takes, and their places; all at once if it takes all."""
    try:
        return model.schema.rows(instances), range(len(instances))
    except InvalidRows:
        return model.schema.fitting_rows(instances)


def _predict(model: LoadedModel, rows: Rows) -> list[Any]:
    """The predictions; None for a row that the model breaks on."""
    if not len(rows):
        return []
    try:
        return model.predict(rows)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever the model raises, other rows may work
        if len(rows) == 1:
            return [None]
    return [answer for row in rows for answer in _predict(model, row[None])]


def compared(before: Any, after: Any, tolerance: float) -> Iterator[tuple[LabelChange | None, bool, float]]:
    """For each target of two predictions: the change of its label, whether they agree, and by how much they differ."""
    befores, afters = by_target(before), by_target(after)
    for target in befores.keys() | afters.keys():
        yield _compared(target, befores.get(target), afters.get(target), tolerance)


def by_target(answer: Any) -> Mapping[str, Any]:
    """The prediction of each target by its name; of a model with one target, that of no name."""
    if isinstance(answer, Mapping) and "prediction" in answer:  # of several targets, or with bounds
        inner = answer["prediction"]
        if isinstance(inner, Mapping) and "interval" not in answer:
            return inner
        return {"": inner}
    return {"": answer}


def _compared(target: str, before: Any, after: Any, tolerance: float) -> tuple[LabelChange | None, bool, float]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        numbers = [_numbers(one) for one in (before, after)]
        difference = max(
            (abs(numbers[0][key] - numbers[1][key]) for key in numbers[0].keys() & numbers[1]), default=0.0
        )
        if "label" in before and "label" in after:
            was, is_now = str(before["label"]), str(after["label"])
            if was == is_now:
                return None, True, difference
            return LabelChange(target, was, is_now), False, difference or 1.0
        return None, bool(numbers[0]) and _is_close(before.get("score"), after.get("score"), tolerance), difference
    is_same = _is_close(before, after, tolerance)
    if isinstance(before, int | float) and isinstance(after, int | float):
        return None, is_same, abs(before - after)
    return (None if is_same else LabelChange(target, str(before), str(after))), is_same, 0.0 if is_same else 1.0


def _numbers(answer: Mapping[str, Any]) -> Mapping[str, float]:
    """Probabilities or margins by class, or a score."""
    named = answer.get("probabilities") or answer.get("margins")
    return named if isinstance(named, Mapping) else {"score": answer["score"]} if "score" in answer else {}


def _is_close(before: Any, after: Any, tolerance: float) -> bool:
    if isinstance(before, int | float) and isinstance(after, int | float):
        return abs(after - before) <= tolerance * abs(before) + NOISE
    return bool(before == after)
