"""Quick predictions beside a model that holds the GIL: `python -m bench.turns`.

One worker with one inference thread. At random moments, 300 times a second, single new rows of a compiled forest, which
the event loop answers itself; beside them 100 rows a second of a model that runs 5 ms of Python code for each. Once
with the interpreter's own switch interval, once with ours (`SWITCH_SECONDS` in `serving/predict/batcher.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import uvloop

from bench.busy import paced, shot
from bench.models import add_forest, add_holding
from bench.overload import unique_messages
from bench.pace import quantile
from bench.table import Table
from harness.service import Service

INTERVALS = {"Python's, 5 ms": 0.005, "ours": None}
QUICK_RATE, HOLDING_RATE = 300, 100


async def both(service: Service, models: Path, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each answer of the forest, and of the other model."""
    quick = paced(service.address, shot(models).messages(service.address, 0), QUICK_RATE, seconds)
    messages = unique_messages(f"{service.address}/v1/models/holding:predict")
    return await asyncio.gather(quick, paced(service.address, messages, HOLDING_RATE, seconds))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=8)
    options = arguments.parse_args()
    table = Table("switch interval", "quick p50 ms", "quick p99 ms", "holding p50 ms", "holding p99 ms")
    for name, interval in INTERVALS.items():
        with tempfile.TemporaryDirectory() as directory:
            models = Path(directory)
            add_forest(models)
            add_holding(models, interval)
            environ = {
                "MODEL_DIR": directory,
                "WEB_CONCURRENCY": "1",
                "INFERENCE_THREADS": "1",
                "QUEUE_SECONDS": "1",
                "MAX_REQUESTS": "0",
                "ACCESS_LOG": "false",
            }
            with Service(environ) as service:
                answers = uvloop.run(both(service, models, options.seconds))
        table.add(name, *(f"{quantile(answer, share):.1f}" for answer in answers for share in (0.5, 0.99)))
    print(table)


if __name__ == "__main__":
    main()
