"""HTTP/1.1 as uvicorn speaks it, with limits on how slowly and how much a client may send or read."""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving import problems

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers; the parser itself has no limit."""


class LimitedProtocol(HttpToolsProtocol):
    """Uvicorn times only idle connections; a server calls `sweep` now and then to end those that crawl."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading_since: float | None = None
        self._in_head = True
        self._head_bytes = 0
        self._unsent_bytes = 0
        self._stalled_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reading_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
        else:
            self._head_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._reading_since is None:
            self._reading_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading_since = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, msg)

    def sweep(self, now: float, limit: float) -> None:
        """End the connection if a request has been arriving, or an answer been standing still, for `limit` seconds."""
        if self.transport.is_closing():
            self._sweep_unsent(now, limit)
        elif self._reading_since is not None and now - self._reading_since > limit:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")
        else:
            self._sweep_unsent(now, limit)

    def _sweep_unsent(self, now: float, limit: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent_bytes:
            self._unsent_bytes, self._stalled_since = unsent, now
        elif now - self._stalled_since > limit:
            self.transport.abort()

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer for the app, which has not seen the request or still waits for its body, and close."""
        cycle = self.cycle
        waiting = cycle is not None and not cycle.response_complete
        if not (waiting and cycle.response_started):
            body = problems.body(status, detail, secrets.token_hex(12))
            head = b"content-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % (problems.CONTENT_TYPE, len(body)) + body)
        self.transport.close()
        if waiting:
            # the app's receive() answers "disconnected", and what it sends goes nowhere
            cycle.disconnected = True
            cycle.message_event.set()
