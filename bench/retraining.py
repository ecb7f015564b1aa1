"""Trainings whose runner or trainer gets SIGKILL at random moments: `python -m bench.retraining` prints a table.

After every kill the live version must load, whole, and somebody must take the job up before the lease is over by much.
Meanwhile predictions are asked for, of which none may be lost, though every training that ends well is a reload.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.table import Table
from harness.processes import hammer
from harness.servers import redis_server
from harness.service import ADMIN_TOKEN, Service
from harness.training import MODE, add_small, trigger
from registry.errors import VersionRefused
from registry.store.aliases import current
from registry.store.loader import load_version
from serving.cli.client import post
from serving.process.kernel import child_pids, name_of

BODY = b'{"instances": [[0.5, 0.25]]}'
LONGEST_SECONDS = 0.8
"""A kill comes within this after its training was asked for."""

PATIENCE = 120.0


@dataclass
class Course:
    """The counts of a run."""

    killed: dict[str, int] = field(default_factory=lambda: {"runner": 0, "trainer": 0})
    whole: int = 0
    promoted: int = 0
    free: list[float] = field(default_factory=list)


def kill_somebody(service: Service, course: Course) -> None:
    """A runner, or the process in which it has a model trained or judged."""
    victims = [(pid, "runner") for pid in service.runners]
    with suppress(OSError):
        for runner in service.runners:
            found = [pid for zygote in child_pids(runner) for pid in child_pids(zygote) if name_of(pid) == "executor"]
            victims += [(pid, "trainer") for pid in found]
    if victims:
        pid, kind = random.choice(victims)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            course.killed[kind] += 1


def wait_for(service: Service, path: str, attempts: int) -> tuple[float, Any]:
    """Seconds until the job was taken up again or had ended, and how it ended."""
    started, free = time.monotonic(), None
    while time.monotonic() - started < PATIENCE:
        job = service.get(path)
        if free is None and (job["finished"] or job["attempts"] > attempts):
            free = time.monotonic() - started
        if job["finished"] and free is not None:
            return free, job
        time.sleep(0.02)
    raise TimeoutError(f"{path} does not end")


def is_whole(root: Path) -> bool:
    """Return whether the live version can be read and loaded."""
    try:
        load_version(root, root / "small" / current(root / "small").live)
    except VersionRefused:
        return False
    return True


def disturb(service: Service, root: Path, kills: int) -> Course:
    """Run trainings, each with a kill, until there were `kills`, and one without."""
    course = Course()
    while sum(course.killed.values()) < kills:
        path = trigger(service).headers["Location"]
        time.sleep(random.uniform(0, LONGEST_SECONDS))
        attempts = service.get(path)["attempts"]
        kill_somebody(service, course)
        whole = is_whole(root)
        free, job = wait_for(service, path, attempts)
        course.free.append(free)
        course.whole += whole and is_whole(root)
        course.promoted += job["state"] == "done"
    _, job = wait_for(service, trigger(service).headers["Location"], 0)
    course.promoted += job["state"] == "done"
    return course


async def play(service: Service, root: Path, kills: int) -> tuple[Course, int, int]:
    """The disturbance, and how many predictions were asked for meanwhile and lost."""
    messages = [post(f"{service.address}/v1/models/small:predict", BODY)]
    working = asyncio.create_task(asyncio.to_thread(disturb, service, root, kills))
    sent = lost = 0
    while not working.done():
        tally = await hammer(service.address, messages, requests=200, connections=8, pause=0.02)
        sent, lost = sent + 200, lost + tally.failed
    return await working, sent, lost


def measure(table: Table, store: str, redis_url: str, options: argparse.Namespace) -> bool:
    """One row of the table; True if all is well."""
    with tempfile.TemporaryDirectory(prefix="forkserve-models-") as directory:
        root = Path(directory)
        (add_small(root) / MODE).write_text("sleeps 0.3")
        environ = {
            "MODEL_DIR": directory,
            "REDIS_URL": redis_url,
            "ADMIN_TOKEN": ADMIN_TOKEN,
            "JOB_LEASE_SECONDS": str(options.lease),
            "SERVE_VERSIONS": "live",
            "MAX_REQUESTS": "0",
            "ACCESS_LOG": "false",
        }
        with Service(environ) as service:
            course, sent, lost = asyncio.run(play(service, root, options.kills))
        left = len(list(root.glob(".*")))
    trainings = len(course.free) + 1
    table.add(
        store,
        f"{course.killed['runner']} + {course.killed['trainer']}",
        f"{course.promoted} of {trainings}",
        f"{course.whole} of {len(course.free)}",
        f"{options.lease:g}",
        f"{sorted(course.free)[len(course.free) // 2]:.1f}",
        f"{max(course.free):.1f}",
        left,
        sent,
        lost,
    )
    return course.whole == len(course.free) and not lost


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--lease", type=float, default=2.0, help="seconds")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    random.seed(options.seed)
    table = Table(
        "store",
        "kills (runner + trainer)",
        "trained",
        "live whole",
        "lease (s)",
        "free after (s)",
        "longest",
        "left over",
        "requests",
        "lost",
    )
    with ExitStack() as stack:
        stores = {"SQLite": "", "Redis": stack.enter_context(redis_server()).url}
        well = [measure(table, store, url, options) for store, url in stores.items()]
    print(table)
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
