"""Protocols beside each other, over the same forest: `python -m bench.protocols`.

Requests of one row over 64 keep-alive connections to two workers, and of 1,000 rows over 8, which keep both busy and
fill no queue; no row is in the cache. Beside them the compiled model alone, called in one process. wrk must be on PATH.
`--mlserver` names an interpreter that has MLServer installed, and measures it, too; `bench/peers/catalogue.py` says how
to make one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bench import wrk
from bench.peers.catalogue import MLSERVER_BATCHING
from bench.predict import ours
from bench.table import Table
from bench.wrk import Load
from harness.service import demo_models
from registry.model import LoadedModel
from registry.registry import load_one
from registry.rows.features import Rows

MODEL = "breast-cancer"
MANY_ROWS = 1000
CONNECTIONS = {1: 64, MANY_ROWS: 8}
REQUESTS = {1: 20_000, MANY_ROWS: 20}
"""Different requests, which are repeated: their rows are many times more than the cache holds here."""
INFER = f"/v2/models/{MODEL}/infer"
OUTPUTS = [{"name": "predict_proba"}]

Body = Callable[[Rows], tuple[bytes, dict[str, str]]]


def predict(rows: Rows) -> tuple[bytes, dict[str, str]]:
    """Our own protocol."""
    return json.dumps({"instances": rows.tolist()}).encode(), {"Content-Type": "application/json"}


def v2_json(rows: Rows) -> tuple[bytes, dict[str, str]]:
    """A tensor as JSON."""
    tensor = {"name": "rows", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
    return json.dumps({"inputs": [tensor], "outputs": OUTPUTS}).encode(), {"Content-Type": "application/json"}


def v2_binary(rows: Rows) -> tuple[bytes, dict[str, str]]:
    """A tensor as bytes, both ways."""
    content = rows.tobytes()
    tensor = {
        "name": "rows",
        "shape": list(rows.shape),
        "datatype": "FP64",
        "parameters": {"binary_data_size": len(content)},
    }
    request = {"inputs": [tensor], "outputs": OUTPUTS, "parameters": {"binary_data_output": True}}
    head = json.dumps(request).encode()
    return head + content, {"Inference-Header-Content-Length": str(len(head))}


WAYS: dict[str, tuple[str, Body]] = {
    ":predict": (f"/v1/models/{MODEL}:predict", predict),
    "v2 JSON": (INFER, v2_json),
    "v2 binary": (INFER, v2_binary),
}


def new_rows(model: LoadedModel, requests: int, rows: int) -> Iterator[Rows]:
    """Rows of the background with one number that is new in every row, for so many requests."""
    random = np.random.default_rng(1)
    background = np.ascontiguousarray(model.background, np.float64)
    for _ in range(requests):
        some = background[random.integers(len(background), size=rows)]
        some[:, 0] = background[:, 0].min() + random.random(rows) * np.ptp(background[:, 0])
        yield some


def fire(address: str, path: str, body: Body, rows: Sequence[Rows], seconds: float) -> Load:
    """A second to warm up, then what counts."""
    messages, connections = list(map(body, rows)), CONNECTIONS[len(rows[0])]
    wrk.run_messages(address, path, messages, connections=connections, seconds=1)
    return wrk.run_messages(address, path, messages, connections=connections, seconds=seconds)


def alone(model: LoadedModel) -> float:
    """Rows a second of the compiled model, without HTTP."""
    (rows,) = new_rows(model, 1, MANY_ROWS)
    model.compute(rows)
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < 1:
        model.compute(rows)
        calls += 1
    return calls * MANY_ROWS / (time.perf_counter() - started)


def compare(table: Table, models: Path, count: int, seconds: float, mlserver: str) -> None:
    """Requests of `count` rows; x is against `:predict`."""
    model = load_one(models, MODEL)
    rows = list(new_rows(model, REQUESTS[count], count))
    with ours(models, CACHE_MAX_ITEMS="1000") as service:
        loads = {way: fire(service.address, path, body, rows, seconds) for way, (path, body) in WAYS.items()}
    if mlserver:
        with MLSERVER_BATCHING.running(mlserver, models, MODEL) as address:
            for way in ("v2 JSON", "v2 binary"):
                loads[f"MLServer {way}"] = fire(address, *WAYS[way], rows, seconds)
    first = loads[":predict"]
    for way, load in loads.items():
        lost = load.refused + load.lost
        table.add(count, way, f"{load.rate:.0f}", f"{load.rate * count:.0f}", f"{load.rate / first.rate:.2f}", lost)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5)
    arguments.add_argument("--mlserver", default="", metavar="PYTHON", help="an interpreter that has MLServer")
    options = arguments.parse_args()
    table = Table("rows a request", "how", "requests/s", "rows/s", "x", "lost")
    with demo_models() as models:
        for count in (1, MANY_ROWS):
            compare(table, models, count, options.seconds, options.mlserver)
        table.add(MANY_ROWS, "compiled model alone, one process", "", f"{alone(load_one(models, MODEL)):.0f}", "", "")
        print(table)


if __name__ == "__main__":
    main()
