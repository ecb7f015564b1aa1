"""Predictions a second, ours beside the app that users write by hand: `python -m bench.predict`.

Two workers each, 64 keep-alive connections, one row a request, every row new, on the same machine in one run. Then our
cache: the same rows again, from memory and from Redis, and batches of 1,000 rows of which 900 are known. wrk must be on
PATH. `--models` chooses; `--estimator` serves a model by its estimator, uncompiled.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import wrk
from bench.service import ROOT, Service, demo_models
from bench.table import Table
from bench.wrk import Load, Shot

MODELS = ("breast-cancer", "wine", "diabetes", "mortgage")
CONNECTIONS = 64
PLAIN = (
    "-m",
    "uvicorn",
    "bench.peers.plain_fastapi:app",
    "--workers",
    "2",
    "--no-access-log",
    "--log-level",
    "warning",
)


def shot(models: Path, name: str, *, plain: bool) -> Shot:
    """The model's example with one number that is new in every request."""
    manifest = json.loads((models / name / "1" / "manifest.json").read_text())
    feature = next(feature for feature in manifest["features"] if feature["kind"] == "number")
    instance = manifest["example"] | {feature["name"]: "@@"}
    body = json.dumps(instance if plain else {"instances": [instance]}).replace('"@@"', "@@")
    path = "/predict" if plain else f"/v1/models/{name}:predict"
    return Shot(path, body, *feature["seen"])


@contextmanager
def plain_app(models: Path, name: str) -> Iterator[str]:
    """The hand-written app on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = os.environ | {
        "MODEL": name,
        "MODEL_DIR": str(models),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, *PLAIN, "--port", str(port)], cwd=ROOT, env=environ)
    try:
        wait_for(f"http://127.0.0.1:{port}/openapi.json")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, seconds: float = 60) -> None:
    """Until it answers, and its second worker has had the time to start as well."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            time.sleep(3)
            return


def ours(models: Path, **environ: str) -> Service:
    """Our service with two workers, quiet like the other."""
    return Service({"MODEL_DIR": str(models), "MAX_REQUESTS": "0", "ACCESS_LOG": "false"} | environ)


def fire(address: str, target: Shot, seconds: float) -> Load:
    """A second to warm up, then what counts; rows of the two do not meet."""
    wrk.run(address, target, connections=CONNECTIONS, seconds=1)
    return wrk.run(address, target, connections=CONNECTIONS, seconds=seconds, seed=1_000_000)


def row(table: Table, model: str, who: str, load: Load, against: Load | None) -> None:
    """One line, with the ratio to the line it is compared with."""
    ratio = "" if against is None else f"{load.rate / against.rate:.1f}"
    p99 = "" if against is None else f"1/{against.p99 / load.p99:.0f}"
    lost = load.refused + load.lost
    table.add(model, who, f"{load.rate:.0f}", ratio, f"{load.p50 * 1e3:.1f}", f"{load.p99 * 1e3:.1f}", p99, lost)


def compare(table: Table, models: Path, names: list[str], seconds: float) -> None:
    """Every model: the hand-written app, ours by the estimator, ours compiled."""
    for name in names:
        with plain_app(models, name) as address:
            plain = fire(address, shot(models, name, plain=True), seconds)
        row(table, name, "plain FastAPI", plain, None)
        with ours(models) as service:
            row(table, name, "forkserve", fire(service.address, shot(models, name, plain=False), seconds), plain)


def compare_cache(table: Table, models: Path, seconds: float) -> None:
    """A forest: by its estimator, compiled, and the same rows again from memory; x is against the compiled miss."""
    target = shot(models, "breast-cancer", plain=False)
    known = Shot(target.path, target.body, target.low, target.high, unique=500)
    with ours(models) as service:
        miss = fire(service.address, target, seconds)
        hit = fire(service.address, known, seconds)
    with ours(models, COMPILE="false") as service:
        estimator = fire(service.address, target, seconds)
        single = wrk.run(service.address, target, connections=1, seconds=seconds, seed=9_000_000)
        single_hit = wrk.run(service.address, known, connections=1, seconds=seconds)
    row(table, "breast-cancer", "compiled, miss", miss, None)
    row(table, "breast-cancer", "memory hit", hit, miss)
    row(table, "breast-cancer", "estimator, miss", estimator, miss)
    row(table, "breast-cancer", "estimator, miss, 1 connection", single, None)
    row(table, "breast-cancer", "memory hit, 1 connection", single_hit, single)


def batch_seconds(service: Service, rows: list[dict[str, Any]]) -> float:
    """How long a request of many rows takes."""
    body = json.dumps({"instances": rows}).encode()
    request = urllib.request.Request(
        f"{service.address}/v1/models/breast-cancer:predict", body, {"Content-Type": "application/json"}
    )
    started = time.perf_counter()
    urllib.request.urlopen(request, timeout=60).close()
    return time.perf_counter() - started


def compare_batches(models: Path) -> Table:
    """1,000 rows by the estimator, none and nine in ten of them known; the median of nine requests each."""
    table = Table("1,000 rows, estimator", "ms", "x")
    example = json.loads((models / "breast-cancer/1/manifest.json").read_text())["example"]

    def rows(start: int) -> list[dict[str, Any]]:
        return [example | {"mean radius": 10 + (start + index) * 1e-6} for index in range(1000)]

    with ours(models, COMPILE="false", WEB_CONCURRENCY="1") as service:
        known = rows(0)
        batch_seconds(service, known)
        cold = sorted(batch_seconds(service, rows(10_000 * (turn + 1))) for turn in range(9))[4]
        mixed = [known[100:] + rows(1_000_000 + 1000 * turn)[:100] for turn in range(9)]
        warm = sorted(batch_seconds(service, batch) for batch in mixed)[4]
    table.add("all new", f"{cold * 1e3:.1f}", "")
    table.add("90 % known", f"{warm * 1e3:.1f}", f"{cold / warm:.1f}")
    return table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    arguments.add_argument("--seconds", type=float, default=5)
    options = arguments.parse_args()
    table = Table("model", "who", "requests/s", "x", "p50 ms", "p99 ms", "p99 x", "lost")
    with demo_models() as models:
        compare(table, models, options.models, options.seconds)
        compare_cache(table, models, options.seconds)
        print(table)
        print()
        print(compare_batches(models))


if __name__ == "__main__":
    main()
