"""Memory of the whole process tree by number of workers, models shared and not shared: `python -m bench.memory`.

Every worker first answers 2,000 predictions and then 200 explanations, over all demo models. The demo models are
explained by kernels, so shap is not needed; what it costs where it is, the lines with shap show: it is imported before
the fork. PSS counts a page that n processes share as 1/n in each, so its sum is what the box really spends; private is
what one more worker costs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import uvloop

from bench.table import Table
from harness.processes import hammer
from harness.service import Service, demo_models
from registry.registry import load_registry
from serving.cli.client import post
from serving.process.kernel import read_memory

MB = 1024 * 1024


KINDS = (("shared", True, ""), ("shared, with shap", True, "shap"), ("one each, with shap", False, "shap"))


def measure(
    models: Path, workers: int, *, preload: bool, modules: str, per_worker: int
) -> tuple[float, float, float, float]:
    """MB: private memory of a worker (the mean), idle, after predictions and after explanations; PSS of the tree."""
    environ = {
        "MODEL_DIR": str(models),
        "WEB_CONCURRENCY": str(workers),
        "PRELOAD": str(preload).lower(),
        "PRELOAD_MODULES": modules,
        "MAX_REQUESTS": "0",
        "ACCESS_LOG": "false",
    }
    with Service(environ) as service:
        idle = mean(read_memory(pid).private for pid in service.workers)
        private = [idle]
        for verb, requests in (("predict", per_worker), ("explain", per_worker // 10)):
            messages = [
                post(f"{service.address}/v1/models/{model.name}:{verb}", json.dumps({"instances": [row]}).encode())
                for model in load_registry(models).live()
                for row in map(model.schema.instance, model.schema.rows(list(map(list, model.manifest.background))))
            ]
            load = hammer(service.address, messages, requests=requests * workers, connections=8 * workers)
            tally = uvloop.run(load)
            if tally.failed:
                raise SystemExit(f"requests failed: {tally.statuses} {tally.failures}")
            private.append(mean(read_memory(pid).private for pid in service.workers))
        total = sum(read_memory(pid).pss for pid in [service.master, *service.workers, *service.runners])
    return private[0] / MB, private[1] / MB, private[2] / MB, total / MB


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 6])
    arguments.add_argument("--predictions", type=int, default=2000, help="for each worker")
    options = arguments.parse_args()
    headings = ("workers", "models", "private, idle", "after predictions", "after explanations", "whole tree (MB)", "x")
    table = Table(*headings)
    with demo_models() as models:
        for workers in options.workers:
            first = 0.0
            for kind, preload, modules in KINDS:
                *private, total = measure(
                    models, workers, preload=preload, modules=modules, per_worker=options.predictions
                )
                first = first or total
                table.add(workers, kind, *(f"{size:.1f}" for size in private), f"{total:.0f}", f"{total / first:.1f}")
    print(table)


if __name__ == "__main__":
    main()
