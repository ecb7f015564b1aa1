"""Measures the cost of counting the requests of 300,000 clients: `python -m bench.clients`.

The table of a box, the same through a Redis on this machine, and a dictionary, which is what grows for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import time

from bench.table import Table
from harness.servers import redis_server
from serving.http.rate_limit import Limiter
from serving.process.kernel import read_rss
from serving.shared.rate_table import Rate, RateTable, RateVerdict

RATE = Rate(600, 60.0, 600)


class Dictionary(RateTable):
    """The control: the time until which each client has paid, for ever."""

    def __init__(self, rate: Rate) -> None:
        super().__init__(rate, buckets=1)
        self._paid: dict[str, float] = {}

    def count(self, client: bytes, rate: Rate | None = None) -> RateVerdict:
        now, key = time.monotonic(), client.hex()
        paid = max(self._paid.get(key, now), now) + (rate or self.rate).interval
        self._paid[key] = paid
        return RateVerdict(allowed=True, debt=paid - now)


async def count(limiter: Limiter, clients: int) -> float:
    """Microseconds of CPU a request, two requests a client."""
    started = time.process_time()
    for _ in range(2):
        for client in range(clients):
            await limiter.take(struct.pack("!I", client))
    cost = (time.process_time() - started) / (2 * clients) * 1e6
    await limiter.close()
    return cost


def measure(limiter: Limiter, clients: int) -> tuple[str, str]:
    """Cost of a request, and what the process has grown by."""
    before = read_rss(os.getpid())
    cost = asyncio.run(count(limiter, clients))
    return f"{cost:.2f}", f"{(read_rss(os.getpid()) - before) / 2**20:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=300_000)
    clients = parser.parse_args().clients
    table = Table("counted in", "clients", "us CPU a request", "MB")
    table.add("shared table", clients, *measure(Limiter(RateTable(RATE)), clients))
    table.add("dictionary", clients, *measure(Limiter(Dictionary(RATE)), clients))
    with redis_server() as server:
        few = clients // 100
        table.add("Redis", few, *measure(Limiter(RateTable(RATE), server.url, patience=5.0), few))
    print(table)


if __name__ == "__main__":
    main()
