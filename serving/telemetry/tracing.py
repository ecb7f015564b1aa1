"""OpenTelemetry spans of requests and jobs, sent to a collector if one is configured.

Built before the fork, so that its libraries are shared; the thread that sends begins in each worker, and drops spans
that it cannot send: no request waits for a collector. This module needs the extra `otel`, and is imported only if there
is an endpoint.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry.logs import CURRENT_TRACE

FLUSH_SECONDS = 2.0
"""A worker that ends waits so long for its last spans to be sent."""

POLL_SECONDS = 0.02

CONTEXT_HEADERS = (b"traceparent", b"tracestate")
COPIED_HEADERS = (b"x-cache", b"x-request-id")
JOB_LOCATION = b"/v1/jobs/"
"""The Location of a job begins so: the span of the request that made it names the job, as the spans of its work do."""


class Tracing:
    """The spans of one worker or runner."""

    def __init__(self, endpoint: str, service: str) -> None:
        self._endpoint = endpoint.rstrip("/") + "/v1/traces"
        self._service = service
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    def start(self) -> None:
        """In the worker, since it starts a thread; OpenTelemetry's own variables configure the sampler and the rest."""
        resource = Resource.create({"service.name": self._service})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=self._endpoint)))
        self._tracer = self._provider.get_tracer("forkserve")

    async def stop(self) -> None:
        """Send the remaining spans, for at most FLUSH_SECONDS."""
        if self._provider is None:
            return
        # a daemon: not even the interpreter waits for a collector that hangs
        sender = threading.Thread(target=self._provider.shutdown, daemon=True)
        sender.start()
        deadline = time.monotonic() + FLUSH_SECONDS
        while sender.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread sets no asyncio event
            await asyncio.sleep(POLL_SECONDS)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The app with a span around every request, named by its route."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            span = self._begin(scope)
            if span is None:
                await app(scope, receive, send)
                return

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note_response(span, message)
                await send(message)

            named = CURRENT_TRACE.set(_trace_id(span))
            try:
                await app(scope, receive, watch)
            finally:
                CURRENT_TRACE.reset(named)
                _note_request(span, scope)
                span.end()

        return traced

    @contextmanager
    def work(self, name: str, attributes: Mapping[str, str | int]) -> Iterator[None]:
        """A span of its own around work that no request waits for."""
        assert self._tracer is not None
        span = self._tracer.start_span(name, None, SpanKind.CONSUMER, attributes)
        named = CURRENT_TRACE.set(_trace_id(span) if span.is_recording() else "")
        try:
            yield
        finally:
            CURRENT_TRACE.reset(named)
            span.end()

    def _begin(self, scope: Scope) -> Span | None:
        """A span for the request; None if it is not recorded."""
        if scope["type"] != "http" or self._tracer is None:
            return None
        carrier = {
            name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in CONTEXT_HEADERS
        }
        context = TraceContextTextMapPropagator().extract(carrier) if carrier else None
        attributes = {"http.request.method": scope["method"], "url.scheme": scope.get("scheme", "http")}
        span = self._tracer.start_span(scope["method"], context, SpanKind.SERVER, attributes)
        return span if span.is_recording() else None


def _trace_id(span: Span) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def _note_response(span: Span, message: Message) -> None:
    span.set_attribute("http.response.status_code", int(message["status"]))
    if message["status"] >= 500:
        span.set_status(StatusCode.ERROR)
    for name, value in message.get("headers", ()):
        if name in COPIED_HEADERS:
            span.set_attribute(f"forkserve.{name.decode()[2:].replace('-', '_')}", value.decode("latin-1"))
        elif name == b"location" and value.startswith(JOB_LOCATION):
            span.set_attribute("forkserve.job", value.removeprefix(JOB_LOCATION).decode("latin-1"))


def _note_request(span: Span, scope: Scope) -> None:
    """Name the span by its route, never by its path; the model only if there is one of that name."""
    route, instances = _route(scope), scope.get("instances")
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    key = scope.get("state", {}).get("key")
    if key is not None and key.name:
        span.set_attribute("forkserve.key", key.name)
    if instances is not None:
        span.set_attribute("forkserve.model", scope["path_params"]["model"])
        span.set_attribute("forkserve.instances", instances)


def _route(scope: Scope) -> str | None:
    found: Any = scope.get("route")
    parameters = scope.get("path_params") or {}
    if found is not None or "verb" not in parameters:
        return found and str(found.path)
    version = "/versions/{version}" if parameters["version"] is not None else ""
    return f"/v1/models/{{model}}{version}:{parameters['verb']}"
