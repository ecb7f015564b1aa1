"""Explanations over HTTP, ours beside the hand-written app that calls shap: `python -m bench.explained`.

Single rows of two forests of 100 trees, one of depth 12 and a small one, over 16 connections to two workers; then how
long predictions take on a single worker while it explains 500 rows, over and over. Every row is new. wrk must be on
PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import uvloop

from bench import wrk
from bench.models import add_forest
from bench.pace import Answered, Pace, quantile
from bench.peers.catalogue import PLAIN, PLAIN_SHAP, PLAIN_SHAP_ALONE
from bench.peers.starting import aim
from bench.predict import ours, row, shot
from bench.table import Table
from bench.wrk import Load, Shot
from harness.service import demo_models

FOREST = "forest"
ROWS = 500
RATE = 100


def fire(address: str, target: Shot, seconds: float) -> Load:
    """A second to warm up, then what counts."""
    wrk.run(address, target, connections=16, seconds=1)
    return wrk.run(address, target, connections=16, seconds=seconds, seed=1_000_000)


def compare_single(models: Path, seconds: float) -> Table:
    """One row a request."""
    table = Table("model", "who", "requests/s", "x", "p50 ms", "p99 ms", "p99 x", "lost")
    for name in (FOREST, "breast-cancer"):
        with PLAIN_SHAP.running(sys.executable, models, name) as address:
            plain = fire(address, PLAIN_SHAP.shot(models, name), seconds)
        row(table, name, PLAIN_SHAP.who, plain, None)
        target = aim(models, name, f"/v1/models/{name}:explain", lambda instance, _: {"instances": [instance]})
        with ours(models) as service:
            row(table, name, "forkserve", fire(service.address, target, seconds), plain)
    return table


def compare_meanwhile(models: Path, seconds: float) -> Table:
    """Predictions at their own pace, alone and while the same worker explains."""
    table = Table("who", "explained rows/s", "predictions/s", "p50 ms", "p99 ms", "max ms", "not 200")
    manifest = json.loads((models / FOREST / "1/manifest.json").read_text())

    def batches(key: str, path: str, address: str) -> Iterator[urllib.request.Request]:
        values = list(manifest["example"].values())
        for turn in count(1):
            rows = [[values[0] + (turn * ROWS + index) * 1e-7, *values[1:]] for index in range(ROWS)]
            body = json.dumps({key: rows}).encode()
            yield urllib.request.Request(address + path, body, {"Content-Type": "application/json"})

    def measure(who: str, address: str, target: Shot, requests: Iterator[urllib.request.Request] | None) -> None:
        answered, explained = uvloop.run(predict_meanwhile(address, target, requests, seconds))
        waited = [one.seconds for one in answered]
        table.add(
            who,
            f"{explained * ROWS / seconds:.0f}",
            f"{len(answered) / seconds:.0f}",
            *(f"{quantile(waited, share):.1f}" for share in (0.5, 0.99, 1)),
            sum(one.status != 200 for one in answered),
        )

    with PLAIN_SHAP_ALONE.running(sys.executable, models, FOREST) as address:
        plain = PLAIN.shot(models, FOREST)
        measure("plain FastAPI, shap, alone", address, plain, None)
        measure("plain FastAPI, shap, meanwhile", address, plain, batches("rows", "/explain-many", address))
    with ours(models, WEB_CONCURRENCY="1") as service:
        path = f"/v1/models/{FOREST}:explain"
        measure("forkserve, alone", service.address, shot(models, FOREST), None)
        measure(
            "forkserve, meanwhile", service.address, shot(models, FOREST), batches("instances", path, service.address)
        )
    return table


async def predict_meanwhile(
    address: str, target: Shot, requests: Iterator[urllib.request.Request] | None, seconds: float
) -> tuple[list[Answered], int]:
    """Predictions, and how many batches were explained in the meantime."""
    explained = 0

    async def explain(requests: Iterator[urllib.request.Request]) -> None:
        nonlocal explained
        for request in requests:
            await asyncio.to_thread(ask, request)
            explained += 1

    task = asyncio.create_task(explain(requests)) if requests is not None else None
    answered = await Pace(address).run(target.messages(address), RATE, seconds)
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return answered, explained


def ask(request: urllib.request.Request) -> Any:
    """Send it and read the whole answer."""
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=6, help="of each load")
    options = arguments.parse_args()
    with demo_models() as models:
        add_forest(models)
        for table in (compare_single(models, options.seconds), compare_meanwhile(models, options.seconds)):
            print(table, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
