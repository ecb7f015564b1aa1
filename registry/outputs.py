"""The outputs of a model: what their columns are, the labels of its classes, and how outputs become JSON answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry.rows.features import python_value

Label = str | int | float | bool
"""A class as JSON has it: a classifier fitted on 0 and 1, or on true and false, answers these and no strings."""

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
MAX_NUMBER_CHARACTERS = 32

Part = Literal["value", "probabilities", "label", "margins", "score"]
"""Neighbouring columns of outputs; see `registry.estimator.Outputs`."""


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the targets of a model with several; without `classes` its value is a number."""

    name: str
    classes: tuple[Label, ...] = ()


class Labels:
    """The labels of a classifier in the order of its outputs, found by what clients send for them."""

    def __init__(self, classes: Sequence[Label]) -> None:
        self.classes = tuple(classes)
        self.texts = tuple(map(str, classes))
        """The labels as keys of JSON objects."""
        self._places = {_identity(label): place for place, label in enumerate(self.classes)}
        for place, label in enumerate(self.classes):
            self._places.setdefault((str, str(label)), place)
            if isinstance(label, bool):
                self._places.setdefault((str, str(label).lower()), place)

    def __len__(self) -> int:
        return len(self.classes)

    def place(self, value: Any) -> int:
        """The place of a class that there is."""
        place = self.find(value)
        if place is None:
            raise KeyError(value)
        return place

    def find(self, value: Any) -> int | None:
        """The place of the class that a client calls `value`; None if there is none.

        That is the label itself or its text, or else the only label that is the same number: 1, 1.0, "1" and "1.0" are;
        true is none.
        """
        if not isinstance(value, str | int | float):
            return None
        place = self._places.get(_identity(value))
        if place is None and not (isinstance(value, int) and abs(value) >= 2**64):  # too long to be a text
            place = self._places.get((str, str(value)))
        if place is None and (number := _number(value)) is not None:
            place = self._numbers.get(number)
        return place

    @cached_property
    def _numbers(self) -> dict[int | float, int]:
        """The places of labels that are numbers, or the texts of some, and of which no two are equal."""
        numbers = [_number(label) for label in self.classes]
        counts = Counter(numbers)
        return {number: place for place, number in enumerate(numbers) if number is not None and counts[number] == 1}


def _identity(label: Label) -> tuple[type, Label]:
    """A key by which 1 equals 1.0, but neither "1" nor true."""
    return (float if isinstance(label, int | float) and not isinstance(label, bool) else type(label)), label


def _number(label: Label) -> int | float | None:
    """The number that a label is, or whose text it is; None for any other label, true and false among them."""
    if not isinstance(label, str):
        return None if isinstance(label, bool) else label
    if len(label) > MAX_NUMBER_CHARACTERS or not NUMBER.fullmatch(label):
        return None  # also for codes such as 007
    number = int(label) if label.lstrip("-").isdigit() else float(label)
    return number if math.isfinite(number) else None


def json_label(label: Any) -> Label:
    """A class of an estimator as JSON has it; one that JSON has no type for becomes a string."""
    plain = python_value(label)
    if isinstance(plain, str | bool | int) or (isinstance(plain, float) and math.isfinite(plain)):
        return plain
    return str(label)


Present = Callable[[NDArray[np.float64]], list[Any]]
"""A function from outputs, shape (rows, width), to one JSON value a row."""


@dataclass(frozen=True)
class Layout:
    """The columns of a model's outputs: the same `parts` for each target. A model with one target has a nameless one.

    See `registry.estimator.Outputs` for the parts.
    """

    parts: tuple[Part, ...]
    targets: tuple[Target, ...] = (Target(name=""),)

    @property
    def is_named(self) -> bool:
        """True if there are several targets, which answers show by name."""
        return len(self.targets) > 1

    @cached_property
    def columns(self) -> tuple[dict[Part, slice], ...]:
        """The columns of each part, by target."""
        start, columns = 0, []
        for target in self.targets:
            places: dict[Part, slice] = {}
            for part in self.parts:
                places[part] = slice(start, start + _width(part, len(target.classes)))
                start = places[part].stop
            columns.append(places)
        return tuple(columns)

    @cached_property
    def width(self) -> int:
        """The number of columns."""
        return int(self.columns[-1][self.parts[-1]].stop)

    @property
    def in_text(self) -> Layout:
        """The layout with all labels as strings."""
        targets = [msgspec.structs.replace(own, classes=tuple(map(str, own.classes))) for own in self.targets]
        return Layout(self.parts, tuple(targets))

    def label_indices(self, outputs: NDArray[np.float64], target: int = 0) -> NDArray[np.intp]:
        """The index of each row's label among the classes of a target; without classes, the label itself."""
        columns = self.columns[target]
        if "label" in columns:
            return outputs[:, columns["label"].start].astype(np.intp)
        return outputs[:, columns["probabilities"]].argmax(axis=1)

    @cached_property
    def present(self) -> Present:
        """A function from outputs to answers: a number, or an object of label, probabilities, margins and score.

        Of several targets each is shown below its name: {"prediction": {"a": ..., "b": ...}}.
        """
        each = [self._presenter(index) for index in range(len(self.targets))]
        if self.parts[0] == "probabilities" and not self.is_named:
            return self._present_probabilities
        if not self.is_named:
            return each[0]
        names = [target.name for target in self.targets]

        def by_name(outputs: NDArray[np.float64]) -> list[Any]:
            answers = zip(*[present(outputs) for present in each], strict=True)
            return [{"prediction": dict(zip(names, row, strict=True))} for row in answers]

        return by_name

    def _present_probabilities(self, outputs: NDArray[np.float64]) -> list[Any]:
        """What most models answer, as fast as it can be."""
        classes, texts = self.targets[0].classes, self._texts
        if len(self.parts) > 1:
            place = len(classes)
            return [
                {"label": classes[int(row[place])], "probabilities": dict(zip(texts, row, strict=False))}
                for row in outputs.tolist()
            ]
        labels = outputs.argmax(axis=1).tolist()
        return [
            {"label": classes[label], "probabilities": dict(zip(texts, row, strict=False))}
            for label, row in zip(labels, outputs.tolist(), strict=True)
        ]

    def restore(self, answers: Sequence[Any]) -> NDArray[np.float64]:
        """The outputs, shape (answers, width), that `present` has shown so; no bit of them is lost."""
        if self.parts == ("probabilities",) and not self.is_named:  # what most models answer
            return np.array([[*one["probabilities"].values()] for one in answers], np.float64)
        outputs = np.empty((len(answers), self.width))
        for index, target in enumerate(self.targets):
            shown = [answer["prediction"][target.name] for answer in answers] if self.is_named else answers
            labels = self._labels[index]
            for part, columns in self.columns[index].items():
                match part:
                    case "value":
                        outputs[:, columns.start] = shown
                    case "label":
                        found = [one["label"] for one in shown]
                        outputs[:, columns.start] = list(map(labels.place, found)) if len(labels) else found
                    case "score":
                        outputs[:, columns.start] = [one["score"] for one in shown]
                    case _:  # of two classes there is one margin, the second's
                        width = columns.stop - columns.start
                        outputs[:, columns] = [[*one[part].values()][-width:] for one in shown]
        return outputs

    @cached_property
    def _labels(self) -> tuple[Labels, ...]:
        return tuple(Labels(target.classes) for target in self.targets)

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        return self._labels[0].texts

    def _presenter(self, index: int) -> Present:
        columns, classes = self.columns[index], self.targets[index].classes
        if "value" in columns:
            return lambda outputs: outputs[:, columns["value"].start].tolist()
        if not classes:
            return lambda outputs: _unclassified(outputs, columns)
        texts = self._labels[index].texts

        def classified(outputs: NDArray[np.float64]) -> list[Any]:
            labels = [classes[label] for label in self.label_indices(outputs, index).tolist()]
            if "probabilities" in columns:
                shares = outputs[:, columns["probabilities"]].tolist()
                return [
                    {"label": label, "probabilities": dict(zip(texts, row, strict=True))}
                    for label, row in zip(labels, shares, strict=True)
                ]
            if "margins" in columns:
                margins = both_margins(outputs[:, columns["margins"]]).tolist()
                return [
                    {"label": label, "margins": dict(zip(texts, row, strict=True))}
                    for label, row in zip(labels, margins, strict=True)
                ]
            return [{"label": label} for label in labels]

        return classified


def both_margins(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Margins of shape (rows, classes): a single one is that of the second class, and its negative the first's."""
    return np.hstack([-margins, margins]) if margins.shape[1] == 1 else margins


def _width(part: Part, classes: int) -> int:
    if part == "probabilities":
        return classes
    return classes if part == "margins" and classes > 2 else 1


def _unclassified(outputs: NDArray[np.float64], columns: dict[Part, slice]) -> list[Any]:
    """A cluster, the label and score of an outlier detector, or the score of a ranker."""
    found: list[dict[str, Any]] = [{} for _ in outputs]
    if "label" in columns:
        for answer, label in zip(found, outputs[:, columns["label"].start].tolist(), strict=True):
            answer["label"] = int(label)
    if "score" in columns:
        for answer, score in zip(found, outputs[:, columns["score"].start].tolist(), strict=True):
            answer["score"] = score
    return found
