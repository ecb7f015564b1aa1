"""Outcomes of logged predictions: found by the ids of their requests, so that nobody sends rows twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from registry.model import LoadedModel
from registry.quality import Scorer
from registry.registry import Registry
from serving.entities.outcomes import TOO_MANY, USAGE, OutcomesBody, check_outcomes, judge, outcome_id
from serving.entities.record import Outcome, parse_past_time
from serving.errors import InvalidRequest, TooManyInstances
from serving.monitoring.predictions.recorder import Recorder
from serving.monitoring.predictions.store import LoggedPrediction, PredictionStore
from serving.predict.pieces import Turns

NOT_LOGGED = "predictions are not logged: set LOG_PREDICTIONS, or send the instances beside the outcomes"
ALONE = "outcomes by request_id have the version and the entity of their predictions: send outcomes and time alone"

Place = tuple[str, int | None]
"""The id of a request, and the place of a row in it; None for its only one."""


class OutcomeOfRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What really happened in place of one logged prediction."""

    request_id: str
    outcome: Any
    instance: int | None = None
    """The place of the row in its request; None for the only one."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Outcomes of the predictions that were found, and of which there is no row in the log."""

    outcomes: list[Outcome]
    missing: list[OutcomeOfRequest]
    incomplete: int
    """Outcomes whose rows were logged without some columns."""

    def said(self) -> dict[str, Any]:
        """For an answer: what is missing, if anything is."""
        named = [
            {"request_id": one.request_id} | ({} if one.instance is None else {"instance": one.instance})
            for one in self.missing
        ]
        return ({"missing": named} if named else {}) | ({"incomplete": self.incomplete} if self.incomplete else {})


class LoggedOutcomes:
    """Joins outcomes with the log of predictions."""

    def __init__(
        self, registry: Registry, predictions: PredictionStore, recorder: Recorder | None, *, max_instances: int
    ) -> None:
        """`recorder` is None where nothing is logged any more."""
        self._registry = registry
        self._predictions = predictions
        self._recorder = recorder
        self._max_instances = max_instances

    async def read(
        self, name: str, sent: OutcomesBody, turns: Turns, may_see: Callable[[LoggedPrediction], bool]
    ) -> Joined:
        """Outcomes with what was predicted and logged, of the rows that the client `may_see`.

        Each has the time of its prediction unless one was sent. Its id follows from that of the request, so it is
        stored once however often it is sent, with rows or without. Raises ModelNotFound, NotLoaded, InvalidRequest,
        InvalidRows, TooManyInstances, StoreUnavailable.
        """
        live = self._registry.get(name)
        if len(sent.outcomes) > self._max_instances:
            raise TooManyInstances(TOO_MANY.format(self._max_instances))
        wanted = _read_wanted(sent)
        moment = None if sent.time is None else parse_past_time(sent.time)
        rows = await self._find(wanted, lambda row: row.model == name and row.verb == "predict" and may_see(row), turns)
        found: list[tuple[int, LoggedPrediction, LoadedModel]] = []
        missing: list[OutcomeOfRequest] = []
        versions = self._registry.versions(name)
        for index, one in enumerate(wanted):
            row = rows.get((one.request_id, one.instance))
            if row is None:
                missing.append(one)
            else:  # of a version that is not loaded any more the live one tells the labels
                found.append((index, row, versions.get(row.version, live)))
        if not found and self._recorder is None:
            raise InvalidRequest(NOT_LOGGED)
        values = check_outcomes((index, model, wanted[index].outcome) for index, _, model in found)
        scorers = {model: Scorer(model.manifest.task, model.layout) for model in {model for _, _, model in found}}
        outcomes = []
        for (_, row, model), value in zip(found, values, strict=True):
            await turns.pause()
            outcome = Outcome(
                model=name,
                version=row.version,
                id=outcome_id(row.key, row.request_id, row.place),
                time=moment or row.time,
                instance=row.row,
                outcome=value,
                prediction=None,
                entity=row.entity or None,
            )
            outcomes.append(judge(outcome, row.answer, scorers[model]))
        incomplete = sum(not row.row.keys() >= set(model.schema.names) for _, row, model in found)
        return Joined(outcomes, missing, incomplete)

    async def _find(
        self, wanted: Sequence[OutcomeOfRequest], fits: Callable[[LoggedPrediction], bool], turns: Turns
    ) -> Mapping[Place, LoggedPrediction]:
        """The rows that fit; of equal places the last. Others of the same requests are not held: they may be many.

        Raises InvalidRequest where it could be any of several rows.
        """
        by_request: dict[str, list[tuple[int, int | None]]] = {}
        for index, one in enumerate(wanted):
            by_request.setdefault(one.request_id, []).append((index, one.instance))
        found: dict[Place, LoggedPrediction] = {}
        has_settled = self._recorder is None
        for request_id, places in by_request.items():
            await turns.pause()
            logged = await self._predictions.get(request_id)
            if not logged and not has_settled and self._recorder is not None:
                await self._recorder.settle()
                has_settled = True
                logged = await self._predictions.get(request_id)
            rows: dict[int | None, LoggedPrediction] = {row.place: row for row in logged if fits(row)}
            for index, place in places:
                if place is None and len(rows) > 1:
                    raise InvalidRequest(f"outcomes[{index}]: that request has {len(rows)} rows; say which as instance")
                row = next(iter(rows.values()), None) if place is None else rows.get(place)
                if row is not None:
                    found[request_id, place] = row
        return found


def _read_wanted(sent: OutcomesBody) -> list[OutcomeOfRequest]:
    """Raises InvalidRequest."""
    if not sent.outcomes:
        raise InvalidRequest(USAGE)
    if not sent.version == sent.entity == sent.request_id is None:
        raise InvalidRequest(ALONE)
    wanted = []
    for index, one in enumerate(sent.outcomes):
        try:
            wanted.append(msgspec.convert(one, OutcomeOfRequest))
        except msgspec.ValidationError:
            raise InvalidRequest(f"outcomes[{index}] is not of this form; {USAGE}") from None
    return wanted
