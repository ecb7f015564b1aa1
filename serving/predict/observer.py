"""What parts that watch answers are told: the log of predictions, drift, versions tried beside the live one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from registry.estimator import Outputs
from registry.model import LoadedModel
from registry.rows.features import Rows
from serving.predict.operation import Verb


class Answered(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Rows that were answered to a client. Its request and key are CURRENT_REQUEST and CURRENT_KEY."""

    model: LoadedModel
    verb: Verb
    rows: Rows
    """Shape (rows, features)."""
    answers: Sequence[bytes] | Outputs
    """One answer a row as ready JSON, or the model's outputs, shape (rows, width)."""
    sources: Sequence[str]
    """Where each answer came from, as in metrics.SOURCES."""
    seconds: float
    """From the request's head to its answer."""
    entity: str = ""
    """The entity whose records the rows are; empty if they came in the request."""
    is_repeated: bool = False
    """Whether these are explanations of rows whose predictions the same request asked for, too."""


class Observer(Protocol):
    """Built before the fork; called in the event loop, for every request."""

    def observe(self, answered: Answered) -> None:
        """Take note; takes some microseconds, never waits and never raises."""
        ...
