"""A client that sends requests when they are due, whether or not the earlier ones are answered."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from time import perf_counter
from urllib.parse import urlsplit

from serving.cli.client import Connection


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: seconds since the start when it was due, seconds until it was answered, status; 0 is no answer."""

    due: float
    seconds: float
    status: int


def quantile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(seconds)
    return ordered[int(share * (len(ordered) - 1))] * 1e3 if ordered else float("nan")


class Pace:
    """Sends each request on a connection that is free then, or on a new one."""

    def __init__(self, address: str, make_connection: Callable[[], Connection] = Connection) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._make_connection = make_connection
        self._free: list[Connection] = []
        self._answered: list[Answered] = []

    async def run(self, messages: Iterator[bytes], rate: float, seconds: float) -> list[Answered]:
        """`rate` requests a second for so many seconds, at random moments as from people who know nothing of each
        other (a Poisson process); then until the last is answered.
        """
        gc.disable()  # a collection stops this client for 45 ms, which the service would be blamed for
        started, tasks = perf_counter(), set()
        random = Random(0)
        due = 0.0
        while (due := due + random.expovariate(rate)) < seconds:
            if (wait := started + due - perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._send(next(messages), started, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for connection in self._free:
            connection.transport.close()
        return self._answered

    async def _send(self, message: bytes, started: float, due: float) -> None:
        try:
            connection = await self._connection()
            status = await connection.request(message)
        except OSError:
            status = 0
        else:
            if connection.usable:
                self._free.append(connection)
        self._answered.append(Answered(due, perf_counter() - started - due, status))

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(self._make_connection, self._host, self._port)
        return connection
