"""Takes in what really happened, and says how good the live versions have been by it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from registry.errors import Fault, InvalidRows, ModelFailed
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from serving.entities.record import LARGEST_INTEGER, Outcome, digest, new_id, now, parse_time
from serving.entities.store import Source
from serving.errors import (
    CallFailed,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    StoreUnavailable,
    TooManyInstances,
)
from serving.predict.inference import Inference, Timing
from serving.predict.request_body import decode

USAGE = 'send an object: {"instances": [...], "outcomes": [...]}'
WINDOW = 1000
"""Of a version's outcomes, the last that came: what its accuracy is taken over."""

FRESH_SECONDS = 10.0
PATIENCE_SECONDS = 2.0
LONGEST_ID = 64

log = structlog.get_logger(__name__)


class OutcomesBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends: instances as it sent them for predictions, and for each what really happened."""

    instances: list[Any]
    outcomes: list[Any]
    version: str | None = None
    time: str | None = None
    request_id: str | None = None


_body = msgspec.json.Decoder(OutcomesBody)


class OutcomeReader:
    """Makes Outcomes of what clients send."""

    def __init__(self, registry: Registry, inference: Inference, *, max_instances: int) -> None:
        self._registry = registry
        self._inference = inference
        self._max_instances = max_instances

    async def read(self, name: str, body: bytes) -> list[Outcome]:
        """With what the version named, or else the live one, predicts now.

        Of that request by which the predictions were asked for, an outcome takes its id, so that it is kept once
        however often it is sent. Raises NotJSON, InvalidRequest, InvalidRows, TooManyInstances, ModelNotFound,
        VersionNotFound.
        """
        asked = decode(_body, body, USAGE)
        model = self._registry.get(name, asked.version)
        if len(asked.instances) > self._max_instances:
            raise TooManyInstances(f"a request may have {self._max_instances} instances; send more as several requests")
        if len(asked.outcomes) != len(asked.instances):
            raise InvalidRequest(f"{len(asked.instances)} instances, but {len(asked.outcomes)} outcomes")
        if asked.request_id is not None and not 0 < len(asked.request_id) <= LONGEST_ID:
            raise InvalidRequest(f"request_id has 1 to {LONGEST_ID} characters")
        rows = model.schema.rows(asked.instances)
        outcomes = check_outcomes(model, asked.outcomes)
        moment = now() if asked.time is None else parse_time(asked.time)
        predictions = await self._predict(model, rows)
        return [
            Outcome(
                model=model.name,
                version=model.version,
                id=new_id() if asked.request_id is None else digest(asked.request_id, str(index)),
                time=moment,
                instance=model.schema.instance(row),
                outcome=outcome,
                prediction=prediction,
            )
            for index, (row, outcome, prediction) in enumerate(zip(rows, outcomes, predictions, strict=True))
        ]

    async def _predict(self, model: LoadedModel, rows: Rows) -> Sequence[str | float | None]:
        """An outcome is worth keeping also when its prediction cannot be had now."""
        try:
            answers = await self._inference.answer(model, "predict", rows, timing=Timing())
        except (ModelFailed, CallFailed, Overloaded, DeadlineExceeded) as error:
            log.warning("Outcomes are kept without predictions", model=model.name, reason=str(error))
            return [None] * len(rows)
        return [_said(msgspec.json.decode(value)) for value, _ in answers]


def check_outcomes(model: LoadedModel, outcomes: Sequence[Any]) -> list[str | float]:
    """One of the model's labels, or a finite number, for each instance. Raises InvalidRows naming the instance."""
    classes = model.manifest.classes
    faults = []
    for index, outcome in enumerate(outcomes):
        if classes and outcome not in classes:
            faults.append(Fault(index, None, "the outcome must be one of the model's classes"))
        elif not classes and not _is_number(outcome):
            faults.append(Fault(index, None, "the outcome must be a finite number"))
        if len(faults) == InvalidRows.LIMIT:
            break
    if faults:
        raise InvalidRows(faults)
    return [outcome if classes else outcome + 0.0 for outcome in outcomes]


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= LARGEST_INTEGER
    return type(value) is float and math.isfinite(value)


def _said(answer: Any) -> str | float | None:
    """The label or the number of an answer."""
    said: str | float | None = answer["label"] if isinstance(answer, dict) else answer
    return said


class LiveQuality:
    """How good the predictions of the live versions have been, by the last outcomes that came."""

    def __init__(self, registry: Registry, source: Source) -> None:
        self._registry = registry
        self._source = source
        self._taken = -math.inf
        self._figures: dict[str, Any] = {}

    async def take(self) -> dict[str, Any]:
        """The metrics of each live model, at most ten seconds old, or as they were when the source was last there."""
        if time.monotonic() - self._taken > FRESH_SECONDS:
            self._taken = time.monotonic()
            await asyncio.gather(*map(self._refresh, self._registry.live()))
        return dict(self._figures)

    async def _refresh(self, model: LoadedModel) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._figures[model.name] = await self.live_metrics(model)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("Outcomes cannot be read", model=model.name, reason=str(error))

    async def live_metrics(self, model: LoadedModel) -> dict[str, Any]:
        """Accuracy, or the mean absolute error of a regression, over the last outcomes of this version.

        Each was compared with what the version predicted when the outcome came. Raises StoreUnavailable.
        """
        judged = await self._source.judged(model.name, model.version, WINDOW)
        figures: dict[str, Any] = {"version": model.version, "outcomes": len(judged)}
        if not judged:
            return figures
        if model.manifest.task == "regression":
            errors = [abs(float(one.outcome) - float(one.prediction)) for one in judged]
            return figures | {"mean_absolute_error": sum(errors) / len(errors)}
        return figures | {"accuracy": sum(one.outcome == one.prediction for one in judged) / len(judged)}
