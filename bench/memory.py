"""Memory of the whole process tree by number of workers, models shared and not shared: `python -m bench.memory`.

Every worker answers 2,000 predictions first, over all demo models, with shap imported. PSS counts a page that n
processes share as 1/n in each, so its sum is what the box really spends; private is what one more worker costs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import uvloop

from bench.client import hammer, post
from bench.service import Service, demo_models
from bench.table import Table
from registry.registry import load_registry
from serving.processes import read_memory

MB = 1024 * 1024


def measure(models: Path, workers: int, *, preload: bool, per_worker: int) -> tuple[float, float, float]:
    """MB: private memory of a worker, idle and after its predictions (the mean), and the PSS of the whole tree."""
    environ = {
        "MODEL_DIR": str(models),
        "WEB_CONCURRENCY": str(workers),
        "PRELOAD": str(preload).lower(),
        "PRELOAD_MODULES": "shap",
        "MAX_REQUESTS": "0",
        "ACCESS_LOG": "false",
    }
    with Service(environ) as service:
        idle = mean(read_memory(pid).private for pid in service.workers)
        messages = [
            post(f"{service.address}/v1/models/{model.name}:predict", json.dumps({"instances": [row]}).encode())
            for model in load_registry(models).live()
            for row in map(model.schema.instance, model.schema.rows(list(map(list, model.manifest.background))))
        ]
        load = hammer(service.address, messages, requests=per_worker * workers, connections=8 * workers)
        tally = uvloop.run(load)
        if tally.failed:
            raise SystemExit(f"requests failed: {tally.statuses} {tally.failures}")
        loaded = mean(read_memory(pid).private for pid in service.workers)
        total = sum(read_memory(pid).pss for pid in [service.master, *service.workers])
    return idle / MB, loaded / MB, total / MB


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 6])
    arguments.add_argument("--predictions", type=int, default=2000, help="for each worker")
    options = arguments.parse_args()
    table = Table("workers", "models", "private, idle", "private, loaded", "whole tree (MB)", "x shared")
    with demo_models() as models:
        for workers in options.workers:
            shared = 0.0
            for preload in (True, False):
                idle, loaded, total = measure(models, workers, preload=preload, per_worker=options.predictions)
                shared = shared or total
                kind = "shared" if preload else "one each"
                table.add(workers, kind, f"{idle:.1f}", f"{loaded:.1f}", f"{total:.0f}", f"{total / shared:.1f}")
    print(table)


if __name__ == "__main__":
    main()
