"""Explanations as they are shown: contributions as JSON values of selected classes and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from registry.errors import CannotAdd, InvalidSelection
from registry.explain.shap_values import Contributions, Explainer, Space
from registry.outputs import Label, Labels

OTHER = "(other)"
"""The sum of the features that are not shown."""


MAX_WORDS = 20
"""Words of a text that are shown; the others are summed."""


MAX_TOP = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Which explanation is made, and which part of it is shown.

    `classes`: the predicted one, all, or those listed. `top`: this many features with the largest contributions, and
    the rest summed; None for all in the model's order. `space`: the outputs that are explained; None for the model's
    own choice.
    """

    classes: Literal["predicted", "all"] | tuple[Label, ...] = "predicted"
    top: int | None = None
    space: Space | None = None
    coverage: float | None = None
    """The share of true values that intervals, or sets of labels, of predictions shall hold; None for neither."""
    interactions: bool = False
    """Whether the effects of pairs of features are shown besides their values."""

    def check(self, labels: Labels) -> None:
        """Raises InvalidSelection where a model of these classes cannot show it."""
        if self.top is not None and not 1 <= self.top <= MAX_TOP:
            raise InvalidSelection(f"top must be at least 1 and at most {MAX_TOP}")
        if not isinstance(self.classes, tuple):
            known = self.classes in ("predicted", "all")
        elif len(labels):
            known = 0 < len(self.classes) <= len(labels) and self._names_classes(labels)
        else:
            raise InvalidSelection("the model has no classes")
        if not known:
            raise InvalidSelection("classes must be 'predicted', 'all', or classes of the model, each named once")

    def _names_classes(self, labels: Labels) -> bool:
        """True if each of the listed classes exists, and none is named twice, as 1 and "1" would."""
        places = {labels.find(name) for name in self.classes}
        return len(places) == len(self.classes) and None not in places


@dataclass(frozen=True, slots=True)
class Names:
    """The names in explanations: a model's features and classes, groups of features, and labels for people.

    `groups` are features whose contributions are summed, by the name of the sum; `labels` are by feature or group.
    `targets` are those of a model with several, each with its classes.
    """

    features: Sequence[str]
    classes: Labels = field(default_factory=lambda: Labels(()))
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    targets: Sequence[tuple[str, Labels]] = ()

    def shown(self) -> dict[str, list[int]]:
        """Indices of the features behind each name that is shown; a group stands where its first feature stood."""
        owners = {member: group for group, members in self.groups.items() for member in members}
        shown: dict[str, list[int]] = {}
        for index, feature in enumerate(self.features):
            shown.setdefault(owners.get(feature, feature), []).append(index)
        return shown

    def shown_labels(self) -> dict[str, str]:
        """The labels of the names that are shown."""
        return {name: self.labels[name] for name in self.shown() if name in self.labels}


def checked_groups(groups: Mapping[str, Sequence[str]], features: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Groups of features, each of which is in one group at most. Raises CannotAdd."""
    taken: dict[str, str] = {}
    for group, members in groups.items():
        if not group or not members:
            raise CannotAdd(f"the group {group!r} needs a name and at least one feature")
        if group in features and group not in members:
            raise CannotAdd(f"the group {group!r} has the name of a feature that is not in it")
        for member in members:
            if member not in features:
                raise CannotAdd(f"the group {group!r} has {member!r}, which is not a feature")
            if member in taken:
                raise CannotAdd(f"{member!r} is twice in the groups: in {taken[member]!r} and in {group!r}")
            taken[member] = group
    return {group: tuple(members) for group, members in groups.items()}


def checked_labels(labels: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Labels of features and groups. Raises CannotAdd."""
    for name, label in labels.items():
        if name not in names:
            raise CannotAdd(f"{name!r}, which has a label, is not a feature or a group")
        if not label:
            raise CannotAdd(f"the label of {name!r} is empty")
    return dict(labels)


def present_contributions(
    found: Contributions, explainer: Explainer, names: Names, labels: Sequence[Any], selection: Selection
) -> list[dict[str, Any]]:
    """One item a row; in each, `base_value` and the sum of `values` make `output`.

    For the predicted class, or a model without classes:

        {"label": ..., "space": ..., "method": ..., "output": ..., "base_value": ..., "values": {feature: ...}}

    For several classes "classes" holds output, base_value and values by class; for several targets "targets" holds all
    of this, and the label, by target. `labels` are the predicted ones, None for a model without classes, by target if
    there are several. Sampled values come with `"sampled": true` and a `standard_error` for each; texts with
    `words`, {feature: {word: ...}}; pairs with `interactions`, {feature: {feature: ...}}; features that have labels for
    people with `labels`. Raises InvalidSelection.
    """
    selection.check(names.classes)
    drawer, shown_labels = _Drawer(found, names, selection), names.shown_labels()
    presented = []
    for row, label in enumerate(labels):
        item: dict[str, Any] = {} if label is None or names.targets else {"label": label}
        item |= {"space": explainer.space, "method": explainer.method}
        if found.standard_error is not None:
            item["sampled"] = True
        item |= drawer.targets(row, label) if names.targets else drawer.target(row, names.classes, label)
        if shown_labels:
            item["labels"] = shown_labels
        presented.append(item)
    return presented


class _Drawer:
    """Contributions as JSON values, of one row and output at a time."""

    def __init__(self, found: Contributions, names: Names, selection: Selection) -> None:
        self._found = found
        self._features = names.features
        self._targets = names.targets
        self._classes, self._top = selection.classes, selection.top
        shown = names.shown()
        self._shown = tuple(shown)
        self._values, self._errors, self._pairs = found.values, found.standard_error, found.interactions
        if names.groups:
            starts = np.cumsum([0, *map(len, shown.values())])[:-1]
            order = [index for members in shown.values() for index in members]
            self._values = np.add.reduceat(found.values[:, order], starts, axis=1)
            if found.interactions is not None:
                by_group = np.add.reduceat(found.interactions[:, order], starts, axis=1)
                self._pairs = np.add.reduceat(by_group[:, :, order], starts, axis=2)
            if found.standard_error is not None:  # that of a sum is no more than the sum of theirs
                self._errors = np.add.reduceat(found.standard_error[:, order], starts, axis=1)

    def targets(self, row: int, labels: Mapping[str, Any]) -> dict[str, Any]:
        """The explanations of all targets, whose outputs stand one after the other."""
        first, by_name = 0, {}
        for name, classes in self._targets:
            label = labels.get(name)
            own = {} if label is None else {"label": label}
            by_name[name] = own | self.target(row, classes, label, first)
            first += max(1, len(classes))
        return {"targets": by_name}

    def target(self, row: int, classes: Labels, label: Any, first: int = 0) -> dict[str, Any]:
        """The explanation of a target whose outputs begin with the `first`: of one class, or of several by class."""
        if not len(classes):
            return self.item(row, first)
        if self._classes == "predicted":
            return self.item(row, first + classes.place(label))
        chosen = map(classes.place, classes.classes if self._classes == "all" else self._classes)
        return {"classes": {classes.texts[index]: self.item(row, first + index) for index in chosen}}

    def item(self, row: int, output: int) -> dict[str, Any]:
        """The explanation of one output."""
        values = self._values[row, :, output]
        top = len(values) if self._top is None else self._top
        order = range(len(values)) if top >= len(values) else np.argsort(-np.abs(values), kind="stable").tolist()
        item = {
            "output": float(self._found.outputs[row, output]),
            "base_value": float(self._found.base_values[output]),
            "values": self._by_name(values, order, top),
        }
        if self._errors is not None:
            item["standard_error"] = self._by_name(self._errors[row, :, output], order, top)
        if self._pairs is not None:
            item["interactions"] = self._by_names(self._pairs[row, :, :, output], order, top)
        if self._found.words is not None and self._found.words[row]:
            item["words"] = {
                feature: self._words(row, output, feature, words) for feature, words in self._found.words[row].items()
            }
        return item

    def _by_name(self, values: NDArray[np.float64], order: Sequence[int], top: int) -> dict[str, float]:
        shown = {self._shown[index]: float(values[index]) for index in order[:top]}
        if top < len(values):
            shown[OTHER] = shown.get(OTHER, 0.0) + float(values[order[top:]].sum())  # a feature may have this name, too
        return shown

    def _by_names(self, pairs: NDArray[np.float64], order: Sequence[int], top: int) -> dict[str, dict[str, float]]:
        """A matrix, of which the rows and the columns of features that are not shown are summed."""
        shown = {self._shown[index]: self._by_name(pairs[index], order, top) for index in order[:top]}
        if top < len(pairs):
            rest = self._by_name(pairs[list(order[top:])].sum(axis=0), order, top)
            before = shown.get(OTHER, {})
            shown[OTHER] = {name: value + before.get(name, 0.0) for name, value in rest.items()}
        return shown

    def _words(self, row: int, output: int, feature: str, words: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
        """The words that matter most; the rest, with the words that the text lacks, makes up the feature's value."""
        values = {word: float(value[output]) for word, value in words.items()}
        largest = sorted(values, key=lambda word: -abs(values[word]))[: min(MAX_WORDS, self._top or MAX_WORDS)]
        shown = {word: values[word] for word in largest}
        rest = float(self._found.values[row, self._features.index(feature), output]) - sum(shown.values())
        shown[OTHER] = shown.get(OTHER, 0.0) + rest
        return shown
