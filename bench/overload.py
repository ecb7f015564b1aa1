"""More requests than a model can answer: `python -m bench.overload`.

A model of 5 ms a row that no batch makes cheaper, one worker with one inference thread: the second core is left to the
loop and to this client. First its capacity; then requests come at random moments, whether or not the earlier ones are
answered, at 0.8, 2, 5 and 10 times that. What counts: the answers a second, how long they took from the moment the
request was due, and how quickly the others were refused.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import uvloop

from bench.models import add_slow
from bench.pace import Pace, quantile
from bench.table import Table
from harness.processes import hammer
from harness.service import Service
from serving.cli.client import post


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
        add_slow(Path(directory))
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
            tally = uvloop.run(hammer(service.address, ready, requests=1000, connections=4))
            peak = tally.statuses[200] / (perf_counter() - started)
            for load in (*options.loads, 0.8):
                answered = uvloop.run(Pace(service.address).run(messages, load * peak, options.seconds))
                seconds = {status: [one.seconds for one in answered if one.status == status] for status in (200, 503)}
                rate = len(seconds[200]) / options.seconds
                table.add(
                    f"{load:g}x",
                    f"{load * peak:.0f}",
                    f"{rate:.0f}",
                    f"{rate / peak:.0%}",
                    f"{quantile(seconds[200], 0.99):.1f}",
                    len(seconds[503]),
                    f"{quantile(seconds[503], 0.99):.1f}",
                    sum(one.status not in (0, 200, 503) for one in answered),
                    sum(one.status == 0 for one in answered),
                )
    print(f"peak: {peak:.0f} answers/s with 4 connections, p99 {tally.quantile(0.99) * 1e3:.1f} ms")
    print(table)


if __name__ == "__main__":
    main()
