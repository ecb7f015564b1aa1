"""The operations of both clients, each written once."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from datetime import date
from functools import wraps
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    ParamSpec,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

import msgspec

from serving.client.answers import (
    DeletedCounts,
    EntityDescription,
    EntityForecast,
    Explanation,
    Explanations,
    FeatureImportance,
    HealthReport,
    JobStatus,
    ModelDescription,
    Prediction,
    Predictions,
    Stored,
    StoredRecord,
    answers_of,
    forecast_of,
)
from serving.client.calls import Answer, Calls
from serving.client.errors import BecameJob, JobFailedError
from serving.client.events import ServerEvent
from serving.client.progress import Progress
from serving.client.request import (
    JSON,
    Classes,
    JobOperation,
    Request,
    Verb,
    entity_path,
    explained,
    given,
    inference,
    job_path,
    job_request,
    model_path,
)
from serving.client.rows import Table, index_of, instances_of, of_requests, plain, values_of
from serving.client.transport import finish

if TYPE_CHECKING:
    from serving.client.client import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

Time: TypeAlias = "date | str"
"""A `datetime`, a `date`, or ISO 8601."""


class JobParameters(TypedDict, total=False):
    """What a job predicts or explains: the arguments of `predict` and `explain` of the same names."""

    classes: Classes
    top: int
    space: str
    coverage: float
    interactions: bool


FIRST_POLL_SECONDS = 0.05
MAX_POLL_SECONDS = 1.0

LAST_EVENTS = ("done", "failed", "cancelled")
"""The kinds of the events after which nothing happens to a job any more."""


class operation(Generic[P, T]):  # noqa: N801 - a decorator
    """A method of both clients, written once: `Client` returns its result, `AsyncClient` a coroutine."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        self._function = function

    @overload
    def __get__(self, client: Client, owner: Any) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: Any) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: Any) -> Any:
        if client is None:
            return self._function

        @wraps(self._function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            coroutine = self._function(client, *args, **kwargs)
            return finish(coroutine) if client.blocks else coroutine

        return call


class stream(Generic[P, T]):  # noqa: N801 - a decorator
    """A method of both clients, written once: `Client` returns an iterator, `AsyncClient` an asynchronous one."""

    def __init__(self, function: Callable[Concatenate[Any, P], AsyncGenerator[T, None]]) -> None:
        self._function = function

    @overload
    def __get__(self, client: Client, owner: Any) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: Any) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: Any, owner: Any) -> Any:
        if client is None:
            return self._function

        @wraps(self._function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            items = self._function(client, *args, **kwargs)
            return _iterate(items) if client.blocks else items

        return call


def _iterate(items: AsyncGenerator[T, None]) -> Iterator[T]:
    """The items of a generator that never suspends."""
    try:
        while True:
            try:
                item = finish(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        finish(items.aclose())


class Operations:
    """What a service offers. Wherever a model is asked, `version` names one; without, the live one answers.

    `timeout` is in seconds, retries included; without, that of the client. All raise ForkserveError.
    """

    _calls: Calls
    blocks: ClassVar[bool]
    """Whether a call returns when it is done."""

    @operation
    async def predict(
        self,
        model: str,
        rows: Table,
        *,
        version: str | None = None,
        coverage: float | None = None,
        timeout: float | None = None,
    ) -> Predictions:
        """The predictions for rows, in order.

        With `coverage`, such as 0.9, numbers have an `interval` and labels a set, `labels`, that hold the true value so
        often. Raises BecameJob if the service goes on with it as a job.
        """
        answers = await self._infer("predict", model, rows, version, {"coverage": coverage}, timeout)
        assert isinstance(answers, Predictions)
        return answers

    @operation
    async def explain(
        self,
        model: str,
        rows: Table,
        *,
        version: str | None = None,
        classes: Classes = "predicted",
        top: int | None = None,
        space: str | None = None,
        interactions: bool = False,
        timeout: float | None = None,
    ) -> Explanations:
        """SHAP values of rows, in order.

        `classes` are those to explain, `top` is how many features to keep, `space` one of the model's
        `explainer.spaces`; compiled trees also have `interactions`. Raises BecameJob if the service goes on with it as
        a job.
        """
        wishes = explained(classes, top=top, space=space, interactions=interactions or None)
        answers = await self._infer("explain", model, rows, version, wishes, timeout)
        assert isinstance(answers, Explanations)
        return answers

    @operation
    async def importance(
        self, model: str, *, version: str | None = None, top: int | None = None, timeout: float | None = None
    ) -> FeatureImportance:
        """How much features matter over the model's background rows; over others, a job with that operation says it."""
        request = Request("GET", f"{model_path(model, version)}/importance", {"top": top}, has_deadline=True)
        return FeatureImportance.of(msgspec.json.decode((await self._calls.send(request, timeout)).content))

    @stream
    def stream_predictions(
        self,
        model: str,
        rows: Table,
        *,
        version: str | None = None,
        coverage: float | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Prediction, None]:
        """The predictions for rows, in order, each as soon as it is there; a stream that breaks off goes on."""
        return self._each("predict", Prediction.of, model, rows, version, {"coverage": coverage}, timeout)

    @stream
    def stream_explanations(
        self,
        model: str,
        rows: Table,
        *,
        version: str | None = None,
        classes: Classes = "predicted",
        top: int | None = None,
        space: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Explanation, None]:
        """The explanations of rows, in order, each as soon as it is there; a stream that breaks off goes on."""
        return self._each(
            "explain", Explanation.of, model, rows, version, explained(classes, top=top, space=space), timeout
        )

    @operation
    async def models(self) -> list[ModelDescription]:
        """The live version of each model."""
        listed = await self._json("GET", "/v1/models")
        return msgspec.convert(listed["models"], list[ModelDescription])

    @operation
    async def model(self, name: str, version: str | None = None) -> ModelDescription:
        """Everything about one version of a model: its features, classes, metrics, an example of its input."""
        return await self._get(ModelDescription, model_path(name, version))

    @operation
    async def health(self) -> HealthReport:
        """How the service is."""
        return await self._get(HealthReport, "/health")

    @operation
    async def submit(
        self,
        model: str,
        rows: Table | Path | str,
        *,
        operation: JobOperation = "predict",
        version: str | None = None,
        idempotency_key: str | None = None,
        **parameters: Unpack[JobParameters],
    ) -> JobStatus:
        """A job that predicts or explains many rows in the background, or says how much features matter over them.

        `rows` may also be the path of a file: `.csv` with a header, or `.parquet` and `.arrows` (a stream of Arrow's)
        where the service takes these. Two calls with the same `idempotency_key` are one job.
        """
        about = {"operation": operation, "model": model, "version": version}
        request = job_request(rows, about, dict[str, Any](parameters), idempotency_key or uuid.uuid4().hex)
        return _decode(JobStatus, await self._calls.send(request))

    @operation
    async def job(self, job: JobStatus | str) -> JobStatus:
        """A job as it is now."""
        return await self._get(JobStatus, job_path(job))

    @operation
    async def wait(
        self, job: JobStatus | str, *, rows: int = 0, progress: bool | None = None, timeout: float | None = None
    ) -> JobStatus:
        """Wait until a job is done, for as long as it takes, or `timeout` seconds.

        If stderr is a terminal, or with `progress`, a line shows how far it is, with rows a second if `rows` says how
        many there are. Raises JobFailedError if the job fails or is cancelled; TimedOutError, and the job goes on.
        """
        deadline = None if timeout is None else self._calls.patience(timeout)
        path, pause = job_path(job), FIRST_POLL_SECONDS
        found = await self._get(JobStatus, path)
        with Progress(f"{found.operation} {found.model}", rows, shown=progress) as line:
            while not found.is_finished:
                line.show(found.state, found.progress)
                await self._calls.sleep(pause if deadline is None else min(pause, deadline.left()))
                pause = min(pause * 1.5, MAX_POLL_SECONDS)
                found = await self._get(JobStatus, path)
            line.show(found.state, found.progress)
        if found.state != "done":
            raise JobFailedError(f"job {found.id} {found.state}: {found.error}".removesuffix(": "), found)
        return found

    @operation
    async def result(self, job: JobStatus | str) -> Predictions | Explanations | FeatureImportance:
        """The answers of a job that is done, in the order of its rows. Raises ConflictError before."""
        answer = await self._calls.send(Request("GET", f"{job_path(job)}/result"))
        document = msgspec.json.decode(answer.content)
        return FeatureImportance.of(document) if "importance" in document else answers_of(document, answer.headers)

    @operation
    async def cancel(self, job: JobStatus | str) -> JobStatus:
        """Cancel a job. One that is finished stays as it is."""
        return _decode(JobStatus, await self._calls.send(Request("DELETE", job_path(job))))

    @stream
    def job_events(self, job: JobStatus | str, *, after: str | int | None = None) -> AsyncGenerator[ServerEvent, None]:
        """What happens to a job, from its beginning or after the event of that id, until it is finished.

        A stream that breaks off goes on where it was. `is_reset` of an event says that some are lost.
        """
        return self._follow(f"{job_path(job)}/events", after, LAST_EVENTS)

    @operation
    async def store_outcomes(
        self,
        model: str,
        rows: Table | None,
        outcomes: Any,
        *,
        version: str | None = None,
        time: Time | None = None,
        request_id: str | Sequence[str] | None = None,
        entity: str | None = None,
    ) -> Stored:
        """Store what really happened: a label or a number for each row, as a list, an array or a Series.

        `request_id`, that of the predictions, makes it safe to send them twice. Where the service logs predictions,
        `rows` may be None: the outcomes are those of the rows of that request, or of a request each, if there are as
        many ids. `missing` of the answer names the predictions that are not in the log.
        """
        if rows is None:
            content: dict[str, Any] = {"outcomes": of_requests(request_id, values_of(outcomes))}
        else:
            content = {"instances": instances_of(rows), "outcomes": values_of(outcomes), **given(request_id=request_id)}
        content |= given(version=version, time=plain(time), entity=entity)
        path, repeatable = f"{model_path(model)}/outcomes", request_id is not None
        return await self._post(Stored, path, content, repeatable=repeatable)

    @operation
    async def store_records(
        self,
        entity: str,
        rows: Table,
        *,
        times: Sequence[Time] | Any = None,
        ids: Sequence[str] | None = None,
        kind: str | None = None,
    ) -> Stored:
        """Store records of an entity: dictionaries or a DataFrame, with the time of each (default: now), or its id.

        A record that is sent twice, with its time or its id, is stored once.
        """
        instances = instances_of(rows)
        records: list[dict[str, Any]] = [{"values": values} for values in instances]
        for name, column in given(time=times, id=ids).items():
            for record, value in zip(records, values_of(column), strict=True):
                record[name] = value
        path, repeatable = f"{entity_path(entity)}/records", times is not None or ids is not None
        return await self._post(Stored, path, {"records": records}, query={"kind": kind}, repeatable=repeatable)

    @stream
    def entities(self, *, kind: str | None = None) -> AsyncGenerator[EntityDescription, None]:
        """All entities that have records, by name."""
        return self._pages(EntityDescription, "/v1/entities", "entities", {"kind": kind})

    @stream
    def records(self, entity: str) -> AsyncGenerator[StoredRecord, None]:
        """All records of an entity, newest first."""
        return self._pages(StoredRecord, f"{entity_path(entity)}/records", "records", {})

    @operation
    async def entity_predictions(
        self,
        entity: str,
        *,
        models: Sequence[str] | None = None,
        kind: str | None = None,
        limit: int | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> EntityForecast:
        """The predictions of all models that are bound to entities, or of these, for the newest records."""
        query = {"models": None if models is None else ",".join(models), "kind": kind, "limit": limit}
        query |= {"explain": "true"} if explain else {}
        request = Request("GET", f"{entity_path(entity)}/predictions", query, has_deadline=True)
        return forecast_of(msgspec.json.decode((await self._calls.send(request, timeout)).content))

    @stream
    def entity_events(self, entity: str, *, after: str | int | None = None) -> AsyncGenerator[ServerEvent, None]:
        """Predictions for each record that arrives, from now on or after the event of that id; it does not end.

        A stream that breaks off goes on where it was. `is_reset` of an event says that some are lost.
        """
        return self._follow(f"{entity_path(entity)}/events", after, ())

    @operation
    async def delete_entity(self, entity: str) -> DeletedCounts:
        """Delete all that is kept of an entity: records, outcomes, events."""
        return await self._delete(entity_path(entity), {})

    @operation
    async def delete_records(self, entity: str, *, before: Time | None = None) -> DeletedCounts:
        """Delete records of an entity: all, or those of earlier times."""
        return await self._delete(f"{entity_path(entity)}/records", {"before": plain(before)})

    @operation
    async def request(
        self, method: str, path: str, *, json: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Any other request, such as `client.request("POST", "/api/admin/models:reload")`. It is not sent twice."""
        content = None if json is None else msgspec.json.encode(json)
        typed = {} if json is None else JSON
        return await self._calls.send(Request(method, path, {}, typed | (headers or {}), content, repeatable=False))

    async def _infer(
        self, verb: Verb, model: str, rows: Table, version: str | None, wishes: dict[str, Any], timeout: float | None
    ) -> Predictions | Explanations:
        request = inference(verb, model, instances_of(rows), version, wishes)
        answer = await self._calls.send(request, timeout)
        if answer.status == 202:
            job = _decode(JobStatus, answer)
            raise BecameJob(f"the answer takes too long; it will be the result of job {job.id}", job)
        return answers_of(msgspec.json.decode(answer.content), answer.headers, index_of(rows))

    async def _each(
        self,
        verb: Verb,
        make: Callable[[Any], T],
        model: str,
        rows: Table,
        version: str | None,
        wishes: dict[str, Any],
        timeout: float | None,
    ) -> AsyncGenerator[T, None]:
        """The items of a streamed answer; if it breaks off, those of the rows that are left are asked for again."""
        instances, received = instances_of(rows), 0

        def ask_next() -> Request:
            return inference(verb, model, instances[received:], version, wishes, streamed=True)

        async with aclosing(self._calls.stream(ask_next, timeout)) as events:
            async for event in events:
                if event.kind != "done":
                    received += 1
                    yield make(event.data)
                if received == len(instances):
                    return

    async def _follow(
        self, path: str, after: str | int | None, last_kinds: Sequence[str]
    ) -> AsyncGenerator[ServerEvent, None]:
        last_id = "" if after is None else str(after)

        def ask_next() -> Request:
            return Request("GET", path, headers={"last-event-id": last_id} if last_id else {}, follows=True)

        async with aclosing(self._calls.stream(ask_next)) as events:
            async for event in events:
                last_id = event.id or last_id
                yield event
                if event.kind in last_kinds:
                    return

    async def _pages(self, kind: type[S], path: str, name: str, query: dict[str, Any]) -> AsyncGenerator[S, None]:
        after: str | None = None
        while True:
            page = await self._json("GET", path, query | {"after": after})
            for item in page[name]:
                yield msgspec.convert(item, kind)
            after = page["next"]
            if after is None:
                return

    async def _json(self, method: str, path: str, query: dict[str, Any] | None = None) -> Any:
        return msgspec.json.decode((await self._calls.send(Request(method, path, query or {}))).content)

    async def _get(self, kind: type[S], path: str) -> S:
        return _decode(kind, await self._calls.send(Request("GET", path)))

    async def _post(
        self, kind: type[S], path: str, content: Any, *, query: dict[str, Any] | None = None, repeatable: bool
    ) -> S:
        request = Request("POST", path, query or {}, JSON, msgspec.json.encode(content), repeatable=repeatable)
        return _decode(kind, await self._calls.send(request))

    async def _delete(self, path: str, query: dict[str, Any]) -> DeletedCounts:
        return msgspec.convert((await self._json("DELETE", path, query))["deleted"], DeletedCounts)


def _decode(kind: type[S], answer: Answer) -> S:
    return msgspec.json.decode(answer.content, type=kind)
