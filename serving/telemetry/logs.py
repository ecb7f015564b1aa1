"""Structured logs: one line of JSON an event, from our own code and from gunicorn, uvicorn and warnings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

import msgspec
import structlog
from gunicorn import glogging

from serving.telemetry.output import protect_output

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

CURRENT_REQUEST: ContextVar[str] = ContextVar("request_id")
"""The id of the request that a task answers. Binding structlog's own context takes ten times as long."""

CURRENT_KEY: ContextVar[str] = ContextVar("key")
"""The name of the key that this request was sent with; empty for none."""

CURRENT_TRACE: ContextVar[str] = ContextVar("trace_id")
"""The trace that a request or an attempt at a job belongs to, if traces are sent."""

encode = msgspec.json.Encoder(enc_hook=repr).encode
"""A line of the log as JSON."""


def of_request(event: MutableMapping[str, Any]) -> None:
    """Add the current request, its key and its trace to a line of the log."""
    request_id = CURRENT_REQUEST.get(None)
    if request_id is not None:
        event["request_id"] = request_id
        if key := CURRENT_KEY.get(""):
            event["key"] = key
    if trace := CURRENT_TRACE.get(""):
        event["trace_id"] = trace


def _add_request(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    of_request(event)
    return event


SHARED: list[Any] = [
    _add_request,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure(level: str, watch: Callable[..., Any] | None = None) -> None:
    """Write our own events of at least this level to stdout; may be called again.

    `watch` is a structlog processor that sees all warnings and errors, whatever the level is.
    """
    least = LEVELS[level]
    watched = [watch, _only_from(least)] if watch else []
    structlog.configure(
        processors=[*watched, *SHARED, lambda _logger, _method, event: encode(event)],
        wrapper_class=structlog.make_filtering_bound_logger(min(least, logging.WARNING) if watch else least),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )


def _only_from(least: int) -> Callable[..., Any]:
    def drop_less(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if LEVELS.get(method, logging.ERROR) < least:
            raise structlog.DropEvent
        return event

    return drop_less


def json_handler() -> logging.Handler:
    """A handler that writes the events of other libraries in the service's form."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*SHARED, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                lambda _logger, _method, event: encode(event).decode(),
            ],
        )
    )
    return handler


class GunicornLogger(glogging.Logger):  # type: ignore[misc]
    """Gunicorn's log, and through it uvicorn's, as JSON; requests are logged by the app, which knows more of them."""

    def setup(self, cfg: Any) -> None:
        """Called at the start and at every reload."""
        protect_output()
        super().setup(cfg)
        logging.captureWarnings(capture=True)
        for logger in (self.error_log, logging.getLogger("py.warnings")):
            logger.handlers = [json_handler()]
        self.access_log.handlers = []
