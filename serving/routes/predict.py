"""`POST /v1/models/{model}[/versions/{version}]:predict`, as a small ASGI app of its own: this is the hot path."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from cache.flight import Answer
from registry.features import DEEPEST, depth
from registry.model import LoadedModel
from registry.registry import Registry
from serving.asgi import App, Headers, Receive, Scope, Send, check_json, header, read_body, respond
from serving.errors import InvalidRequest, MethodNotAllowed, NotJSON, TooManyInstances
from serving.predictor import Predictor, Timing

log = structlog.get_logger(__name__)

PATH = re.compile(r"/v1/models/(?P<model>[^/]*)(?:/versions/(?P<version>[^/]*))?:predict")
"""Names are keys of the registry and nothing else, so any text will do: what is no key is not found."""
USAGE = 'send an object: {"instances": [...]}'
TIMEOUT = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request may say besides its instances. Explanations obey it; predictions show every class anyway."""

    classes: str | list[str] = "predicted"
    top: int | None = None


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a prediction request."""

    instances: list[Any]
    parameters: Parameters = Parameters()


_decode = msgspec.json.Decoder(Body).decode


class PredictRoute:
    """Answers predictions itself and hands every other path on to the rest of the app."""

    def __init__(
        self,
        app: App,
        *,
        registry: Registry,
        predictor: Predictor,
        max_body_bytes: int,
        max_instances: int,
        log_predictions: bool,
    ) -> None:
        self._app = app
        self._registry = registry
        self._predictor = predictor
        self._max_body_bytes = max_body_bytes
        self._max_instances = max_instances
        self._log_predictions = log_predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowed("POST")
        await self._predict(self._registry.get(path["model"], path["version"]), scope, receive, send)

    async def _predict(self, model: LoadedModel, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        check_json(scope)
        timeout = _requested_timeout(scope)
        instances = self._decoded(await read_body(scope, receive, self._max_body_bytes))
        rows = model.schema.rows(instances)
        decoded = time.perf_counter()
        timing = Timing()
        answers = await self._predictor.predict(model, rows, timing, timeout)
        source = _source(answers)
        body = _body(model, answers)
        ended = time.perf_counter()
        headers: Headers = [(b"x-cache", source), (b"server-timing", timing.header(started, decoded, ended))]
        if model.fallback:
            headers.append((b"x-model-fallback", b"true"))
        await respond(send, 200, b"application/json", body, headers)
        if self._log_predictions:
            self._log(model, len(rows), source.decode(), ended - started)

    def _log(self, model: LoadedModel, rows: int, source: str, seconds: float) -> None:
        found = "HIT" if source.startswith("hit") else "MISS"
        log.info(f"Cache {found}", model=model.name, source=source)
        log.info(f"Prediction {model.name} completed in {seconds:.3f}s", version=model.version, rows=rows)

    def _decoded(self, body: bytes) -> list[Any]:
        try:
            instances = _decode(body).instances
        except RecursionError:
            raise NotJSON("the body is nested too deep") from None
        except UnicodeDecodeError:
            raise NotJSON("the body is not UTF-8") from None
        except msgspec.ValidationError as error:
            raise _misfit(body, error) from None
        except msgspec.DecodeError as error:
            raise NotJSON(f"the body is not JSON: {str(error)[:200]}") from None
        if len(instances) > self._max_instances:
            raise TooManyInstances(f"a request may have {self._max_instances} instances; send more as several requests")
        return instances


def _misfit(body: bytes, error: msgspec.ValidationError) -> NotJSON | InvalidRequest:
    """What to say of JSON that is no prediction request; numbers that no machine number holds are no JSON for us."""
    reason = str(error)
    if len(reason) > 160 or not reason.isprintable():
        reason = USAGE  # it quotes the name of an unknown field, which is the client's own text
    if "out of range" in reason:
        return NotJSON(reason)
    try:
        value = msgspec.json.decode(body)
    except (RecursionError, ValueError):
        return NotJSON(reason)
    if not isinstance(value, dict) or depth(value) > DEEPEST:
        return NotJSON(USAGE)
    return InvalidRequest(reason)


def _source(answers: Sequence[Answer]) -> bytes:
    """Where the answers are from, if all are from the same place."""
    first = answers[0][1]
    return first.encode() if all(source == first for _, source in answers) else b"mixed"


def _body(model: LoadedModel, answers: Sequence[Answer]) -> bytes:
    """The answer to the request, put together from ready pieces; names and versions need no escaping."""
    predictions = b",".join([value for value, _ in answers])
    end = b'],"fallback":true}' if model.fallback else b"]}"
    head = f'{{"model":"{model.name}","version":"{model.version}","predictions":['
    return head.encode() + predictions + end


def _requested_timeout(scope: Scope) -> float | None:
    given = header(scope, b"x-request-timeout")
    if given is None:
        return None
    if not TIMEOUT.fullmatch(given) or not math.isfinite(seconds := float(given)) or seconds <= 0:
        raise NotJSON("X-Request-Timeout is a number of seconds")
    return seconds
