"""Requests lost while models are reloaded, and memory afterwards: `python -m bench.reload`.

Keep-alive connections send predictions while new versions are put into the model directory and the service is told to
reload, one after the other; then while the new versions are corrupt. A request that was sent and not answered with 200
is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import uvloop

from bench.recycle import BODY
from bench.table import Table
from harness.processes import hammer
from harness.service import Service, demo_models
from serving.cli.client import Tally, post
from serving.process.kernel import read_memory

MB = 1024 * 1024
TOKEN = "a-token-only-for-this-run"
PATIENCE = 60.0


def add_copy(models: Path, name: str, version: str, *, corrupt: bool = False) -> None:
    """A version like the first; a corrupt one is damaged as a full disk does it."""
    directory = Path(shutil.copytree(models / name / "1", models / name / f".{version}"))
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    if corrupt:
        artefact = directory / "model.joblib"
        artefact.write_bytes(artefact.read_bytes()[:1000])
    directory.rename(models / name / version)


def reload(service: Service) -> tuple[int, float]:
    """Ask for a reload: the status of the answer, and the seconds it took."""
    started = time.perf_counter()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"{service.address}/api/admin/models:reload", b"", headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, time.perf_counter() - started
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, time.perf_counter() - started


async def play(service: Service, models: Path, requests: int, *, corrupt: bool) -> tuple[Tally, list[int], float]:
    """Load and reloads: what became of the requests, the reloads' statuses, the longest reload in seconds."""
    messages = [post(f"{service.address}/v1/models/diabetes:predict", BODY)]
    load = asyncio.create_task(hammer(service.address, messages, requests=requests, connections=32, pause=0.02))
    statuses, longest = [], 0.0
    while not load.done():
        version = len(list((models / "diabetes").iterdir())) + 1
        add_copy(models, "diabetes", str(version), corrupt=corrupt)
        status, seconds = await asyncio.to_thread(reload, service)
        statuses.append(status)
        longest = max(longest, seconds)
    return await load, statuses, longest


def wait_for_old_workers(service: Service, count: int) -> None:
    """Until only `count` workers are left."""
    deadline = time.monotonic() + PATIENCE
    while len(service.workers) != count and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=20_000, help="of each row of the table")
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    table = Table(
        "versions", "reloads", "answered", "longest (s)", "requests", "lost", "p99 (ms)", "live", "private (MB)"
    )
    failed = 0
    with demo_models() as models:
        environ = {
            "MODEL_DIR": str(models),
            "WEB_CONCURRENCY": str(options.workers),
            "MAX_REQUESTS": "0",
            "ACCESS_LOG": "false",
            "ADMIN_TOKEN": TOKEN,
            "WATCH_MODELS": "false",  # each reload is asked for
        }
        with Service(environ) as service:
            for corrupt in (False, True):
                tally, statuses, longest = uvloop.run(play(service, models, options.requests, corrupt=corrupt))
                wait_for_old_workers(service, options.workers)
                failed += tally.failed
                table.add(
                    "corrupt" if corrupt else "good",
                    len(statuses),
                    ", ".join(map(str, sorted(set(statuses)))),
                    f"{longest:.2f}",
                    options.requests,
                    tally.failed,
                    f"{tally.quantile(0.99) * 1e3:.1f}",
                    service.get("/v1/models/diabetes")["version"],
                    f"{max(read_memory(pid).private for pid in service.workers) / MB:.1f}",
                )
    print(table)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
