"""Predictions a second, ours beside the app that users write by hand: `python -m bench.predict`.

Ours twice: with the settings as they come, and without the access log and the recycling that the others lack. Two
workers each, 64 keep-alive connections, one row a request, every row new, on the same machine in one run. wrk must be
on PATH. `--models` chooses. What the cache gives is measured by `bench.cached`.

`--litserve`, `--bentoml` and `--mlserver` name an interpreter each that has that server installed, and measure it, too;
`bench/peers/catalogue.py` says how to make one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from bench import wrk
from bench.models import add_histogram
from bench.peers.catalogue import BY_OPTION, PLAIN
from bench.peers.starting import Peer, aim
from bench.table import Table
from bench.wrk import Load, Shot
from harness.service import Service, demo_models

MODELS = ("breast-cancer", "mortgage", "histogram", "wine", "diabetes")
CONNECTIONS = 64


def shot(models: Path, name: str) -> Shot:
    """The model's example with one number that is new in every request."""
    return aim(models, name, f"/v1/models/{name}:predict", lambda instance, _manifest: {"instances": [instance]})


QUIET = {"MAX_REQUESTS": "0", "ACCESS_LOG": "false"}
"""What the peers do without."""

KINDS: Mapping[str, Mapping[str, str]] = {"forkserve": {}, "forkserve, log and recycling off": QUIET}


def ours(models: Path, **environ: str) -> Service:
    """Our service with two workers, quiet like the other."""
    return Service({"MODEL_DIR": str(models)} | QUIET | environ)


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
        for who, environ in KINDS.items():
            with Service({"MODEL_DIR": str(models), **environ}) as service:
                row(table, name, who, fire(service.address, shot(models, name), seconds), first)


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
        add_histogram(models)
        compare(table, models, options.models, options.seconds, peers)
        print(table)


if __name__ == "__main__":
    main()
