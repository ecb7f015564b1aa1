"""OpenTelemetry spans of requests, for when there is a collector.

Built before the fork, so that its libraries are shared; the thread that sends begins in each worker. What cannot be
sent is dropped by that thread: no request waits for a collector. Without an endpoint no exporter is imported.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

FLUSH_SECONDS = 2.0
"""A worker that ends waits so long for its last spans to be sent."""

POLL_SECONDS = 0.02

CONTEXT = (b"traceparent", b"tracestate")


class Tracing:
    """The spans of one worker."""

    def __init__(self, endpoint: str, service: str) -> None:
        """Raises ImportError without the extra `otel`."""
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401 - so that workers need not

        self._endpoint = endpoint.rstrip("/") + "/v1/traces"
        self._service = service
        self._provider: TracerProvider | None = None
        self.tracer: Tracer | None = None

    def start(self) -> None:
        """In the worker: it starts a thread. The sampler and all else is taken from OpenTelemetry's own variables."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": self._service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=self._endpoint)))
        self.tracer = self._provider.get_tracer("forkserve")

    async def stop(self) -> None:
        """Send what is left, for a moment."""
        if self._provider is None:
            return
        # a daemon: not even the interpreter waits for a collector that hangs
        sender = threading.Thread(target=self._provider.shutdown, daemon=True)
        sender.start()
        deadline = time.monotonic() + FLUSH_SECONDS
        while sender.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread has no event of the loop's
            await asyncio.sleep(POLL_SECONDS)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The app with a span around every request."""
        return TracedApp(self, app)


class TracedApp:
    """One span for each request: what was asked for by its route, not by its path, and what came of it."""

    def __init__(self, tracing: Tracing, app: ASGIApp) -> None:
        self._tracing = tracing
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tracer = self._tracing.tracer
        if scope["type"] != "http" or tracer is None:
            await self._app(scope, receive, send)
            return
        span = _begin(tracer, scope)
        if not span.is_recording():
            await self._app(scope, receive, send)
            return

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                _note_answer(span, message)
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            _note_request(span, scope)
            span.end()


def _begin(tracer: Tracer, scope: Scope) -> Span:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in CONTEXT}
    context = TraceContextTextMapPropagator().extract(carrier) if carrier else None
    attributes = {"http.request.method": scope["method"], "url.scheme": scope.get("scheme", "http")}
    return tracer.start_span(scope["method"], context, SpanKind.SERVER, attributes)


def _note_answer(span: Span, message: Message) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("http.response.status_code", int(message["status"]))
    if message["status"] >= 500:
        span.set_status(StatusCode.ERROR)
    for name, value in message.get("headers", ()):
        if name in (b"x-cache", b"x-request-id"):
            span.set_attribute(f"forkserve.{name.decode()[2:].replace('-', '_')}", value.decode("latin-1"))


def _note_request(span: Span, scope: Scope) -> None:
    """By the route, which is one of ours; the model only when there is one of that name."""
    route, instances = _route(scope), scope.get("instances")
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    if instances is not None:
        span.set_attribute("forkserve.model", scope["path_params"]["model"])
        span.set_attribute("forkserve.instances", instances)


def _route(scope: Scope) -> str | None:
    found: Any = scope.get("route")
    if found is not None:
        path: str = found.path
        return path
    parameters = scope.get("path_params") or {}
    if "verb" not in parameters:
        return None
    version = "/versions/{version}" if parameters["version"] is not None else ""
    return f"/v1/models/{{model}}{version}:{parameters['verb']}"
