"""Predictions a second, ours beside the app that users write by hand: `python -m bench.predict`.

Two workers each, 64 keep-alive connections, one row a request, every row new, on the same machine in one run. Then our
cache: the same rows again, from memory and from Redis, and batches of 1,000 rows of which 900 are known. wrk must be on
PATH. `--models` chooses; `--estimator` serves a model by its estimator, uncompiled.

`--litserve`, `--bentoml` and `--mlserver` name an interpreter each that has that server installed, and measure it, too;
`bench/peers/catalogue.py` says how to make one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench import wrk
from bench.peers.catalogue import BY_OPTION, PLAIN
from bench.peers.starting import Peer, aim
from bench.service import Service, demo_models
from bench.table import Table
from bench.wrk import Load, Shot

MODELS = ("breast-cancer", "wine", "diabetes", "mortgage")
CONNECTIONS = 64


def shot(models: Path, name: str) -> Shot:
    """The model's example with one number that is new in every request."""
    return aim(models, name, f"/v1/models/{name}:predict", lambda instance, _manifest: {"instances": [instance]})


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


def compare(table: Table, models: Path, names: list[str], seconds: float, peers: list[tuple[Peer, str]]) -> None:
    """Every model: the peers, each from its interpreter, and ours compiled; x is against the first, the plain app."""
    for name in names:
        first = None
        for peer, python in peers:
            with peer.running(python, models, name) as address:
                load = fire(address, peer.shot(models, name), seconds)
            row(table, name, peer.who, load, first)
            first = first or load
        with ours(models) as service:
            row(table, name, "forkserve", fire(service.address, shot(models, name), seconds), first)


def compare_cache(table: Table, models: Path, seconds: float) -> None:
    """A forest: by its estimator, compiled, and the same rows again from memory; x is against the compiled miss."""
    target = shot(models, "breast-cancer")
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
    for option in BY_OPTION:
        arguments.add_argument(f"--{option}", metavar="PYTHON", help=f"an interpreter that has {option}; measures it")
    options = arguments.parse_args()
    named = ((peer, getattr(options, option)) for option, peers in BY_OPTION.items() for peer in peers)
    peers = [(PLAIN, sys.executable), *((peer, python) for peer, python in named if python)]
    table = Table("model", "who", "requests/s", "x", "p50 ms", "p99 ms", "p99 x", "lost")
    with demo_models() as models:
        compare(table, models, options.models, options.seconds, peers)
        compare_cache(table, models, options.seconds)
        print(table)
        print()
        print(compare_batches(models))


if __name__ == "__main__":
    main()
