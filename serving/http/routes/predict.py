"""`POST /v1/models/{model}[/versions/{version}]:predict` and `:explain`, a small ASGI app: this is the hot path."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus

import msgspec
from starlette.types import Receive, Scope, Send

from cache.flight import Answer
from registry.errors import InvalidRows, InvalidSelection
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.rows.features import Rows
from serving.errors import DeadlineExceeded, InvalidRequest, NotJSON, TooManyInstances
from serving.http.body import Headers, read_body, turns_of_client
from serving.http.columnar import ColumnarBodies
from serving.http.edge import account_of, respond
from serving.http.keys import key_of
from serving.http.negotiation import preferred
from serving.http.problems import PROBLEM_WITH_ERROR
from serving.http.protocols.route import InferenceRoute, check_size, note_answer, source_of, timeout_of
from serving.http.protocols.tables import TableReader
from serving.http.protocols.tensorflow import decode_inputs, encode_outputs, is_tensorflow
from serving.http.routes.jobs import job_view
from serving.http.sse import CONTENT_TYPE as EVENTS
from serving.http.sse import Frames, Streams, frame
from serving.jobs.job import Job
from serving.pictures.chart import SVG
from serving.pictures.explanation import MAX_BARS, MAX_OUTPUTS, MAX_TOP, waterfall
from serving.predict.inference import Timing
from serving.predict.operation import ANSWERS, EVERYTHING, Verb, count_outputs, encode_answer, marks
from serving.predict.pieces import PIECE_BYTES, Turns
from serving.predict.request_body import Parameters, Reader, read_parameters
from serving.service import Service
from serving.shared.metrics import ModelCounters

PATH = re.compile(r"/v1/models/(?P<model>[^/]*)(?:/versions/(?P<version>[^/]*))?:(?P<verb>predict|explain)")
"""Names are only looked up in the registry, so any text is allowed here."""

JSON = b"application/json"
OFFERS: Mapping[Verb, tuple[bytes, ...]] = {"predict": (JSON, EVENTS), "explain": (JSON, EVENTS, SVG)}
"""The media types of answers, the default first; columnar ones come after them."""

Encode = Callable[[LoadedModel, Mapping[Verb, Sequence[bytes]]], bytes]
"""Writes the answers to rows as one body."""


class PredictRoute(InferenceRoute):
    """The ASGI app of our own protocol; its caller puts the groups of PATH into `path_params`."""

    def __init__(self, service: Service, streams: Streams) -> None:
        super().__init__(service)
        self._streams = streams
        limits: Mapping[Verb, int] = {
            "predict": service.limits.max_instances,
            "explain": min(service.limits.max_instances, service.limits.max_explained_instances),
        }
        self.readers: Mapping[Verb, Mapping[LoadedModel, Reader]] = {
            verb: {model: Reader(model, limit) for model in service.registry} for verb, limit in limits.items()
        }
        most = limits["predict"]
        self._tables = {model: TableReader(model, reader, most) for model, reader in self.readers["predict"].items()}
        self._background = service.background
        self._columnar = ColumnarBodies(service.tables, limits)
        self._offers = {verb: (*offers, *self._columnar.offers) for verb, offers in OFFERS.items()}

    def _find(self, scope: Scope) -> tuple[LoadedModel, Verb]:
        path = scope["path_params"]
        return self._registry.get(path["model"], path["version"]), path["verb"]

    async def _answer(self, model: LoadedModel, verb: Verb, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = dict(scope["headers"])
        is_plain = headers.get(b"content-type") == JSON and b"content-encoding" not in headers
        columnar = None if is_plain else self._columnar.media_type(headers)
        timeout = timeout_of(headers)
        body = await read_body(headers, receive, self._max_body_bytes)
        rows, parameters, encode = await self._read(model, verb, body, scope, receive, columnar)
        scope["instances"] = len(rows)
        selection = parameters.selection(verb, model)
        if self._background is not None and verb == "explain" and is_for_jobs(model, selection):
            owner = key_of(scope).name, account_of(scope)
            job = await self._background.submit(model, verb, rows, selection, *owner)
            await _accept(send, job, self._figures[verb][model], HTTPStatus.ACCEPTED)
            return
        accepted = preferred(headers.get(b"accept"), self._offers[verb])
        if accepted == EVENTS:
            parts = self._inference.answer_by_parts(model, verb, rows, timeout=timeout, selection=selection)
            await self._streams.send(self._frames(scope, model, verb, rows, parts), scope, receive, send)
            return
        if accepted == SVG:
            _check_picture(model, rows, selection)
        check_size(model, verb, rows, selection)
        decoded = time.perf_counter()
        timing = Timing()
        try:
            answers = await self._inference.answer(
                model, verb, rows, timing=timing, timeout=timeout, selection=selection
            )
        except DeadlineExceeded as late:
            if self._background is None or scope.get("is_canary"):
                raise
            owner = key_of(scope).name, account_of(scope)
            job = await self._background.take_over(late, model, verb, rows, selection, *owner)
            await _accept(send, job, self._figures[verb][model], HTTPStatus.GATEWAY_TIMEOUT)
            return
        sources = [source for _, source in answers]
        values = [value for value, _ in answers]
        if accepted in self._columnar.offers:
            content = await self._columnar.write(model, verb, accepted, selection, values)
        else:
            is_picture = accepted == SVG
            content = _draw(model, rows, values[0], selection) if is_picture else encode(model, {verb: values})
        ended = time.perf_counter()
        self._count(model, verb, rows, values, sources, ended - started)
        answer_headers: Headers = [*self._marks[model]]
        if self._show_timing:
            timed = timing.header(started, decoded, ended)
            answer_headers += [(b"x-cache", source_of(sources)), (b"server-timing", timed)]
        await respond(send, 200, accepted, content, answer_headers)
        if self._access_log:
            note_answer(scope, model, verb, sources, ended - started)

    async def _read(
        self, model: LoadedModel, verb: Verb, body: bytes, scope: Scope, receive: Receive, columnar: bytes | None
    ) -> tuple[Rows, Parameters, Encode]:
        """Rows, parameters, and what writes the answer: to our own clients, or to those of TensorFlow Serving."""
        if columnar is not None:
            return *await self._columnar.read(model, verb, columnar, body, scope), encode_answer
        reader = self.readers[verb][model]
        try:
            if len(body) <= PIECE_BYTES:
                return *reader.read(body), encode_answer
            with turns_of_client(receive) as turns:
                return *await reader.read_large(body, turns), encode_answer
        except (NotJSON, InvalidRequest, InvalidRows, TooManyInstances):
            if verb == "explain" or not is_tensorflow(body):
                raise
            scope["state"]["form"] = PROBLEM_WITH_ERROR
            with turns_of_client(receive) as turns:
                found = await self._read_inputs(model, body, turns)
            if found is None:
                raise
            return *found, encode_outputs

    async def _read_inputs(self, model: LoadedModel, body: bytes, turns: Turns) -> tuple[Rows, Parameters] | None:
        """The rows of a body of TensorFlow Serving; None if it is none."""
        sent = await decode_inputs(body, turns)
        if sent is None:
            return None
        parameters = read_parameters(sent.parameters)
        return await self._tables[model].read(sent.inputs, "inputs", turns), parameters

    async def _frames(
        self, scope: Scope, model: LoadedModel, verb: Verb, rows: Rows, parts: AsyncGenerator[list[Answer], None]
    ) -> Frames:
        """One event for each instance, with its place in the request as id; the events of a part are sent together."""
        started, kind, position = time.perf_counter(), ANSWERS[verb].removesuffix("s"), 0
        made: list[Answer] = []
        async with aclosing(parts):
            async for answers in parts:
                yield b"".join([frame(kind, value, position + index) for index, (value, _) in enumerate(answers)])
                position += len(answers)
                made += answers
        done = {"model": model.name, "version": model.version, "instances": position}
        yield frame("done", msgspec.json.encode(done | marks(model)))
        seconds = time.perf_counter() - started
        values, sources = zip(*made, strict=True)
        self._count(model, verb, rows, values, sources, seconds)
        if self._access_log:
            note_answer(scope, model, verb, sources, seconds)


def _check_picture(model: LoadedModel, rows: Rows, selection: Selection) -> None:
    """Raises InvalidRequest, InvalidSelection, NotExplained where an explanation is too much for one picture."""
    model.explainer_for(selection)
    if len(rows) != 1:
        raise InvalidRequest(f"{SVG.decode()} shows one instance; send one")
    if (selection.top or 1) > MAX_TOP:
        raise InvalidSelection(f"{SVG.decode()} shows at most {MAX_TOP} features: `top` must not be more")
    if count_outputs(model, selection) > MAX_OUTPUTS:
        raise InvalidSelection(f"{SVG.decode()} shows at most {MAX_OUTPUTS} outputs; name fewer classes")


def _draw(model: LoadedModel, rows: Rows, answer: bytes, selection: Selection) -> bytes:
    """The picture of an explanation that is ready JSON."""
    explanation, instance = msgspec.json.decode(answer), model.schema.instance(rows[0])
    title = f"{model.name} {model.version}"
    return waterfall(explanation, instance, title, most=selection.top or MAX_BARS).encode()


def is_for_jobs(model: LoadedModel, selection: Selection = EVERYTHING) -> bool:
    """Return whether one explanation takes longer than a request may. Raises NotExplained, InvalidSelection."""
    return model.explainer_for(selection).jobs_only


async def _accept(send: Send, job: Job, figures: ModelCounters, counted: HTTPStatus) -> None:
    """Answer 202 with the job whose result will be the answer; it is counted as another refusal."""
    location = (b"location", f"/v1/jobs/{job.id}".encode())
    await respond(send, 202, b"application/json", msgspec.json.encode(job_view(job)), [location])
    figures.refused(counted)
