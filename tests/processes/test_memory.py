"""Memory on real gunicorn: a worker that leaks is replaced before the limit, and no request is lost."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.estimators import LeakingRegressor
from harness.processes import eventually, hammer
from harness.service import Service
from registry.store.add import add_version
from serving.cli.client import Tally, post
from serving.process.kernel import child_pids, read_memory

MB = 1024 * 1024
ROOM = 240


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("leaking")
    sample = pd.DataFrame({"number": np.linspace(0.0, 1.0, 5)})
    add_version(root, "leaking", LeakingRegressor().fit(sample.to_numpy(), None), sample, margin=1e6)
    return root


def held(service: Service) -> int:
    """The memory of all processes of a service, in bytes."""
    total, pids = 0, [service.master]
    while pids:
        with suppress(OSError):
            pid = pids.pop()
            total += read_memory(pid).held
            pids += child_pids(pid)
    return total


async def leak(service: Service, requests: int) -> tuple[Tally, int]:
    """Load under which every request costs a megabyte; and the most that was held meanwhile."""
    path = f"{service.address}/v1/models/leaking:predict"
    messages = [post(path, json.dumps({"instances": [[2.0 + n]]}).encode()) for n in range(requests)]
    running = asyncio.create_task(hammer(service.address, messages, requests=requests, connections=4, pause=0.25))
    most = 0
    while not running.done():
        most = max(most, await asyncio.to_thread(held, service))
        await asyncio.wait([running], timeout=0.2)
    return await running, most


def ask_in_a_row(service: Service, numbers: list[float]) -> int:
    """Private bytes of the one worker, after predictions of these numbers."""
    path = f"{service.address}/v1/models/leaking:predict"
    messages = [post(path, json.dumps({"instances": [[number]]}).encode()) for number in numbers]
    tally = asyncio.run(hammer(service.address, messages, requests=len(messages), connections=4))
    assert tally.failed == 0
    (worker,) = service.workers
    return read_memory(worker).private


def environ(models: Path, **more: str) -> dict[str, str]:
    common = {"MODEL_DIR": str(models), "MAX_REQUESTS": "0", "GRACEFUL_TIMEOUT_SECONDS": "4", "ROLES": "web"}
    return common | {"CACHE_MAX_ITEMS": "0"} | more


def test_a_leaking_worker_is_replaced_before_the_limit_without_a_lost_request(leaking: Path) -> None:
    with Service(environ(leaking)) as service:
        base = held(service) // MB
    limit = base + ROOM
    with Service(environ(leaking, MAX_MEMORY_MB=str(limit), MAX_WORKER_MEMORY_MB=str(limit))) as service:
        tally, most = asyncio.run(leak(service, requests=ROOM - 10))
        assert (tally.failed, tally.statuses[200]) == (0, ROOM - 10)
        assert most < limit * MB
        assert eventually(lambda: bool(service.events("Process replaced to free memory")))
        assert service.events("Process replaced to free memory")[0]["reason"] == "the box is short of memory"
        assert [alert["kind"] for alert in service.events("Alert")] == ["memory-high"]
        assert eventually(lambda: service.get("/health")["memory"]["stage"] != "critical")
        assert service.get("/health")["memory"]["limit_bytes"] == limit * MB


def test_requests_keep_no_memory_and_a_model_that_does_is_found_out(leaking: Path) -> None:
    with Service(environ(leaking, WEB_CONCURRENCY="1", ACCESS_LOG="false")) as service:
        warm = ask_in_a_row(service, [n / 1000 for n in range(300)])
        steady = ask_in_a_row(service, [n / 1000 + 1e-6 for n in range(1000)])
        assert steady - warm < 2 * MB
        assert ask_in_a_row(service, [2.0 + n for n in range(20)]) - steady > 15 * MB


def test_a_worker_past_its_share_is_replaced_while_the_box_has_enough(leaking: Path) -> None:
    with Service(environ(leaking, MAX_WORKER_MEMORY_MB="60", WEB_CONCURRENCY="1")) as service:
        (old,) = service.workers
        tally, _ = asyncio.run(leak(service, requests=90))
        assert tally.failed == 0
        assert eventually(lambda: old not in service.workers and len(service.workers) == 1)
        (event,) = service.events("Process replaced to free memory")
        assert (event["pid"], event["reason"]) == (old, "it exceeds its share")
        assert [alert["kind"] for alert in service.events("Alert")] == ["memory-share"]
