"""`POST /v1/models/{model}[/versions/{version}]:predict` and `:explain`, a small ASGI app: this is the hot path."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from cache.flight import Answer
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.rows.features import Rows
from serving.errors import DeadlineExceeded, MethodNotAllowed, NotJSON, TooManyInstances
from serving.http.body import ClientGone, Headers, check_json, read_body, turns_of_client
from serving.http.edge import respond, unanswered_status
from serving.http.keys import key_of
from serving.http.negotiation import preferred
from serving.http.problems import status_of
from serving.http.routes.jobs import job_view
from serving.http.sse import CONTENT_TYPE as EVENTS
from serving.http.sse import Frames, Streams, frame
from serving.jobs.job import Job
from serving.predict.inference import Timing
from serving.predict.operation import ANSWERS, EVERYTHING, VERBS, Verb, answer_bytes, encode_answer, marks
from serving.predict.pieces import PIECE_BYTES
from serving.predict.request_body import Parameters, Reader
from serving.service import Service
from serving.shared.metrics import ModelCounters

log = structlog.get_logger(__name__)

PATH = re.compile(r"/v1/models/(?P<model>[^/]*)(?:/versions/(?P<version>[^/]*))?:(?P<verb>predict|explain)")
"""Names are only looked up in the registry, so any text is allowed here."""
OPTIONS: Headers = [(b"allow", b"OPTIONS, POST")]
"""The whole answer to OPTIONS."""
TIMEOUT = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Bytes of an answer that is made whole; it takes four times as much memory until it is sent."""

FEW_ROWS = 16
"""Rows that make no large answer unless parameters ask for one."""

TOO_LONG = (
    f"the answer would have more than {MAX_ANSWER_BYTES >> 20} MB; send fewer instances, name fewer classes or a "
    "smaller `top`, accept text/event-stream, or submit a job"
)

DONE: Mapping[Verb, str] = {"predict": "Prediction", "explain": "Explanation"}


class InferenceRoute:
    """The ASGI app of predictions and explanations; its caller puts the groups of PATH into `path_params`."""

    def __init__(self, service: Service, streams: Streams) -> None:
        registry = service.registry
        self._registry = registry
        self._inference = service.inference
        self._streams = streams
        self._max_body_bytes = service.limits.max_body_bytes
        limits: Mapping[Verb, int] = {
            "predict": service.limits.max_instances,
            "explain": min(service.limits.max_instances, service.limits.max_explained_instances),
        }
        self._readers: Mapping[Verb, Mapping[LoadedModel, Reader]] = {
            verb: {model: Reader(model, limit) for model in registry} for verb, limit in limits.items()
        }
        self._figures: Mapping[Verb, Mapping[LoadedModel, ModelCounters]] = {
            verb: {model: service.metrics.model(model.name, verb) for model in registry} for verb in VERBS
        }
        self._access_log = service.access_log
        self._show_timing = service.show_timing
        self._background = service.background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path_params"]
        if scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": OPTIONS})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] != "POST":
            raise MethodNotAllowed("POST")
        model, verb = self._registry.get(path["model"], path["version"]), path["verb"]
        try:
            await self._answer(model, verb, scope, receive, send)
        except Exception as error:
            self._figures[verb][model].refused(
                unanswered_status(scope) if isinstance(error, ClientGone) else status_of(error)
            )
            raise

    async def _answer(self, model: LoadedModel, verb: Verb, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = dict(scope["headers"])
        check_json(headers)
        given = headers.get(b"x-request-timeout")
        timeout = None if given is None else parse_timeout(given)
        body = await read_body(headers, receive, self._max_body_bytes)
        reader = self._readers[verb][model]
        rows, parameters = reader.read(body) if len(body) <= PIECE_BYTES else await _read_large(reader, body, receive)
        scope["instances"] = len(rows)
        selection = parameters.selection(verb, model)
        if self._background is not None and verb == "explain" and is_for_jobs(model, selection):
            await _accept(send, await self._background.submit(model, verb, rows, selection, key_of(scope).name))
            self._figures[verb][model].refused(HTTPStatus.ACCEPTED)
            return
        if preferred(headers.get(b"accept"), (b"application/json", EVENTS)) == EVENTS:
            parts = self._inference.answer_by_parts(model, verb, rows, timeout=timeout, selection=selection)
            await self._streams.send(self._frames(model, verb, parts), scope, receive, send)
            return
        _check_size(model, verb, rows, selection)
        decoded = time.perf_counter()
        timing = Timing()
        try:
            answers = await self._inference.answer(
                model, verb, rows, timing=timing, timeout=timeout, selection=selection
            )
        except DeadlineExceeded as late:
            if self._background is None:
                raise
            await _accept(
                send, await self._background.take_over(late, model, verb, rows, selection, key_of(scope).name)
            )
            self._figures[verb][model].refused(HTTPStatus.GATEWAY_TIMEOUT)
            return
        sources = [source for _, source in answers]
        source = _source(sources)
        content = encode_answer(model, {verb: [value for value, _ in answers]})
        ended = time.perf_counter()
        self._figures[verb][model].answered(ended - started, sources)
        answer_headers: Headers = []
        if self._show_timing:
            answer_headers += [(b"x-cache", source), (b"server-timing", timing.header(started, decoded, ended))]
        if model.fallback:
            answer_headers.append((b"x-model-fallback", b"true"))
        if model.manifest.forced:
            answer_headers.append((b"x-model-forced", b"true"))
        await respond(send, 200, b"application/json", content, answer_headers)
        if self._access_log:
            self._log(model, verb, len(rows), source.decode(), ended - started)

    async def _frames(self, model: LoadedModel, verb: Verb, parts: AsyncGenerator[list[Answer], None]) -> Frames:
        """One event for each instance, with its place in the request as id; the events of a part are sent together."""
        started, kind, position = time.perf_counter(), ANSWERS[verb].removesuffix("s"), 0
        sources: list[str] = []
        async with aclosing(parts):
            async for answers in parts:
                yield b"".join([frame(kind, value, position + index) for index, (value, _) in enumerate(answers)])
                position += len(answers)
                sources += [source for _, source in answers]
        done = {"model": model.name, "version": model.version, "instances": position}
        yield frame("done", msgspec.json.encode(done | marks(model)))
        seconds = time.perf_counter() - started
        self._figures[verb][model].answered(seconds, sources)
        if self._access_log:
            self._log_done(model, verb, position, seconds)

    def _log(self, model: LoadedModel, verb: Verb, rows: int, source: str, seconds: float) -> None:
        found = "HIT" if source.startswith("hit") else "MISS"
        log.info(f"Cache {found}", model=model.name, source=source)
        self._log_done(model, verb, rows, seconds)

    def _log_done(self, model: LoadedModel, verb: Verb, rows: int, seconds: float) -> None:
        log.info(f"{DONE[verb]} {model.name} completed in {seconds:.3f}s", version=model.version, rows=rows)


async def _read_large(reader: Reader, body: bytes, receive: Receive) -> tuple[Rows, Parameters]:
    with turns_of_client(receive) as turns:
        return await reader.read_large(body, turns)


def _check_size(model: LoadedModel, verb: Verb, rows: Rows, selection: Selection) -> None:
    """Raises TooManyInstances if the answer would be too long to be made whole."""
    if len(rows) <= FEW_ROWS and selection is EVERYTHING:
        return
    if len(rows) * answer_bytes(model, verb, selection) > MAX_ANSWER_BYTES:
        raise TooManyInstances(TOO_LONG)


def is_for_jobs(model: LoadedModel, selection: Selection = EVERYTHING) -> bool:
    """Return whether one explanation takes longer than a request may. Raises NotExplained, InvalidSelection."""
    return model.explainer_for(selection).jobs_only


async def _accept(send: Send, job: Job) -> None:
    """Answer 202 with the job whose result will be the answer."""
    location = (b"location", f"/v1/jobs/{job.id}".encode())
    await respond(send, 202, b"application/json", msgspec.json.encode(job_view(job)), [location])


def _source(sources: Sequence[str]) -> bytes:
    """The source of the answers, or `mixed`."""
    first = sources[0]
    return first.encode() if sources.count(first) == len(sources) else b"mixed"


def parse_timeout(given: bytes) -> float:
    """Parse X-Request-Timeout, in seconds. Raises NotJSON."""
    if not TIMEOUT.fullmatch(given) or not math.isfinite(seconds := float(given)) or seconds <= 0:
        raise NotJSON("X-Request-Timeout is a number of seconds")
    return seconds
