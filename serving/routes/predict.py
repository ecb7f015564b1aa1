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
from registry.decoding import InstanceDecoder
from registry.features import Rows
from registry.model import LoadedModel
from registry.registry import Registry
from registry.schema import DEEPEST, depth
from serving.asgi import HeaderMap, Headers, Receive, Scope, Send, check_json, read_body, respond
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
    """The body of a prediction request, before anything is known of its instances."""

    instances: list[Any]
    parameters: Parameters = Parameters()


_decode_any = msgspec.json.Decoder(Body).decode


class Reader:
    """Reads the rows of one model out of bodies."""

    def __init__(self, model: LoadedModel, max_instances: int) -> None:
        self._schema = model.schema
        self._max_instances = max_instances
        self._instances: InstanceDecoder | None = None
        if not InstanceDecoder.fits(model.manifest.features):
            return
        self._instances = InstanceDecoder(model.manifest.features)
        instances = list[self._instances.type]  # type: ignore[name-defined]
        body = msgspec.defstruct(
            "ModelBody",
            [("instances", instances), ("parameters", Parameters, Parameters())],
            forbid_unknown_fields=True,
        )
        self._decode = msgspec.json.Decoder(body).decode

    def rows(self, body: bytes) -> Rows:
        """Rows of shape (instances, features). Raises NotJSON, InvalidRequest, TooManyInstances, InvalidRows."""
        if self._instances is None:
            return self._rows_looked_at(body)
        try:
            instances: list[Any] = self._decode(body).instances  # type: ignore[attr-defined]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._rows_looked_at(body)
        if len(instances) > self._max_instances:
            return self._rows_looked_at(body)
        rows = self._instances.rows(instances)
        return self._rows_looked_at(body) if rows is None else rows

    def _rows_looked_at(self, body: bytes) -> Rows:
        """The slow way, which knows what to say of whatever is wrong."""
        try:
            instances = _decode_any(body).instances
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
        return self._schema.rows(instances)


class PredictRoute:
    """The ASGI app of predictions; whoever calls it has matched PATH and left its groups in `path_params`."""

    def __init__(
        self,
        *,
        registry: Registry,
        predictor: Predictor,
        max_body_bytes: int,
        max_instances: int,
        log_predictions: bool,
    ) -> None:
        self._registry = registry
        self._predictor = predictor
        self._max_body_bytes = max_body_bytes
        self._readers = {model: Reader(model, max_instances) for model in registry}
        self._log_predictions = log_predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path_params"]
        if scope["method"] != "POST":
            raise MethodNotAllowed("POST")
        await self._predict(self._registry.get(path["model"], path["version"]), scope, receive, send)

    async def _predict(self, model: LoadedModel, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = dict(scope["headers"])
        check_json(headers)
        timeout = _requested_timeout(headers)
        rows = self._readers[model].rows(await read_body(headers, receive, self._max_body_bytes))
        decoded = time.perf_counter()
        timing = Timing()
        answers = await self._predictor.predict(model, rows, timing, timeout)
        source = _source(answers)
        body = _body(model, answers)
        ended = time.perf_counter()
        answer_headers: Headers = [(b"x-cache", source), (b"server-timing", timing.header(started, decoded, ended))]
        if model.fallback:
            answer_headers.append((b"x-model-fallback", b"true"))
        await respond(send, 200, b"application/json", body, answer_headers)
        if self._log_predictions:
            self._log(model, len(rows), source.decode(), ended - started)

    def _log(self, model: LoadedModel, rows: int, source: str, seconds: float) -> None:
        found = "HIT" if source.startswith("hit") else "MISS"
        log.info(f"Cache {found}", model=model.name, source=source)
        log.info(f"Prediction {model.name} completed in {seconds:.3f}s", version=model.version, rows=rows)


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


def _requested_timeout(headers: HeaderMap) -> float | None:
    given = headers.get(b"x-request-timeout")
    if given is None:
        return None
    if not TIMEOUT.fullmatch(given) or not math.isfinite(seconds := float(given)) or seconds <= 0:
        raise NotJSON("X-Request-Timeout is a number of seconds")
    return seconds
