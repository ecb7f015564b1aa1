"""An HTTP/1.1 client that counts every lost request: many keep-alive connections, no retries, few cycles."""

from __future__ import annotations

import asyncio
import json
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
    def failed(self) -> int:
        """Requests without an answer, or with another than 200."""
        return sum(self.failures.values()) + sum(count for status, count in self.statuses.items() if status != 200)

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


async def hammer(address: str, messages: list[bytes], *, requests: int, connections: int, pause: float = 0.0) -> Tally:
    """Send `requests` requests over `connections` keep-alive connections, each with `pause` seconds between two.

    A connection that the server has closed, or said to close, is opened anew; a request that was sent and not
    answered is lost and counted.
    """
    tally, todo, turns = Tally(), iter(range(requests)), cycle(messages)
    parts = urlsplit(address)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80

    await asyncio.gather(*(_client(host, port, turns, todo, tally, pause) for _ in range(connections)))
    return tally


async def _client(
    host: str, port: int, turns: Iterator[bytes], todo: Iterator[int], tally: Tally, pause: float
) -> None:
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    for _ in todo:
        started = perf_counter()
        try:
            if connection is None or not connection.usable:
                if connection is not None:
                    connection.transport.close()
                connection = None
                _, connection = await loop.create_connection(Connection, host, port)
                tally.connections += 1
            tally.statuses[await connection.request(next(turns))] += 1
            tally.seconds.append(perf_counter() - started)
        except (OSError, httptools.HttpParserError) as error:
            tally.failures[type(error).__name__] += 1
        if pause:
            await asyncio.sleep(pause)
    if connection is not None:
        connection.transport.close()
