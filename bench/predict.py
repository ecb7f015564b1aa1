"""Predictions a second, ours beside the app that users write by hand: `python -m bench.predict`.

Two workers each, 64 keep-alive connections, one row a request, every row new, on the same machine in one run. wrk must
be on PATH. `--models` chooses. What the cache gives is measured by `bench.cached`.
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

from bench import wrk
from bench.models import add_histogram
from bench.service import ROOT, Service, demo_models
from bench.table import Table
from bench.wrk import Load, Shot

MODELS = ("breast-cancer", "mortgage", "histogram", "wine", "diabetes")
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    arguments.add_argument("--seconds", type=float, default=5)
    options = arguments.parse_args()
    table = Table("model", "who", "requests/s", "x", "p50 ms", "p99 ms", "p99 x", "lost")
    with demo_models() as models:
        add_histogram(models)
        compare(table, models, options.models, options.seconds)
        print(table)


if __name__ == "__main__":
    main()
