"""Reads from answers, which are ready JSON, what the model has predicted: values, or the places of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from registry.estimator import Outputs
from registry.model import LoadedModel
from registry.outputs import Target
from serving.predict.observer import Answered
from serving.predict.operation import Verb

LABEL = len(b'{"label":')
"""Where the label begins in an answer that has one: it is the first member."""


class _Labelled(msgspec.Struct):
    label: msgspec.Raw


class _Bounded(msgspec.Struct):
    """A value with an interval."""

    prediction: float


class _Predicted(msgspec.Struct):
    """The predictions for several targets."""

    prediction: dict[str, float | _Labelled]


class _Explained(msgspec.Struct):
    """The explanations for several targets."""

    targets: dict[str, _Labelled]


_decode_values = msgspec.json.Decoder(list[float | _Bounded]).decode
_decode_labels = msgspec.json.Decoder(list[_Labelled]).decode
_decode_predicted = msgspec.json.Decoder(list[_Predicted]).decode
_decode_explained = msgspec.json.Decoder(list[_Explained]).decode


class OutputReader:
    """Reads the answers of one model. Belongs to one thread."""

    def __init__(self, model: LoadedModel) -> None:
        self._layout = model.layout
        self._has_values = "value" in self._layout.parts
        self._has_labels = "label" in self._layout.parts or "probabilities" in self._layout.parts
        self._places = [_places(target) for target in self._layout.targets]
        self._is_value = self._has_values and not self._layout.is_named
        self._labels = {} if self._layout.is_named else self._places[0]
        """The places of the labels of the only target."""
        self._nothing: Outputs = np.empty((0, len(self._places)))

    def read(self, answered: Sequence[Answered]) -> Outputs:
        """A value, or the place of a label, for each answer and target: shape (answers, targets), in any order.

        Without a row for answers that tell neither: explanations of values are in a space of their own.
        """
        predicted: list[bytes] = []
        parts: list[Outputs] = []
        for one in answered:
            answers = one.answers
            if isinstance(answers, np.ndarray):
                parts.append(self._columns(answers))
            elif self._labels or one.verb == "predict":
                predicted += answers
            elif self._has_labels:
                parts.append(self._read_all("explain", answers))
        if predicted and (self._has_labels or self._has_values):
            parts.append(self._read_quickly(predicted))
        return parts[0] if len(parts) == 1 else np.concatenate([self._nothing, *parts])

    def _read_quickly(self, answers: Sequence[bytes]) -> Outputs:
        """Read what most answers look like; of a label without a comma after it, what is left ends with the brace."""
        if self._labels:
            places = [self._labels.get(answer[LABEL : answer.find(b",", LABEL)]) for answer in answers]
            if None not in places:
                return np.array(places, np.float64)[:, None]
        elif self._is_value and not any(answer.startswith(b"{") for answer in answers):
            return np.array(list(map(float, answers)))[:, None]
        return self._read_all("predict", answers)

    def _columns(self, outputs: Outputs) -> Outputs:
        layout = self._layout
        if self._has_values:
            return np.column_stack([outputs[:, columns["value"].start] for columns in layout.columns])
        if not self._has_labels:
            return self._nothing
        places = [layout.label_indices(outputs, target) for target in range(len(self._places))]
        return np.column_stack(places).astype(np.float64)

    def _read_all(self, verb: Verb, answers: Sequence[bytes]) -> Outputs:
        found: list[list[float]]
        listed = b"[%b]" % b",".join(answers)
        if not self._layout.is_named:
            shown = _decode_values(listed) if self._has_values else _decode_labels(listed)
            found = [[self._cell(one, 0)] for one in shown]
        elif verb == "explain":
            found = [self._cells(one.targets) for one in _decode_explained(listed)]
        else:
            found = [self._cells(one.prediction) for one in _decode_predicted(listed)]
        return np.array(found)

    def _cells(self, shown: Mapping[str, float | _Labelled]) -> list[float]:
        return [self._cell(shown[target.name], index) for index, target in enumerate(self._layout.targets)]

    def _cell(self, shown: float | _Bounded | _Labelled, target: int) -> float:
        if isinstance(shown, float):
            return shown
        if isinstance(shown, _Bounded):
            return shown.prediction
        places, label = self._places[target], bytes(shown.label)
        return places[label] if places else float(label)


def _places(target: Target) -> dict[bytes, float]:
    """The places of labels by their JSON; none of labels that are numbers of clusters."""
    return {msgspec.json.encode(label): float(place) for place, label in enumerate(target.classes)}
