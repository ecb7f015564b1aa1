"""Measures predictions while jobs run beside them: `python -m bench.busy` prints a table.

One service, one runner, single new rows of a forest: at random moments, so many as make half of what the service can
answer, and over 8 connections as quickly as they are answered; alone, while a job predicts with a model of 5 ms a row,
and while one explains rows of the forest. These take turns, several times, so that what else the machine does falls on
all of them. The issue is that p99 beside jobs is no more than 1.5 times what it is alone, on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from time import perf_counter

import numpy as np
import uvloop

from bench.models import add_forest, add_slow
from bench.pace import Pace, quantile
from bench.table import Table
from bench.wrk import Shot
from harness.jobs import call, send, until
from harness.processes import hammer
from harness.service import Service

FOREST, SLOW = "forest", "slow"
CONNECTIONS = 8
JOBS = {"alone": None, "predict job": ("predict", SLOW, 20_000), "explain job": ("explain", FOREST, 4000)}
WARM_REQUESTS = 2000
MOST = 1.5


def shot(models: Path) -> Shot:
    """Rows of the forest whose first feature is another each time."""
    manifest = json.loads((models / FOREST / "1/manifest.json").read_text())
    values = list(manifest["example"].values())
    body = json.dumps({"instances": [["@@", *values[1:]]]}).replace('"@@"', "@@")
    return Shot(f"/v1/models/{FOREST}:predict", body, 0.0, 1.0)


@contextmanager
def job(service: Service, kind: str, turn: int) -> Iterator[None]:
    """The runner at work all the time: three jobs, cancelled in the end."""
    wanted = JOBS[kind]
    if wanted is None:
        yield
        return
    verb, model, rows = wanted
    width = len(service.get(f"/v1/models/{model}")["features"])
    table = np.zeros((rows, width))
    paths = []
    for number in range(3):
        table[:, 0] = np.arange(rows) * 1e-7 + (3 * turn + number) * 1e-3
        paths.append(send(service, verb, model, table.tolist()).headers["Location"])
    until(service, paths[0], state="running")
    try:
        yield
        if not any(service.get(path)["state"] == "running" for path in paths):
            sys.exit("the jobs were done before the measurement was; give them more rows")
    finally:
        for path in reversed(paths):
            call(service, "DELETE", path)
        for path in paths:
            until(service, path, state="cancelled")


async def closed(address: str, messages: Iterator[bytes], requests: int) -> list[float]:
    """Seconds of each answer over a few connections that never rest."""
    ready = list(islice(messages, requests))
    tally = await hammer(address, ready, requests=requests, connections=CONNECTIONS)
    if tally.failed:
        sys.exit(f"requests failed: {tally.statuses} {tally.failures}")
    return tally.seconds


async def paced(address: str, messages: Iterator[bytes], rate: float, seconds: float) -> list[float]:
    """Seconds of each answer at a pace that does not wait for the answers."""
    answered = await Pace(address).run(messages, rate, seconds)
    if any(one.status != 200 for one in answered):
        sys.exit("requests failed")
    return [one.seconds for one in answered]


def measure(service: Service, target: Shot, turns: int, seconds: float) -> dict[tuple[str, str], list[float]]:
    """Seconds of each answer, by load and by what ran beside it."""
    starts = count(0, 1_000_000)

    def fresh() -> Iterator[bytes]:
        return target.messages(service.address, next(starts) % 9_000_000)

    uvloop.run(closed(service.address, fresh(), WARM_REQUESTS))
    started = perf_counter()
    uvloop.run(closed(service.address, fresh(), WARM_REQUESTS))
    capacity = WARM_REQUESTS / (perf_counter() - started)
    print(f"{capacity:.0f} predictions/s over {CONNECTIONS} connections, alone")
    waited: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(turns):
        for kind in JOBS:
            with job(service, kind, turn):
                waited["at half of that", kind] += uvloop.run(paced(service.address, fresh(), capacity / 2, seconds))
                requests = int(capacity * seconds / 2)
                waited[f"over {CONNECTIONS} connections", kind] += uvloop.run(
                    closed(service.address, fresh(), requests)
                )
    return waited


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=5, help="of each load in each turn")
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        add_forest(models)
        add_slow(models)
        environ = {
            "MODEL_DIR": directory,
            "WEB_CONCURRENCY": str(options.workers),
            "MAX_REQUESTS": "0",
            "ACCESS_LOG": "false",
            "JOB_LEASE_SECONDS": "30",
        }
        with Service(environ) as service:
            waited = measure(service, shot(models), options.turns, options.seconds)
    table = Table("predictions", "beside", "answers", "p50 ms", "p99 ms", "p99 x")
    worst = 0.0
    for (load, kind), seconds in sorted(waited.items(), key=lambda item: item[0][0]):
        ratio = quantile(seconds, 0.99) / quantile(waited[load, "alone"], 0.99)
        worst = max(worst, ratio)
        shown = (f"{quantile(seconds, share):.2f}" for share in (0.5, 0.99))
        table.add(load, kind, len(seconds), *shown, f"{ratio:.2f}")
    print(table)
    sys.exit(0 if worst <= MOST else 1)


if __name__ == "__main__":
    main()
