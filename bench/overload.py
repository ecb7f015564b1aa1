"""More requests than a model can answer: `python -m bench.overload`.

A model of 5 ms a row that no batch makes cheaper, one worker with one inference thread: the second core is left to the
loop and to this client. First its capacity; then requests come at their own pace,
whether or not the earlier ones are answered, at 0.8, 2, 5 and 10 times that. What counts: the answers a second, how
long they took from the moment the request was due, and how quickly the others were refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import uvloop

from bench.client import Connection, hammer, post
from bench.service import Service
from bench.slow import add_slow_model
from bench.table import Table


@dataclass
class Outcome:
    """Seconds from due to answered, by status; and how many found no answer."""

    seconds: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    lost: int = 0

    def quantile(self, status: int, share: float) -> float:
        """In milliseconds."""
        ordered = sorted(self.seconds[status])
        return ordered[int(share * (len(ordered) - 1))] * 1e3 if ordered else float("nan")


class Pace:
    """Sends requests when they are due, each on a connection that is free then, or on a new one."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._free: list[Connection] = []
        self._outcome = Outcome()

    async def run(self, messages: Iterator[bytes], rate: float, seconds: float) -> Outcome:
        """`rate` requests a second for so many seconds, and then until the last is answered."""
        started, tasks = perf_counter(), set()
        for index in range(int(rate * seconds)):
            due = started + index / rate
            if (wait := due - perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._send(next(messages), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for connection in self._free:
            connection.transport.close()
        return self._outcome

    async def _send(self, message: bytes, due: float) -> None:
        try:
            connection = await self._connection()
            status = await connection.request(message)
        except OSError:
            self._outcome.lost += 1
            return
        self._outcome.seconds[status].append(perf_counter() - due)
        if connection.usable:
            self._free.append(connection)

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection


def unique_messages(url: str) -> Iterator[bytes]:
    """A new row in every request."""
    index = 0
    while True:
        index += 1
        yield post(url, json.dumps({"instances": [[index * 1e-7]]}).encode())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--loads", type=float, nargs="+", default=[0.8, 2, 5, 10])
    arguments.add_argument("--seconds", type=float, default=8, help="of each load")
    arguments.add_argument("--queue-seconds", type=float, default=0.02, help="QUEUE_SECONDS of the service")
    options = arguments.parse_args()
    table = Table("load", "offered/s", "answered/s", "of peak", "p99 ms", "refused", "refusal p99 ms", "other", "lost")
    with tempfile.TemporaryDirectory() as directory:
        add_slow_model(Path(directory))
        environ = {
            "MODEL_DIR": directory,
            "WEB_CONCURRENCY": "1",
            "INFERENCE_THREADS": "1",
            "QUEUE_SECONDS": str(options.queue_seconds),
            "MAX_REQUESTS": "0",
            "ACCESS_LOG": "false",
        }
        with Service(environ) as service:
            messages = unique_messages(f"{service.address}/v1/models/slow:predict")
            ready = [next(messages) for _ in range(2000)]
            started = perf_counter()
            tally = uvloop.run(hammer(service.address, ready, requests=1000, connections=8))
            peak = tally.statuses[200] / (perf_counter() - started)
            for load in (*options.loads, 0.8):
                outcome = uvloop.run(Pace(service.address).run(messages, load * peak, options.seconds))
                served, refused = len(outcome.seconds[200]), len(outcome.seconds[503])
                other = sum(map(len, outcome.seconds.values())) - served - refused
                rate = served / options.seconds
                table.add(
                    f"{load:g}x",
                    f"{load * peak:.0f}",
                    f"{rate:.0f}",
                    f"{rate / peak:.0%}",
                    f"{outcome.quantile(200, 0.99):.1f}",
                    refused,
                    f"{outcome.quantile(503, 0.99):.1f}",
                    other,
                    outcome.lost,
                )
    print(f"peak: {peak:.0f} answers/s with 8 connections, p99 {tally.quantile(0.99) * 1e3:.1f} ms")
    print(table)


if __name__ == "__main__":
    main()
