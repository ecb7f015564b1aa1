"""Structured logs: one line an event, of our own code, gunicorn, uvicorn and warnings; as JSON, or for people."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Literal, TypeAlias

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

Event: TypeAlias = MutableMapping[str, Any]
Render: TypeAlias = Callable[[Event], bytes]
"""Writes an event as a line, without its end."""

Form: TypeAlias = Literal["auto", "json", "console"]

EVENT_WIDTH = 60
"""Characters of an event on a terminal; its details begin behind them."""

_encode = msgspec.json.Encoder(enc_hook=repr).encode


class Console:
    """Renders events for people: local time, level, event and details in columns, coloured unless NO_COLOR is set."""

    def __init__(self) -> None:
        colors = "NO_COLOR" not in os.environ
        self._render = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=EVENT_WIDTH, pad_level=True)

    def __call__(self, event: Event) -> bytes:
        """Text of others is escaped where a terminal would obey it, and begins no line. Empty details are left out."""
        shown = {name: _printable(value) for name, value in event.items() if value not in (None, "")}
        if "exception" in event:
            lines = str(event["exception"]).splitlines()
            shown["exception"] = "\n".join(f"  {_printable(line)}" for line in lines)
        moment = datetime.fromisoformat(event["timestamp"]).astimezone()
        shown["timestamp"] = f"{moment:%H:%M:%S}"
        return self._render(None, "", shown).encode()


def _printable(value: Any) -> Any:
    return ascii(value)[1:-1] if isinstance(value, str) and not value.isprintable() else value


def renderer(form: Form) -> Render:
    """JSON, or lines for people where standard output is a terminal and `form` is not `json`."""
    return Console() if form == "console" or (form == "auto" and sys.stdout.isatty()) else _encode


def of_request(event: Event) -> None:
    """Add the current request, its key and its trace to a line of the log."""
    request_id = CURRENT_REQUEST.get(None)
    if request_id is not None:
        event["request_id"] = request_id
        if key := CURRENT_KEY.get(""):
            event["key"] = key
    if trace := CURRENT_TRACE.get(""):
        event["trace_id"] = trace


def _add_request(_logger: Any, _method: str, event: Event) -> Event:
    of_request(event)
    return event


SHARED: list[Any] = [
    _add_request,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure(level: str, form: Form = "auto", watch: Callable[..., Any] | None = None) -> None:
    """Write our own events of at least this level to stdout; may be called again.

    `watch` is a structlog processor that sees all warnings and errors, whatever the level is.
    """
    least = LEVELS[level]
    render = renderer(form)
    watched = [watch, _only_from(least)] if watch else []
    structlog.configure(
        processors=[*watched, *SHARED, lambda _logger, _method, event: render(event)],
        wrapper_class=structlog.make_filtering_bound_logger(min(least, logging.WARNING) if watch else least),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )


def _only_from(least: int) -> Callable[..., Any]:
    def drop_less(_logger: Any, method: str, event: Event) -> Event:
        if LEVELS.get(method, logging.ERROR) < least:
            raise structlog.DropEvent
        return event

    return drop_less


def handler_of(form: Form) -> logging.Handler:
    """A handler that writes the events of other libraries as our own."""
    render = renderer(form)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*SHARED, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                lambda _logger, _method, event: render(event).decode(),
            ],
        )
    )
    return handler


class GunicornLogger(glogging.Logger):  # type: ignore[misc]
    """Gunicorn's log, and through it uvicorn's, as ours; requests are logged by the app, which knows more of them."""

    form: Form = "auto"

    def setup(self, cfg: Any) -> None:
        """Called at the start and at every reload."""
        protect_output()
        super().setup(cfg)
        logging.captureWarnings(capture=True)
        for logger in (self.error_log, logging.getLogger("py.warnings")):
            logger.handlers = [handler_of(self.form)]
        self.access_log.handlers = []
