"""The path that all protocols share: a body is received, its rows are answered, counted and logged."""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from registry.estimator import Outputs
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from serving.errors import MethodNotAllowed, NotJSON, TooManyInstances
from serving.http.body import ClientGone, HeaderMap, Headers, check_encoding, read_body
from serving.http.edge import note, respond, unanswered_status
from serving.http.keys import key_of
from serving.http.problems import status_of
from serving.predict.canary import MIN_SECONDS, SHARE_OF_DEADLINE, RunningCanary
from serving.predict.inference import Timing
from serving.predict.observer import Answered
from serving.predict.operation import EVERYTHING, VERBS, Verb, answer_bytes
from serving.predict.pieces import Turns
from serving.predict.request_body import TOO_MANY
from serving.service import Service
from serving.shared.metrics import ModelCounters

OPTIONS: Headers = [(b"allow", b"OPTIONS, POST")]
"""The whole answer to OPTIONS."""

TIMEOUT = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,20})?")

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Bytes of an answer that is made whole; it takes four times as much memory until it is sent."""

SHORTEST_SECONDS = 1e-6
"""Of a deadline that has passed."""

FEW_ROWS = 16
"""Rows that make no large answer unless parameters ask for one."""

TOO_LONG = (
    f"the answer would have more than {MAX_ANSWER_BYTES >> 20} MB; send fewer instances, name fewer classes or a "
    "smaller `top`, accept text/event-stream, or submit a job"
)

DONE: Mapping[Verb, str] = {"predict": "Prediction", "explain": "Explanation"}

PREDICTIONS: Mapping[Verb, Selection] = {"predict": EVERYTHING}


class InferenceRoute(ABC):
    """An ASGI app that answers rows of a model; its caller puts the names in the path into `path_params`."""

    def __init__(self, service: Service) -> None:
        registry = service.registry
        self._registry = registry
        self._inference = service.inference
        self._max_body_bytes = service.limits.max_body_bytes
        self._figures: Mapping[Verb, Mapping[LoadedModel, ModelCounters]] = {
            verb: {model: service.metrics.model(model.name, verb) for model in registry} for verb in VERBS
        }
        self._marks = {model: _marks(model) for model in registry}
        """Headers of every answer of a model."""
        self._observers = service.observers
        self._canaries = service.canaries
        self._access_log = service.access_log
        self._show_timing = service.show_timing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": OPTIONS})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] != "POST":
            raise MethodNotAllowed("POST")
        model, verb = self._find(scope)
        canary = self._canary(model, verb, scope) if self._canaries else None
        try:
            if canary is None:
                await self._answer(model, verb, scope, receive, send)
            else:
                await self._answer_by_canary(canary, verb, scope, receive, send)
        except Exception as error:
            is_gone = isinstance(error, ClientGone)
            status = unanswered_status(scope) if is_gone else status_of(error)
            self._figures[verb][model].refused(status)
            if self._canaries and not is_gone and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self._count_failure(model, verb)
            raise

    def _canary(self, model: LoadedModel, verb: Verb, scope: Scope) -> RunningCanary | None:
        """The canary that answers a request, if one does: one that names no version, and has time for two answers.

        Answers that are streamed, or turn into jobs, can go wrong when it is too late to ask another version.
        """
        if scope["path_params"].get("version") is not None or "warmup" in scope["state"]:
            return None
        headers = dict(scope["headers"])
        if b"event-stream" in headers.get(b"accept", b""):
            return None
        if self._inference.seconds(timeout_of(headers)) < MIN_SECONDS:
            return None
        canary = self._canaries.instead_of(model, key_of(scope).name or scope["state"]["request_id"])
        return None if canary is None or (verb == "explain" and not canary.explains) else canary

    async def _answer_by_canary(
        self, canary: RunningCanary, verb: Verb, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Have the candidate answer a request, or the live version if it cannot."""
        started = time.perf_counter()
        seconds = self._inference.seconds(timeout_of(dict(scope["headers"])))
        body, reply = ReplayedBody(receive), WatchedSend(send)
        tried = with_timeout(scope, seconds * SHARE_OF_DEADLINE)
        tried["is_canary"] = True
        try:
            await self._answer(canary.candidate, verb, tried, body.receive, reply.send)
        except ClientGone:
            raise
        except Exception as error:  # whatever stops the candidate, the live version may answer
            if reply.has_begun:
                raise
            failure = error
        else:
            scope["instances"] = tried.get("instances", 0)
            return
        scope["state"].pop("form", None)
        is_fault = status_of(failure) >= HTTPStatus.INTERNAL_SERVER_ERROR
        if is_fault:  # else it may be a fault of the request, which both versions refuse
            canary.note_failure(verb, failure)
        left = seconds - (time.perf_counter() - started)
        await self._answer(canary.live, verb, with_timeout(scope, left), body.again(), send)
        if not is_fault:
            canary.note_failure(verb, failure)

    def _count_failure(self, model: LoadedModel, verb: Verb) -> None:
        canary = self._canaries.of(model)
        if canary is not None:
            canary.failed(model, verb)

    @abstractmethod
    def _find(self, scope: Scope) -> tuple[LoadedModel, Verb]:
        """The model that is asked, and what refusals count as. Raises ModelNotFound, VersionNotFound, NotPermitted."""

    @abstractmethod
    async def _answer(self, model: LoadedModel, verb: Verb, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or raise what refuses it."""

    def _count(
        self,
        model: LoadedModel,
        verb: Verb,
        rows: Rows,
        answers: Sequence[bytes] | Outputs | None,
        sources: Sequence[str],
        seconds: float,
        *,
        is_repeated: bool = False,
    ) -> None:
        """Count a request that was answered, and tell those who watch; for `is_repeated` see `Answered`."""
        self._figures[verb][model].answered(seconds, sources)
        if self._canaries and (canary := self._canaries.of(model)) is not None:
            canary.answered(model, verb, seconds, sources)
        if self._observers and answers is not None:
            answered = Answered(model, verb, rows, answers, sources, seconds, is_repeated=is_repeated)
            for observer in self._observers:
                observer.observe(answered)


@dataclass(eq=False, slots=True)
class Received:
    """A request whose body is there."""

    scope: Scope
    headers: HeaderMap
    body: bytes
    receive: Receive
    """For `turns_of_client`, with which a large body is read in pieces."""


@dataclass(eq=False, slots=True)
class Question:
    """What a body asks for; then the answers. A protocol may derive its own, to keep what its answer repeats."""

    rows: Rows
    """Shape (rows, features), as `Schema.rows` makes them; at least one."""
    selections: Mapping[Verb, Selection] = field(default_factory=lambda: PREDICTIONS)
    """What is wanted of the rows; not empty."""
    as_outputs: bool = False
    """True for the model's outputs instead of predictions in JSON, which are quicker to get for many rows."""
    look_up: bool = True
    """False for a few rows, too, to be computed where that is quicker than the cache."""
    answers: dict[Verb, list[bytes]] = field(default_factory=dict)
    """One answer a row as JSON, as `:predict` and `:explain` send them."""
    outputs: Outputs | None = None
    """The outputs, shape (rows, width), whose columns `model.layout` names."""


@dataclass(eq=False, slots=True)
class ProtocolAnswer:
    """The answer to a question."""

    content_type: bytes
    body: bytes
    headers: Sequence[tuple[bytes, bytes]] = ()


class Protocol(ABC):
    """A reader of bodies and a writer of answers."""

    path: re.Pattern[str]
    """The paths of its predictions, which are asked by POST; matched as a whole."""

    def find(self, registry: Registry, names: Mapping[str, str | None]) -> LoadedModel:
        """The model that a request is for, by the groups of `path`. Raises ModelNotFound, VersionNotFound."""
        return registry.get(names["model"] or "", names.get("version"))

    @abstractmethod
    async def read(self, model: LoadedModel, request: Received) -> Question:
        """Read a body: its content type, too, which is not checked before.

        Takes at most some milliseconds at a stretch (`serving/predict/pieces.py`). Raises NotJSON, InvalidRequest,
        UnsupportedBody, TooManyInstances, InvalidRows, InvalidSelection, ClientGone.
        """

    @abstractmethod
    async def write(self, model: LoadedModel, question: Question, turns: Turns) -> ProtocolAnswer:
        """Write the answer to a question of `read`; a long one in pieces."""


class ProtocolRoute(InferenceRoute):
    """The ASGI app of one protocol."""

    def __init__(self, service: Service, protocol: Protocol) -> None:
        super().__init__(service)
        self._protocol = protocol
        self._limits: Mapping[Verb, int] = {
            "predict": service.limits.max_instances,
            "explain": min(service.limits.max_instances, service.limits.max_explained_instances),
        }

    def match(self, path: str) -> dict[str, Any] | None:
        """The names in a path of predictions; None for any other path."""
        found = self._protocol.path.fullmatch(path)
        return None if found is None else found.groupdict()

    def _find(self, scope: Scope) -> tuple[LoadedModel, Verb]:
        model = self._protocol.find(self._registry, scope["path_params"])
        key_of(scope).check_model(model.name)
        return model, "predict"

    async def _answer(self, model: LoadedModel, _verb: Verb, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = dict(scope["headers"])
        check_encoding(headers)
        timeout = timeout_of(headers)
        body = await read_body(headers, receive, self._max_body_bytes)
        question = await self._protocol.read(model, Received(scope, headers, body, receive))
        scope["instances"] = len(question.rows)
        self._check(model, question)
        decoded = time.perf_counter()
        timing = Timing()
        sources = {}
        for verb in question.selections:
            sources[verb] = await self._run(model, verb, question, timing, timeout)
        reply = await self._protocol.write(model, question, Turns())
        ended = time.perf_counter()
        for verb, found in sources.items():
            answers = question.answers.get(verb, question.outputs)
            is_repeated = verb == "explain" and "predict" in sources
            self._count(model, verb, question.rows, answers, found, ended - started, is_repeated=is_repeated)
        answer_headers: Headers = [*reply.headers, *self._marks[model]]
        if self._show_timing:
            every = [source for found in sources.values() for source in found]
            timed = timing.header(started, decoded, ended)
            answer_headers += [(b"x-cache", source_of(every)), (b"server-timing", timed)]
        await respond(send, 200, reply.content_type, reply.body, answer_headers)
        if self._access_log:
            for verb, found in sources.items():
                note_answer(scope, model, verb, found, ended - started)

    def _check(self, model: LoadedModel, question: Question) -> None:
        """Raises TooManyInstances."""
        for verb, selection in question.selections.items():
            if len(question.rows) > self._limits[verb]:
                raise TooManyInstances(TOO_MANY.format(self._limits[verb]))
            check_size(model, verb, question.rows, selection)

    async def _run(
        self, model: LoadedModel, verb: Verb, question: Question, timing: Timing, timeout: float | None
    ) -> Sequence[str]:
        """Answer a question; the source of each row's answer. Raises what `Inference.answer` raises."""
        if question.as_outputs and verb == "predict":
            question.outputs, sources = await self._inference.outputs(
                model, question.rows, timing=timing, timeout=timeout, look_up=question.look_up
            )
            return sources
        answers = await self._inference.answer(
            model, verb, question.rows, timing=timing, timeout=timeout, selection=question.selections[verb]
        )
        question.answers[verb] = [value for value, _ in answers]
        return [source for _, source in answers]


def _marks(model: LoadedModel) -> Headers:
    """The headers that tell that a model may be wrong: a fallback, or one that another release has fitted."""
    marks: Headers = [(b"x-model-fallback", b"true")] if model.fallback else []
    return [*marks, (b"x-model-forced", b"true")] if model.manifest.forced else marks


def note_answer(scope: Scope, model: LoadedModel, verb: Verb, sources: Sequence[str], seconds: float) -> None:
    """Have the access log say what was answered."""
    source = source_of(sources).decode()
    cache = "HIT" if source.startswith("hit") else "MISS"
    done = f"{DONE[verb]} {model.name} completed in {seconds:.3f}s, Cache {cache}"
    note(scope, done, {"model": model.name, "version": model.version, "rows": len(sources), "source": source})


class ReplayedBody:
    """The body of a request that may be read twice."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._received: list[Message] = []

    async def receive(self) -> Message:
        """The next message from the client."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received.append(message)
        return message

    def again(self) -> Receive:
        """What receives the whole body once more, and then what the client does."""
        received = iter(self._received)

        async def receive() -> Message:
            for message in received:
                return message
            return await self._receive()

        return receive


class WatchedSend:
    """Sends an answer, and knows whether any of it is sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        self.has_begun = True
        await self._send(message)


def with_timeout(scope: Scope, seconds: float) -> Scope:
    """The scope of the same request with another deadline."""
    others = [(name, value) for name, value in scope["headers"] if name != b"x-request-timeout"]
    return {**scope, "headers": [*others, (b"x-request-timeout", b"%.6f" % max(seconds, SHORTEST_SECONDS))]}


def source_of(sources: Sequence[str]) -> bytes:
    """The source of the answers, or `mixed`."""
    first = sources[0]
    return first.encode() if sources.count(first) == len(sources) else b"mixed"


def check_size(model: LoadedModel, verb: Verb, rows: Rows, selection: Selection) -> None:
    """Raises TooManyInstances if the answer would be too long to be made whole."""
    if len(rows) <= FEW_ROWS and selection is EVERYTHING:
        return
    if len(rows) * answer_bytes(model, verb, selection) > MAX_ANSWER_BYTES:
        raise TooManyInstances(TOO_LONG)


def timeout_of(headers: HeaderMap) -> float | None:
    """The seconds of X-Request-Timeout; None without. Raises NotJSON."""
    given = headers.get(b"x-request-timeout")
    return None if given is None else parse_timeout(given)


def parse_timeout(given: bytes) -> float:
    """Parse X-Request-Timeout, in seconds. Raises NotJSON."""
    if not TIMEOUT.fullmatch(given) or not math.isfinite(seconds := float(given)) or seconds <= 0:
        raise NotJSON("X-Request-Timeout is a number of seconds")
    return seconds
