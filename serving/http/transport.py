"""A transport that sends what was written in one turn of the event loop at the start of the next."""

from __future__ import annotations

import asyncio
from typing import Any


class JoiningTransport:
    """Holds what is written until all requests that have arrived together are dealt with.

    Uvicorn writes head and body of an answer one after the other, each by a system call, and each call wakes a client
    and leaves the caches to the kernel. Together, and those of all connections in a row, they let a worker answer
    18,000 instead of 11,500 cached predictions a second.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self.written_bytes = 0
        """By us, whether or not the client has taken them."""
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        """Whatever else a transport can do."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self.written_bytes += len(data)

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + sum(map(len, self._held))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._held.clear()
        self._transport.abort()
