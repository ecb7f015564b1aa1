"""The bytes of answers that clients have not read yet, bounded by client and in all.

Context: an answer of megabytes waits in memory until its client has read it; a client that reads nothing from a hundred
connections costs gigabytes before the time for reading is over. Decision: what does not fit into a connection's socket
is counted, over all workers; a connection is aborted that exceeds what its client, or what all, may have unread.
Consequence: who reads at once is never counted, because only what is left after the first attempt to send is.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from serving.shared.holdings import Holdings

MAX_CLIENT_BYTES = 64 * 1024 * 1024
"""Bytes that one client, at all workers, may have left unread: four of the largest answers."""

MAX_BYTES = 2 * MAX_CLIENT_BYTES
"""Bytes that all clients may have left unread."""

log = structlog.get_logger(__name__)


class Abortable(Protocol):
    """The part of a connection that is needed to end it."""

    transport: asyncio.Transport


class UnsentBytes:
    """What the connections of one worker hold of answers; all workers count in `held`."""

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self._connections: dict[Abortable, tuple[bytes, int]] = {}

    def hold(self, connection: Abortable, client: bytes, size: int) -> None:
        """Note how many bytes a connection holds now for a client, and end it, or others, if that is too much."""
        self.release(connection)
        self._held.add(client, size)
        self._connections[connection] = client, size
        if self._held.of(client) > MAX_CLIENT_BYTES:
            self._abort(connection)
        while self._held.total() > MAX_BYTES and self._connections:
            self._abort(max(self._connections, key=self._held_by_client))

    def release(self, connection: Abortable) -> None:
        """Forget a connection that is closed, or has sent nearly all."""
        client, size = self._connections.pop(connection, (b"", 0))
        if size:
            self._held.add(client, -size)

    def _held_by_client(self, connection: Abortable) -> tuple[int, int]:
        """What the client of a connection holds, and the connection itself."""
        client, size = self._connections[connection]
        return self._held.of(client), size

    def _abort(self, connection: Abortable) -> None:
        log.warning("Connection closed: its client reads too little", unsent_bytes=self._connections[connection][1])
        self.release(connection)
        connection.transport.abort()
