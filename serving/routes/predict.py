"""`POST /v1/models/{model}[/versions/{version}]:predict`, as a small ASGI app of its own: this is the hot path."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

import structlog

from cache.flight import Answer
from registry.model import LoadedModel
from registry.registry import Registry
from serving.asgi import HeaderMap, Headers, Receive, Scope, Send, check_json, read_body, respond
from serving.errors import MethodNotAllowed, NotJSON
from serving.predictor import Predictor, Timing
from serving.reading import Reader

log = structlog.get_logger(__name__)

PATH = re.compile(r"/v1/models/(?P<model>[^/]*)(?:/versions/(?P<version>[^/]*))?:predict")
"""Names are keys of the registry and nothing else, so any text will do: what is no key is not found."""
TIMEOUT = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


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
