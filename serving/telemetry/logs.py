"""Structured logs: one line of JSON an event, for our own lines and for those of gunicorn, uvicorn and warnings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

import msgspec
import structlog
from gunicorn import glogging

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def _to_json(event: Any, **_options: Any) -> bytes:
    return _encode(event)


def _to_json_text(event: Any, **_options: Any) -> str:
    return _encode(event).decode()


CURRENT_REQUEST: ContextVar[str] = ContextVar("request_id")
"""Of the request that this task answers. One variable of ours: structlog's own take ten times as long to bind."""


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = CURRENT_REQUEST.get(None)
    if request_id is not None:
        event["request_id"] = request_id
    return event


SHARED: list[Any] = [
    _add_request_id,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure(level: str, watch: Callable[..., Any] | None = None) -> None:
    """Send our own log lines to stdout; the same again changes nothing.

    `watch` is a processor that sees them first, and warnings whatever the level is.
    """
    least = LEVELS[level]
    watched = [watch, _only_from(least)] if watch else []
    structlog.configure(
        processors=[*watched, *SHARED, structlog.processors.JSONRenderer(serializer=_to_json)],
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
    """A handler that writes the lines of other libraries in the same form."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*SHARED, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_to_json_text),
            ],
        )
    )
    return handler


class GunicornLogger(glogging.Logger):  # type: ignore[misc]
    """Gunicorn's own log (and through it uvicorn's) as JSON; requests are logged by the app, with more to tell."""

    def setup(self, cfg: Any) -> None:
        """Called at the start and at every reload."""
        super().setup(cfg)
        logging.captureWarnings(capture=True)
        for logger in (self.error_log, logging.getLogger("py.warnings")):
            logger.handlers = [json_handler()]
        self.access_log.handlers = []
