"""The quality of the live versions' predictions, judged by the latest outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeGuard

import structlog

from registry.model import LoadedModel
from registry.registry import Registry
from serving.entities.record import Judged
from serving.entities.store import EntityStore
from serving.errors import StoreUnavailable
from serving.storage.background import Recent

MAX_OUTCOMES = 1000
"""The latest outcomes of a version, from which its metrics are computed."""

FRESH_SECONDS = 10.0
READ_SECONDS = 2.0

log = structlog.get_logger(__name__)


class LiveQuality:
    """Accuracy or mean absolute error of each live version, read from the store at most every FRESH_SECONDS."""

    def __init__(self, registry: Registry, store: EntityStore) -> None:
        self._registry = registry
        self._store = store
        self._metrics: dict[str, Any] = {}
        self.take = Recent(self._read, FRESH_SECONDS).get
        """The metrics by model; those last read while the store is unavailable."""

    async def _read(self) -> dict[str, Any]:
        await asyncio.gather(*map(self._refresh, self._registry.live()))
        return dict(self._metrics)

    async def _refresh(self, model: LoadedModel) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._metrics[model.name] = await self.live_metrics(model)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("Outcomes cannot be read", model=model.name, reason=str(error))

    async def live_metrics(self, model: LoadedModel) -> dict[str, Any]:
        """Accuracy, or the mean absolute error of a regression, over the latest outcomes of this version.

        Of several targets all labels must be right, and errors are averaged.

        Each outcome was stored with the prediction that the version made when it arrived. Raises StoreUnavailable.
        """
        judged = await self._store.judged(model.name, model.version, MAX_OUTCOMES)
        metrics: dict[str, Any] = {"version": model.version, "outcomes": len(judged)}
        if not judged:
            return metrics
        if model.manifest.task == "regression":
            errors = [error for one in judged for error in _errors(one)]
            return metrics | ({"mean_absolute_error": sum(errors) / len(errors)} if errors else {})
        if model.manifest.task == "ranking":  # a score is right only beside others
            return metrics
        return metrics | {"accuracy": sum(one.outcome == one.prediction for one in judged) / len(judged)}


def _errors(one: Judged) -> list[float]:
    """The absolute error of each target; none if the version had other targets then."""
    if isinstance(one.outcome, Mapping) and isinstance(one.prediction, Mapping):
        pairs: list[tuple[Any, Any]] = [(value, one.prediction.get(name)) for name, value in one.outcome.items()]
    else:
        pairs = [(one.outcome, one.prediction)]
    return [abs(float(value) - float(other)) for value, other in pairs if _is_number(value) and _is_number(other)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float)
