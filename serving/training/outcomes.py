"""Outcomes as the table from which a model is trained anew."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pandas as pd

from registry.training.script import OUTCOME, TIME
from serving.entities.record import Outcome
from serving.entities.store import EntityStore


def outcome_reader(source: EntityStore, limit: int) -> Callable[[str], Coroutine[Any, Any, pd.DataFrame]]:
    """A function from a model's name to the last `limit` outcomes that came of it, as `outcome_frame` has them.

    It may be called in a forked process, in an event loop of its own, and leaves nothing open there. It raises
    StoreUnavailable.
    """

    async def read(model: str) -> pd.DataFrame:
        try:
            return outcome_frame(await source.outcomes(model, limit))
        finally:
            await source.close()

    return read


def outcome_frame(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row an outcome as TrainingData has them, in the order of their times; without outcomes it has no columns."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.time)
    return pd.DataFrame([{**one.instance, OUTCOME: one.outcome, TIME: one.time} for one in ordered])
