"""An HTTP/1.1 client that counts every lost request: many keep-alive connections, no retries, few cycles."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass
class Tally:
    """What became of the requests: statuses and failures by kind, seconds of each that was answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    connections: int = 0

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return sum(self.failures.values())

    @property
    def failed(self) -> int:
        """Requests without an answer, or with another than 200."""
        return self.lost + sum(count for status, count in self.statuses.items() if status != 200)

    @property
    def answered(self) -> int:
        """Requests with an answer, whatever it says."""
        return sum(self.statuses.values())

    def quantile(self, share: float) -> float:
        """Seconds within which that share of the answers came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: asyncio.Future[int] | None = None
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def request(self, message: bytes) -> asyncio.Future[int]:
        """Send; the future gives the status."""
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return self._answer

    def data_received(self, data: bytes) -> None:
        if self._parser is not None:
            self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        assert self._answer is not None
        self.usable = self.usable and self._parser.should_keep_alive()
        if not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))


def post(url: str, body: bytes) -> bytes:
    """A POST of JSON as it goes over the wire."""
    parts = urlsplit(url)
    return (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def unique_bodies(example: dict[str, object], feature: str, low: float, high: float, count: int) -> list[bytes]:
    """Bodies of one instance each that differ in one feature, so that no cache can know them."""
    step = (high - low) / count
    return [json.dumps({"instances": [example | {feature: low + step * i}]}).encode() for i in range(count)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect to."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, address: str) -> Place:
        """`http://host:port` or `https://host`."""
        parts = urlsplit(address)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return cls(parts.hostname or "127.0.0.1", parts.port or (443 if tls else 80), tls)

    async def connect(self) -> Connection:
        """A new connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self.host, self.port, ssl=self.tls)
        return connection


async def hammer(address: str, messages: list[bytes], *, requests: int, connections: int, pause: float = 0.0) -> Tally:
    """Send `requests` requests over `connections` keep-alive connections, each with `pause` seconds between two."""
    tally = Tally()
    await send(Place.of(address), cycle(messages), iter(range(requests)), tally, connections=connections, pause=pause)
    return tally


async def send(
    place: Place, messages: Iterator[bytes], todo: Iterator[int], tally: Tally, *, connections: int, pause: float = 0.0
) -> None:
    """Send the next message for each that is still to do, and count into `tally` what becomes of it.

    A connection that the server has closed, or said to close, is opened anew; a request that was sent and not
    answered is lost and counted.
    """
    await asyncio.gather(*(_client(place, messages, todo, tally, pause) for _ in range(connections)))


async def _client(place: Place, messages: Iterator[bytes], todo: Iterator[int], tally: Tally, pause: float) -> None:
    connection: Connection | None = None
    for _ in todo:
        started = perf_counter()
        try:
            if connection is None or not connection.usable:
                if connection is not None:
                    connection.transport.close()
                connection = None
                connection = await place.connect()
                tally.connections += 1
            tally.statuses[await connection.request(next(messages))] += 1
            tally.seconds.append(perf_counter() - started)
        except (OSError, httptools.HttpParserError) as error:
            tally.failures[type(error).__name__] += 1
        except asyncio.CancelledError:
            tally.failures["no answer in time"] += 1
            raise
        if pause:
            await asyncio.sleep(pause)
    if connection is not None:
        connection.transport.close()
