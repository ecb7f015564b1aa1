"""The predictions of all models that are bound to entities, for the newest records of one entity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from cache.flight import Answer
from cache.memory import MemoryTier
from registry.errors import Fault, InvalidRows
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from serving.entities.record import ENTITY, Record, Value
from serving.entities.store import NO_KIND, EntityStore
from serving.errors import DeadlineExceeded, EntityNotFound, InvalidRequest, StoreUnavailable
from serving.predict.canary import MIN_SECONDS, SHARE_OF_DEADLINE, Canaries
from serving.predict.inference import Inference
from serving.predict.observer import Answered, Observer
from serving.predict.operation import VERBS, Verb, encode_answer
from serving.shared.metrics import Metrics

REMEMBERED_BYTES = 2 << 20
REMEMBERED_SECONDS = 3600.0

_decode = msgspec.json.Decoder(list[Record]).decode
_encode = msgspec.json.Encoder().encode


class RecordReader:
    """The newest records of entities, for one event loop; remembers them for when the store is unavailable."""

    def __init__(self, store: EntityStore, max_records: int) -> None:
        """At most `max_records` of an entity are read."""
        self._store = store
        self._remembered = MemoryTier(
            max_items=REMEMBERED_BYTES, max_bytes=REMEMBERED_BYTES, ttl_seconds=REMEMBERED_SECONDS
        )
        self.max_records = max_records

    async def newest(self, entity: str, limit: int) -> tuple[list[Record], bool]:
        """At most `limit` records and whether they are stale: from an earlier read, the store being unavailable.

        Raises StoreUnavailable if none are remembered.
        """
        key = entity.encode()
        try:
            records = await self._store.newest(entity, self.max_records)
        except StoreUnavailable:
            (remembered,) = self._remembered.find([key])
            if remembered is None:
                raise
            return _decode(remembered)[:limit], True
        self._remembered.put(key, _encode(records))
        return records[:limit], False


ModelAnswer = tuple[LoadedModel, dict[Verb, list[Answer]]]
"""A model, and its answers for each record by verb."""


@dataclass(frozen=True, slots=True)
class EntityAnswer:
    """The answers of all models for the records of an entity; `stale` when there may be newer records."""

    entity: str
    records: Sequence[Record]
    models: Sequence[ModelAnswer]
    stale: bool = False

    @property
    def sources(self) -> set[str]:
        return {source for _, by_verb in self.models for answers in by_verb.values() for _, source in answers}

    def content(self) -> bytes:
        """The answer as JSON, joined from encoded pieces."""
        head = {
            "entity": self.entity,
            "stale": self.stale,
            "records": [{"id": record.shown_id, "time": record.time} for record in self.records],
        }
        models = (
            encode_answer(model, {verb: [item for item, _ in answers] for verb, answers in by_verb.items()})
            for model, by_verb in self.models
        )
        return msgspec.json.encode(head)[:-1] + b',"models":[' + b",".join(models) + b"]}"


class EntityPredictor:
    """Asks the models that are bound to entities. Built before the fork; belongs to one event loop after it."""

    def __init__(
        self,
        registry: Registry,
        inference: Inference,
        reader: RecordReader,
        metrics: Metrics,
        status_of: Callable[[Exception], int],
        canaries: Canaries,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`status_of` is the HTTP status under which an error is counted; `observers` are told of all answers."""
        self._registry = registry
        self._inference = inference
        self._reader = reader
        self._metrics = metrics
        self._status_of = status_of
        self._canaries = canaries
        self._observers = observers
        self.max_records = reader.max_records

    def bound(self, names: Sequence[str] | None = None) -> list[LoadedModel]:
        """The live versions of the named models, or of all that are bound to entities.

        Raises ModelNotFound, InvalidRequest.
        """
        if names is None:
            return [model for model in self._registry.live() if model.manifest.entities]
        models = [self._registry.get(name) for name in dict.fromkeys(names)]
        for model in models:
            if not model.manifest.entities:
                raise InvalidRequest(f"{model.name} is not bound to entities")
        return models

    async def bound_to(self, entity: str) -> list[LoadedModel]:
        """The live versions that are bound to the kind of an entity. Raises StoreUnavailable, InvalidRecord."""
        models = self.bound()
        records, _ = await self._reader.newest(entity, 1)
        return of_kind(models, records[0].kind) if records else []

    async def predict(
        self,
        entity: str,
        *,
        names: Sequence[str] | None = None,
        may_use: Callable[[str], bool] = lambda _name: True,
        kind: str | None = None,
        limit: int | None = None,
        explained: bool = False,
        timeout: float | None = None,
    ) -> EntityAnswer:
        """Predictions, and explanations if `explained`, for at most `limit` records, newest first.

        Without `names`, all models predict that are bound to the entity's kind and that the client `may_use`. An entity
        of another kind than `kind`, where one is given, is not found.
        `timeout`, in seconds, may shorten the deadline, never lengthen it. Raises EntityNotFound, StoreUnavailable,
        InvalidRequest, ModelNotFound, InvalidRows naming record, column and model, and what `Inference.answer` raises.
        """
        started = time.monotonic()
        models = self.bound(names)
        check_entity(entity)
        records, stale = await self._reader.newest(entity, self.max_records if limit is None else limit)
        if not records or kind not in (None, records[0].kind):
            raise EntityNotFound
        if names is None:
            models = [model for model in of_kind(models, records[0].kind) if may_use(model.name)]
        elif other := [model for model in models if model.manifest.kind != records[0].kind]:
            raise InvalidRequest(f"{other[0].name} is not bound to entities of kind {records[0].kind or NO_KIND}")
        left = None if timeout is None else timeout - (time.monotonic() - started)
        if left is not None and left <= 0:
            raise DeadlineExceeded(f"reading the records took longer than {timeout:g} s")
        answers = await self.predict_records(records, models, explained=explained, timeout=left)
        return EntityAnswer(entity, records, answers, stale)

    async def predict_records(
        self,
        records: Sequence[Record],
        models: Sequence[LoadedModel],
        *,
        explained: bool = False,
        timeout: float | None = None,
    ) -> list[ModelAnswer]:
        """Predictions, and explanations if `explained`, for these records. Raises InvalidRows, `Inference.answer`'s."""
        tables = [rows_of(model, records) for model in models]
        verbs: tuple[Verb, ...] = VERBS if explained else ("predict",)
        calls = [
            self._predict(model, rows, records, verbs, timeout) for model, rows in zip(models, tables, strict=True)
        ]
        return list(await asyncio.gather(*calls))

    async def _predict(
        self, model: LoadedModel, rows: Rows, records: Sequence[Record], verbs: Sequence[Verb], timeout: float | None
    ) -> ModelAnswer:
        """The answers of a live version, or of the canary beside it."""
        entity = records[0].entity
        canary = self._canaries.instead_of(model, entity) if self._canaries else None
        seconds = self._inference.seconds(timeout)
        if canary is not None and seconds >= MIN_SECONDS and (canary.explains or verbs == ("predict",)):
            started = time.perf_counter()
            try:
                own_rows = rows_of(canary.candidate, records)
                return await self._answer(canary.candidate, own_rows, entity, verbs, seconds * SHARE_OF_DEADLINE)
            except Exception as error:  # noqa: BLE001 - whatever stops the candidate, the live version answers
                canary.note_failure("predict", error)
            timeout = max(0.0, seconds - (time.perf_counter() - started))
        return await self._answer(model, rows, entity, verbs, timeout)

    async def _answer(
        self, model: LoadedModel, rows: Rows, entity: str, verbs: Sequence[Verb], timeout: float | None
    ) -> ModelAnswer:
        answers = await asyncio.gather(*(self._answer_one(model, verb, rows, entity, timeout) for verb in verbs))
        return model, dict(zip(verbs, answers, strict=True))

    async def _answer_one(
        self, model: LoadedModel, verb: Verb, rows: Rows, entity: str, timeout: float | None
    ) -> list[Answer]:
        canary, counters, started = self._canaries.of(model), self._metrics.model(model.name, verb), time.perf_counter()
        try:
            answers = await self._inference.answer(model, verb, rows, timeout=timeout)
        except Exception as error:
            if canary is None or model is canary.live:  # else the live version is asked instead
                status = self._status_of(error)
                counters.refused(status)
                if canary is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    canary.failed(model, verb)
            raise
        seconds = time.perf_counter() - started
        values, sources = zip(*answers, strict=True)
        counters.answered(seconds, sources)
        if canary is not None:
            canary.answered(model, verb, seconds, sources)
        for observer in self._observers:
            observer.observe(
                Answered(model, verb, rows, values, sources, seconds, entity, is_repeated=verb == "explain")
            )
        return answers


def of_kind(models: Sequence[LoadedModel], kind: str) -> list[LoadedModel]:
    """Those of the models that are bound to a kind of entities."""
    return [model for model in models if model.manifest.kind == kind]


def check_entity(entity: str) -> None:
    """Raises EntityNotFound for a name that no entity can have."""
    if not ENTITY.fullmatch(entity):
        raise EntityNotFound


def rows_of(model: LoadedModel, records: Sequence[Record]) -> Rows:
    """The model's columns of each record, in shape (records, features). Raises InvalidRows."""
    schema = model.schema
    instances = [
        {
            name: _as_text(record.values[name]) if name in schema.strings else record.values[name]
            for name in schema.names
            if name in record.values
        }
        for record in records
    ]
    try:
        return schema.rows(instances)
    except InvalidRows as error:
        faults = [
            Fault(fault.instance, fault.feature, f"{fault.reason} (model {model.name})") for fault in error.faults
        ]
        raise InvalidRows(faults) from None


def _as_text(value: Value) -> Value:
    """A value of a column of strings: a CSV that was imported may show a number there, or a boolean."""
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
