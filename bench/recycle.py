"""Requests lost while workers come and go, ours beside the stock worker: `python -m bench.recycle`.

Keep-alive connections, some without a pause and some with one, send predictions while every worker is replaced after
500 requests; then again during one reload (HUP) and while one worker is told to end (SIGTERM). A request that was sent
and not answered with 200 is lost. Nothing is retried.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.table import Table
from harness.processes import hammer
from harness.service import COMMAND, Service, demo_models
from serving.cli.client import Tally, post

STOCK = (sys.executable, "-m", "gunicorn", "-c", "bench/peers/stock_conf.py", "main:app")
BODY = json.dumps({"instances": [[59.0, 2.0, 32.1, 101.0, 157.0, 93.2, 38.0, 4.0, 4.8598, 87.0]]}).encode()


@dataclass(frozen=True)
class Scene:
    """One row of the table: how many connections with what pause, and what happens in the middle."""

    name: str
    connections: int
    pause: float
    max_requests: int = 500
    disturb: Callable[[Service], None] | None = None


def hang_up(service: Service) -> None:
    """Reload: every worker is replaced."""
    service.process.send_signal(signal.SIGHUP)


def end_one_worker(service: Service) -> None:
    """One worker is told to end."""
    os.kill(service.workers[0], signal.SIGTERM)


SCENES = (
    Scene("recycling, no pause", connections=16, pause=0.0),
    Scene("recycling, 20 ms pause", connections=64, pause=0.02),
    Scene("HUP", connections=32, pause=0.005, max_requests=0, disturb=hang_up),
    Scene("SIGTERM to a worker", connections=32, pause=0.005, max_requests=0, disturb=end_one_worker),
)


async def play(scene: Scene, service: Service, requests: int) -> Tally:
    """The scene's load; its disturbance comes when a good part of the requests is sent."""
    messages = [post(f"{service.address}/v1/models/diabetes:predict", BODY)]
    load = asyncio.create_task(
        hammer(service.address, messages, requests=requests, connections=scene.connections, pause=scene.pause)
    )
    if scene.disturb is not None:
        await asyncio.sleep(1)
        scene.disturb(service)
    return await load


def measure(table: Table, models: Path, who: str, command: tuple[str, ...], scene: Scene, requests: int) -> int:
    """Play one scene and note what was lost."""
    environ = {
        "MODEL_DIR": str(models),
        "WEB_CONCURRENCY": "2",
        "MAX_REQUESTS": str(scene.max_requests),
        "MAX_REQUESTS_JITTER": "50",
        "MIN_WORKER_SECONDS": "0",
        "ACCESS_LOG": "false",
    }
    with Service(environ, command) as service:
        tally = uvloop.run(play(scene, service, requests))
        forks = len(service.events("Worker started"))
    lost = ", ".join(f"{count} {kind}" for kind, count in tally.failures.items())
    table.add(scene.name, who, requests, forks, tally.connections, tally.failed, lost or "-")
    return tally.failed


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=50_000, help="of each scene with recycling")
    arguments.add_argument("--ours-only", action="store_true", help="leave the stock worker out")
    options = arguments.parse_args()
    table = Table("scene", "worker", "requests", "forks", "connections", "lost", "how")
    rivals = {"ours": COMMAND} if options.ours_only else {"ours": COMMAND, "uvicorn-worker": STOCK}
    lost = 0
    with demo_models() as models:
        for scene in SCENES:
            requests = options.requests if scene.disturb is None else options.requests // 5
            for who, command in rivals.items():
                failed = measure(table, models, who, command, scene, requests)
                lost += failed if who == "ours" else 0
    print(table)
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
