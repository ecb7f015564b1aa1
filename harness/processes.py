"""Loads a service, and waits for what its processes do."""

from __future__ import annotations

import asyncio
import json
import select
import time
from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from pathlib import Path
from typing import TypeVar

from harness.service import Service
from serving.cli.client import Tally, post, send

DIABETES = json.dumps({"instances": [[59.0, 2.0, 32.1, 101.0, 157.0, 93.2, 38.0, 4.0, 4.8598, 87.0]]}).encode()
PATIENCE = 30.0

T = TypeVar("T")


def eventually(condition: Callable[[], bool]) -> bool:
    """Poll until it is true, and return whether that was in time; for events in other processes."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.01)
    return True


def gone(pids: list[int]) -> bool:
    """Wait for all of them to end; return whether they did. A zombie that we cannot reap has ended, too."""
    return eventually(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def hammer(address: str, messages: list[bytes], *, requests: int, connections: int, pause: float = 0.0) -> Tally:
    """Send `requests` requests over `connections` keep-alive connections, with `pause` seconds between two on each."""
    tally = Tally()
    await send(address, cycle(messages), iter(range(requests)), tally, connections=connections, pause=pause)
    return tally


def load(service: Service, requests: int, connections: int, *, pause: float = 0.0) -> Tally:
    messages = [post(f"{service.address}/v1/models/diabetes:predict", DIABETES)]
    return asyncio.run(hammer(service.address, messages, requests=requests, connections=connections, pause=pause))


async def load_while(service: Service, disturb: Callable[[], None], requests: int = 1500) -> Tally:
    """Load, and a disturbance once it is well under way."""
    messages = [post(f"{service.address}/v1/models/diabetes:predict", DIABETES)]
    await hammer(service.address, messages, requests=50, connections=16)
    running = asyncio.create_task(hammer(service.address, messages, requests=requests, connections=16, pause=0.002))
    await hammer(service.address, messages, requests=50, connections=1)
    disturb()
    return await running


async def hammer_while(
    service: Service, disturb: Callable[[], T], model: str = "diabetes", body: bytes = DIABETES
) -> tuple[Tally, T]:
    """Send predictions while `disturb` runs; return their results and its own."""
    disturbing = asyncio.create_task(asyncio.to_thread(disturb))

    def todo() -> Iterator[int]:
        while not disturbing.done():
            yield 0

    tally, messages = Tally(), repeat(post(f"{service.address}/v1/models/{model}:predict", body))
    await send(service.address, messages, todo(), tally, connections=16, pause=0.005)
    assert tally.statuses[200] > 0, "nobody was there to be disturbed"
    return tally, await disturbing


def sleep_body(seconds: float) -> bytes:
    return json.dumps({"instances": [[seconds]]}).encode()
