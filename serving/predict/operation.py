"""The operations of a model on rows; the answers are ready JSON, as they are cached and sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from registry.errors import ModelFailed
from registry.estimator import Outputs
from registry.explain.explanation import Selection
from registry.explain.shap_values import Explainer, Space
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows, characters

Verb = Literal["predict", "explain"]
VERBS: tuple[Verb, ...] = ("predict", "explain")
ANSWERS: Mapping[str, str] = {"predict": "predictions", "explain": "explanations"}
"""The member of an answer that holds the list, one item per instance."""

NUMBER_BYTES = 24
"""Bytes of a float64 as JSON, with the punctuation around it and its name."""

EVERYTHING = Selection()
"""The part of an explanation that is shown by default."""

Answers: TypeAlias = list[bytes] | Outputs
"""One answer a row: ready JSON, or the rows of a matrix."""

_encode = msgspec.json.Encoder().encode


@lru_cache
def begin_answer(name: str, version: str) -> bytes:
    """Return the start of the JSON object that answers for a model; names and versions need no escaping."""
    return f'{{"model":"{name}","version":"{version}"'.encode()


def encode_answer(model: LoadedModel, answers: Mapping[Verb, Iterable[bytes]]) -> bytes:
    """Return the JSON object that answers for a model: one list of encoded items per verb."""
    content = begin_answer(model.name, model.version)
    for verb, items in answers.items():
        content += b',"%s":[%s]' % (ANSWERS[verb].encode(), b",".join(items))
    return (
        content + b"".join(b',"%s":%s' % (mark.encode(), _encode(value)) for mark, value in marks(model).items()) + b"}"
    )


def marks(model: LoadedModel) -> dict[str, Any]:
    """Members of every answer of a model that may be wrong: a fallback, or one that another release has fitted."""
    found: dict[str, Any] = {"fallback": True} if model.fallback else {}
    return found | {"forced": model.manifest.forced} if model.manifest.forced else found


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One model, asked to predict rows or to explain its predictions."""

    model: LoadedModel
    verb: Verb
    space: Space | None = None
    """The outputs that are explained; None for those that the model explains by default."""
    is_raw: bool = False
    """True to answer predictions as the model's outputs, shape (rows, width), instead of JSON."""
    interactions: bool = False
    """Whether interactions are explained, too, which takes longer."""

    @property
    def name(self) -> str:
        """Model, version and verb; of explanations also a space that is not the default, and if they have pairs."""
        kinds = filter(None, (self.verb, self.space, "interactions" if self.interactions else None))
        return f"{self.model.name}/{self.model.version}:{'-'.join(kinds)}"

    @property
    def explainer(self) -> Explainer | None:
        """The explainer that is asked; None to predict, or where there is none."""
        if self.verb == "predict":
            return None
        return self.model.explainer if self.space is None else self.model.other_explainers[self.space]

    @property
    def is_isolated(self) -> bool:
        """True if it holds the GIL or may take very long, and must run in a process that can be killed."""
        explainer = self.explainer
        return explainer is not None and not explainer.in_process

    @property
    def may_run_inline(self) -> bool:
        """True if its time depends on the size of the rows alone, so that it can be measured beforehand.

        An estimator may take any time for another row, and so may its steps in Python.
        """
        if self.model.python_steps:
            return False
        return self.model.compiled if self.verb == "predict" else not self.is_isolated

    def size(self, rows: Rows) -> int:
        """The number of usual rows that take as long: one for each row, more if their texts are longer than usual."""
        if not self.model.schema.has_text:
            return len(rows)
        return max(len(rows), round(characters(rows) / self.model.usual_characters))

    def answer(self, rows: Rows, selection: Selection) -> Answers:
        """One answer a row, of shape (rows, features); `selection` fits the model. Raises ModelFailed."""
        try:
            if self.is_raw:
                return self.model.outputs(rows)
            return [_encode(one) for one in self._answers(rows, selection)]
        except ModelFailed:
            raise
        except Exception as error:
            # an error on rows that fit the schema is the model's fault, not the client's
            raise ModelFailed(f"{self.name}: {type(error).__name__}: {error}") from error

    def answer_call(self, payload: bytes) -> bytes:
        """The function that an executor runs: a payload of `encode_rows` -> a JSON array of one answer a row."""
        return _encode(self._answers(*decode_rows(payload)))

    def _answers(self, rows: Rows, selection: Selection) -> list[Any]:
        if self.verb == "predict":
            return self.model.predict(rows, selection.coverage)
        return self.model.explain(rows, selection)


def answer_bytes(model: LoadedModel, verb: Verb, selection: Selection) -> int:
    """About how many bytes of JSON one row is answered with, before anything is computed."""
    if verb == "predict":
        classes = [text for labels in model.target_labels for text in labels.texts]
        return NUMBER_BYTES * model.layout.width + sum(map(len, classes))
    names = tuple(model.names.shown())
    shown = len(names) if selection.top is None else min(selection.top, len(names))
    mean = sum(map(len, names)) / len(names)
    columns = 2 if model.schema.has_text or model.explainer_for(selection).budget is not None else 1
    numbers = shown * columns
    if selection.interactions:
        numbers += (shown + 1) ** 2
    each = 4 * NUMBER_BYTES + round(numbers * (NUMBER_BYTES + mean))
    return count_outputs(model, selection) * each


def count_outputs(model: LoadedModel, selection: Selection) -> int:
    """The number of outputs that an explanation of one row shows, of all targets together."""
    outputs = 0
    for labels in model.target_labels:
        match selection.classes:
            case "predicted":
                outputs += 1
            case "all":
                outputs += max(1, len(labels))
            case some:
                outputs += len(some)
    return outputs


def make_operations(registry: Registry) -> list[Operation]:
    """All that the models can be asked for."""
    operations = []
    for model in registry:
        operations.append(Operation(model, "predict"))
        if model.explainer is not None:
            for space, explainer in ((None, model.explainer), *model.other_explainers.items()):
                operations.append(Operation(model, "explain", space))
                if explainer.interact is not None:
                    operations.append(Operation(model, "explain", space, interactions=True))
    return operations


def encode_rows(rows: Rows, selection: Selection) -> bytes:
    """The payload of a call to `Operation.answer_call`, for rows of shape (rows, features); no bit of them is lost."""
    content = rows.tolist() if rows.dtype == object else np.asarray(rows, "<f8").tobytes()
    return msgspec.msgpack.encode((rows.shape[1], selection, content))


def decode_rows(payload: bytes) -> tuple[Rows, Selection]:
    """Decode the payload of `encode_rows`; the rows are writable, as some estimators require."""
    kinds = tuple[int, Selection, bytearray | list[list[Any]]]
    features, selection, content = msgspec.msgpack.decode(payload, type=kinds)
    if isinstance(content, list):
        return np.array(content, dtype=object).reshape(-1, features), selection
    return np.frombuffer(content, "<f8").reshape(-1, features), selection
