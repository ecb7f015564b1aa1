"""Outcomes that clients send: read out of requests, and stored at once or, if the client does not wait, later."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, takewhile
from typing import Annotated, Any, cast

import msgspec
import structlog
from msgspec import Meta

from registry.errors import Fault, InvalidRows, ModelFailed
from registry.model import LoadedModel
from registry.outputs import Label, Labels
from registry.quality import Scorer
from registry.registry import Registry
from registry.rows.features import Rows
from serving.entities.record import (
    MAX_INTEGER,
    Outcome,
    Probabilities,
    TrueValue,
    check_name,
    digest,
    new_id,
    now,
    parse_past_time,
)
from serving.entities.store import BATCH, EntityStore
from serving.errors import (
    CallFailed,
    DataQueueFull,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    StoreUnavailable,
    TooManyInstances,
)
from serving.predict.inference import Inference
from serving.predict.json_body import LargeBodyDecoder
from serving.predict.pieces import Turns
from serving.storage.background import BackgroundTask

USAGE = 'send an object: {"instances": [...], "outcomes": [...]} or {"outcomes": [{"request_id": ..., "outcome": ...}]}'
TOO_MANY = "a request may have {} instances; send more as several requests"
MAX_ID_CHARACTERS = 64

MAX_QUEUED = 10_000
MAX_QUEUED_BYTES = 16 * 1024 * 1024
"""Bytes of the bodies in which they were sent; in memory they take several times as much."""
RETRY_SECONDS = 1.0
CLOSING_SECONDS = 2.0

log = structlog.get_logger(__name__)


INSTANCES = Meta(description="Instances as they are sent for predictions", extra_json_schema={"minItems": 1})


OUTCOMES = Meta(
    description="The label or the number of each instance, or an object by target; without instances "
    '`{"request_id": ..., "outcome": ..., "instance": 0}`, whose `instance` is the place of the row in its request'
)


class OutcomesBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request: instances as they were sent for predictions, and the outcome of each.

    Without instances, the outcomes of logged predictions.
    """

    outcomes: Annotated[list[Any], OUTCOMES]
    instances: Annotated[list[Any], INSTANCES] | msgspec.UnsetType = msgspec.UNSET
    version: Annotated[str | None, Meta(description="The version whose quality they measure; default live")] = None
    time: Annotated[str | None, Meta(description="When they happened, ISO 8601; default now")] = None
    request_id: Annotated[str | None, Meta(description="Of the prediction; sent twice, they are stored once")] = None
    entity: Annotated[str | None, Meta(description="The entity that they are about; they are deleted with it")] = None


_body = LargeBodyDecoder(OutcomesBody, USAGE, TOO_MANY)


class OutcomeReader:
    """Reads outcomes out of requests, and adds what the model predicts for their instances."""

    def __init__(self, registry: Registry, inference: Inference, *, max_instances: int) -> None:
        self._registry = registry
        self._inference = inference
        self._max_instances = max_instances

    async def decode(self, body: bytes, turns: Turns) -> OutcomesBody:
        """What was sent. Raises NotJSON, InvalidRequest, TooManyInstances."""
        sent = await _body.decode(body, self._max_instances, turns)
        if b"\\u0000" in body:
            raise InvalidRequest("strings must not have NUL in them")
        return sent

    async def read(
        self, name: str, sent: OutcomesBody, instances: list[Any], turns: Turns, writer: str = ""
    ) -> list[Outcome]:
        """Outcomes of instances with the current prediction of the named version, or else of the live one.

        The id of an outcome follows from the `request_id` of the prediction request, so that it is stored once however
        often it is sent by one `writer`, the name of a key. Raises InvalidRequest, InvalidRows, TooManyInstances,
        ModelNotFound, VersionNotFound.
        """
        model = self._registry.get(name, sent.version)
        self._check(sent, instances)
        rows = model.schema.rows(instances)
        outcomes = check_outcomes((index, model, outcome) for index, outcome in enumerate(sent.outcomes))
        moment = now() if sent.time is None else parse_past_time(sent.time)
        answers = await self._predict(model, rows)
        scorer = Scorer(model.manifest.task, model.layout)
        read: list[Outcome] = []
        for instance, row, outcome, answer in zip(instances, rows, outcomes, answers, strict=True):
            await turns.pause()
            one = Outcome(
                model=model.name,
                version=model.version,
                id=new_id() if sent.request_id is None else outcome_id(writer, sent.request_id, len(read)),
                time=moment,
                instance=model.schema.sent(row, instance),
                outcome=outcome,
                prediction=None,
                entity=sent.entity,
            )
            read.append(one if answer is None else judge(one, answer, scorer))
        return read

    def _check(self, sent: OutcomesBody, instances: list[Any]) -> None:
        if len(instances) > self._max_instances:
            raise TooManyInstances(TOO_MANY.format(self._max_instances))
        if len(sent.outcomes) != len(instances):
            raise InvalidRequest(f"{len(instances)} instances, but {len(sent.outcomes)} outcomes")
        if sent.entity is not None:
            check_name(sent.entity)
        if sent.request_id is not None and not 0 < len(sent.request_id) <= MAX_ID_CHARACTERS:
            raise InvalidRequest(f"request_id has 1 to {MAX_ID_CHARACTERS} characters")

    async def _predict(self, model: LoadedModel, rows: Rows) -> Sequence[Any]:
        """The answer for each row; None for all if the model fails now: the outcomes are kept anyway."""
        try:
            answers = await self._inference.answer(model, "predict", rows)
        except (ModelFailed, CallFailed, Overloaded, DeadlineExceeded) as error:
            log.warning("Outcomes stored without predictions", model=model.name, reason=str(error))
            return [None] * len(rows)
        return [msgspec.json.decode(value) for value, _ in answers]


def outcome_id(writer: str, request_id: str, index: int) -> str:
    """The id of the outcome of a row of a request: it is stored once, however often one `writer` sends it."""
    return digest(*filter(None, [writer]), request_id, str(index))


def judge(outcome: Outcome, answer: Any, scorer: Scorer) -> Outcome:
    """The outcome with a version's answer for its row, and what follows from both."""
    prediction, probabilities = _plain(answer), _probabilities(answer)
    sums = scorer.sums(outcome.outcome, prediction, probabilities)
    return dataclasses.replace(outcome, prediction=prediction, probabilities=probabilities, sums=sums)


def _plain(answer: Any) -> TrueValue:
    """A prediction without probabilities and scores."""
    if not isinstance(answer, dict):
        number: float = answer
        return number
    if "prediction" in answer:
        shown = answer["prediction"]  # of several targets, or a number beside its interval
        return {name: cast("Label", _plain(one)) for name, one in shown.items()} if isinstance(shown, dict) else shown
    label: Label = answer["label"] if "label" in answer else answer["score"]
    return label


def _probabilities(answer: Any) -> Probabilities | None:
    """The probabilities in a prediction, by target if there are several; None if it has none."""
    if not isinstance(answer, dict):
        return None
    if isinstance(answer.get("prediction"), dict):
        found = {name: _probabilities(one) for name, one in answer["prediction"].items()}
        return None if None in found.values() else found
    shares: Probabilities | None = answer.get("probabilities")
    return shares


def check_outcomes(sent: Iterable[tuple[int, LoadedModel, Any]]) -> list[TrueValue]:
    """One of the model's labels, or a finite number, for each place; of several targets an object by name.

    A label may be sent as it is answered or as its text, and comes back as it is answered. Raises InvalidRows naming
    the instance.
    """
    checked: list[TrueValue] = []
    faults: list[Fault] = []
    for index, model, outcome in sent:
        try:
            checked.append(_check_outcome(model, outcome))
        except ValueError as error:
            faults.append(Fault(index, None, str(error)))
            if len(faults) == InvalidRows.LIMIT:
                break
    if faults:
        raise InvalidRows(faults)
    return checked


def _check_outcome(model: LoadedModel, outcome: Any) -> TrueValue:
    """The outcome as it is stored. Raises ValueError."""
    targets = model.layout.targets
    if not model.layout.is_named:
        return _check_value(model.target_labels[0], outcome, "the outcome")
    if not isinstance(outcome, dict) or outcome.keys() != {target.name for target in targets}:
        raise ValueError(f"the outcome must be an object of {', '.join(target.name for target in targets)}"[:200])
    pairs = zip(targets, model.target_labels, strict=True)
    return {target.name: _check_value(labels, outcome[target.name], target.name) for target, labels in pairs}


def _check_value(labels: Labels, value: Any, name: str) -> Label:
    if not len(labels):
        if not _is_number(value):
            raise ValueError(f"{name} must be a finite number")
        number: float = value + 0.0
        return number
    place = labels.find(value)
    if place is None:
        raise ValueError(f"{name} must be one of the model's classes")
    return labels.classes[place]


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= MAX_INTEGER
    return type(value) is float and math.isfinite(value)


class OutcomeWriter:
    """Stores outcomes of many requests together, and retries while the store is unavailable.

    Queued outcomes are lost with their process: only requests that say `Prefer: respond-async` use it.
    """

    def __init__(self, store: EntityStore, *, stored: Callable[[set[str]], None] = lambda _models: None) -> None:
        """`stored` is called with the names of models whose outcomes have been stored."""
        self._store = store
        self._stored = stored
        self._queue: deque[tuple[str, Outcome, int]] = deque()
        self._bytes = 0
        self._background = BackgroundTask(self._write, closing_seconds=CLOSING_SECONDS)

    @property
    def queued(self) -> int:
        """Outcomes that are not yet stored."""
        return len(self._queue)

    def add(self, outcomes: Sequence[Outcome], writer: str = "", size: int = 0) -> None:
        """Queue them all, which have come in a body of `size` bytes, or none and raise DataQueueFull; never waits."""
        if len(self._queue) + len(outcomes) > MAX_QUEUED or self._bytes + size > MAX_QUEUED_BYTES:
            raise DataQueueFull
        share = size // len(outcomes)
        self._queue.extend((writer, outcome, share) for outcome in outcomes)
        self._bytes += share * len(outcomes)
        self._background.wake()

    async def close(self) -> None:
        """Store queued outcomes for at most CLOSING_SECONDS; drop the rest and log their number."""
        await self._background.close()
        if self._queue:
            log.error("Outcomes lost", outcomes=len(self._queue))
            self._queue.clear()
            self._bytes = 0

    async def _write(self) -> None:
        unavailable, size = False, BATCH
        while self._queue:
            writer = self._queue[0][0]
            of_writer = takewhile(lambda queued: queued[0] == writer, islice(self._queue, size))  # noqa: B023 - used at once
            batch = [outcome for _, outcome, _ in of_writer]
            try:
                await self._store.add_outcomes(batch, writer)
            except StoreUnavailable as error:
                if not unavailable:
                    log.warning("Outcomes queued: store is unavailable", outcomes=len(self._queue), reason=str(error))
                unavailable = True
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except InvalidRequest as error:
                if len(batch) > 1:  # those of other clients are good
                    size = len(batch) // 2
                    continue
                log.error("Outcomes lost", outcomes=1, reason=str(error))
            else:
                self._stored({one.model for one in batch})
            unavailable, size = False, BATCH
            # only now: a batch that is sent twice is stored once
            for _ in batch:
                self._bytes -= self._queue.popleft()[2]
