"""What a model can be asked to do with rows; the answers are ready JSON, as they are cached and sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from registry.errors import ModelFailed
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.rows.features import Rows

Verb = Literal["predict", "explain"]
VERBS: tuple[Verb, ...] = ("predict", "explain")

EVERYTHING = Selection()
"""What an explanation shows when nothing is said of it."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One model, asked to predict rows or to explain what it predicts."""

    model: LoadedModel
    verb: Verb

    @property
    def name(self) -> str:
        """Of model, version and verb."""
        return f"{self.model.name}/{self.model.version}:{self.verb}"

    @property
    def is_isolated(self) -> bool:
        """Whether it holds the GIL or may take very long, and belongs in a process that can be killed."""
        explainer = self.model.explainer
        return self.verb == "explain" and explainer is not None and not explainer.in_process

    @property
    def may_run_inline(self) -> bool:
        """Whether its time depends on the number of rows alone, so that it can be measured beforehand.

        What an estimator does with another row, nobody knows.
        """
        return self.model.compiled if self.verb == "predict" else not self.is_isolated

    def answer(self, rows: Rows, selection: Selection) -> list[bytes]:
        """One answer a row, of shape (rows, features), as JSON; `selection` fits the model. Raises ModelFailed."""
        try:
            return self._answer(rows, selection)
        except ModelFailed:
            raise
        except Exception as error:
            # whatever a model raises on rows that fit its schema is its own fault, not the client's
            raise ModelFailed(f"{self.name}: {type(error).__name__}: {error}") from error

    def answer_isolated(self, rows: Rows, parameters: Mapping[str, Any]) -> bytes:
        """The same for a process of its own: `parameters` are a Selection's fields, the answers one JSON array."""
        selection = msgspec.convert(parameters, Selection)
        return b"[" + b",".join(self._answer(rows, selection)) + b"]"

    def _answer(self, rows: Rows, selection: Selection) -> list[bytes]:
        answers = self.model.predict(rows) if self.verb == "predict" else self.model.explain(rows, selection)
        return [_encode(one) for one in answers]


def selection_parameters(selection: Selection) -> dict[str, Any]:
    """What `answer_isolated` takes; part of a cache key, too."""
    return dataclasses.asdict(selection)
