"""Jobs on the real service while its processes are killed: `python -m bench.chaos` prints a table.

Jobs of some chunks each are sent in over HTTP, predictions and explanations in turn, no row twice. While they run,
random job runners get SIGKILL, and now and then a process in which one of them calls a model; in other rows the whole
of gunicorn does, and is started again over the same jobs. In the end every job must be done, and its result must be,
row by row and bit by bit, what `:predict` and `:explain` answer. A chunk that was worked on but not yet kept when its
runner died is done again: that is the price, and shown as attempts lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.table import Table
from harness.estimators import SleepingRegressor
from harness.jobs import call, send
from harness.servers import redis_server
from harness.service import Service, demo_models
from registry.store.add import add_version
from serving.process.kernel import child_pids, name_of

DEADLINE_SECONDS = 600
NAMES = {"predict": "predictions", "explain": "explanations"}
EXECUTOR = "executor"
SLEEPY = "sleepy"
SECONDS_A_ROW = 0.005


@dataclass(frozen=True)
class Chaos:
    """The size of a run."""

    jobs: int
    chunks: int
    rows: int
    """Rows of a chunk."""
    runners: int
    kills: int
    executor_kills: int
    restarts: int
    lease: float


@dataclass(frozen=True)
class Sent:
    """A job, and all that it should answer."""

    path: str
    verb: str
    model: str
    instances: list[Any]


def submit(service: Service, chaos: Chaos) -> list[Sent]:
    """Predictions of a model that sleeps and explanations of one that computes, in turn."""
    example = service.get("/v1/models/wine")["example"]
    sent, number = [], 0
    for job in range(chaos.jobs):
        verb, model = ("predict", SLEEPY) if job % 2 else ("explain", "wine")
        instances: list[Any] = []
        for _ in range(chaos.chunks * chaos.rows):
            number += 1
            instances.append(
                [SECONDS_A_ROW + number * 1e-8] if model == SLEEPY else example | {"alcohol": 12 + number * 1e-5}
            )
        answer = send(service, verb, model, instances)
        assert answer.status == 202, answer.body
        sent.append(Sent(answer.headers["Location"], verb, model, instances))
    return sent


def add_sleepy(root: Path) -> None:
    """A model that takes as long as its row says, however busy the machine is."""
    sample = pd.DataFrame({"seconds": np.linspace(0.0, 0.001, 5)})
    add_version(root, SLEEPY, SleepingRegressor().fit(sample.to_numpy(), None), sample, margin=1e6)


class Disturbance:
    """Kills processes of a service, and the whole service, as its work goes on."""

    def __init__(self, environ: Mapping[str, str], chaos: Chaos) -> None:
        self._environ = environ
        self._chaos = chaos
        self.service = Service(environ).__enter__()
        self.kills = self.executor_kills = self.restarts = 0

    def follow(self, share: float) -> None:
        """Do everything that is due at this share of the work."""
        chaos = self._chaos
        if self.restarts < chaos.restarts and self.restarts + 1 <= share * (chaos.restarts + 1):
            self._restart()
        if self.kills < chaos.kills and self.kills <= share * chaos.kills:
            self.kills += self._kill(self.service.runners)
        if self.executor_kills < chaos.executor_kills and self.executor_kills <= share * chaos.executor_kills:
            self.executor_kills += self._kill(list(_executors(self.service.runners)))

    def _kill(self, pids: list[int]) -> bool:
        """Kill one at random, as the kernel does when memory is short; False if there is none."""
        with suppress(ProcessLookupError):
            if pids:
                os.kill(random.choice(pids), signal.SIGKILL)
                return True
        return False

    def _restart(self) -> None:
        """The master is killed, and by that all the others, then all is started anew."""
        self.service.stop(signal.SIGKILL)
        self.service = Service(self._environ).__enter__()
        self.restarts += 1


def _executors(runners: list[int]) -> Iterator[int]:
    for runner in runners:
        with suppress(OSError):
            yield from (pid for zygote in child_pids(runner) for pid in child_pids(zygote) if name_of(pid) == EXECUTOR)


def wait(disturbance: Disturbance, sent: list[Sent]) -> list[Any]:
    """The jobs as they ended, in order."""
    ended: dict[str, Any] = {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(ended) < len(sent) and time.monotonic() < deadline:
        disturbance.follow(len(ended) / len(sent))
        # they are done more or less in order: the first few that are not say enough
        for one in [one for one in sent if one.path not in ended][:10]:
            job = disturbance.service.get(one.path)
            if job["finished"]:
                ended[one.path] = job
        time.sleep(0.02)
    return [ended.get(one.path, {"state": "late", "attempts": 0}) for one in sent]


def right_rows(service: Service, one: Sent, rows: int) -> int:
    """Count the rows of a job's result that equal, to the last digit and in order, the answers to a request."""
    found = call(service, "GET", f"{one.path}/result").json.get(NAMES[one.verb], [])
    wanted: list[Any] = []
    for first in range(0, len(one.instances), rows):
        body = json.dumps({"instances": one.instances[first : first + rows]}).encode()
        path = f"/v1/models/{one.model}:{one.verb}"
        wanted += call(service, "POST", path, body, Content_Type="application/json").json[NAMES[one.verb]]
    if len(found) != len(wanted):
        return 0
    return sum(json.dumps(ours) == json.dumps(theirs) for ours, theirs in zip(found, wanted, strict=True))


def measure(table: Table, what: str, environ: Mapping[str, str], chaos: Chaos) -> bool:
    """One row of the table; True if nothing was lost, changed or there twice."""
    disturbance = Disturbance(environ, chaos)
    try:
        sent = submit(disturbance.service, chaos)
        started = time.monotonic()
        jobs = wait(disturbance, sent)
        seconds = time.monotonic() - started
        right = sum(right_rows(disturbance.service, one, chaos.rows) for one in sent)
    finally:
        disturbance.service.stop()
    done = sum(job["state"] == "done" for job in jobs)
    for job in jobs:
        if job["state"] != "done":
            print(f"{what}: a job is {job['state']} after {job['attempts']} attempts: {job.get('error')}")
    lost = sum(job["attempts"] for job in jobs) - done
    total = sum(len(one.instances) for one in sent)
    kills = (disturbance.kills, disturbance.executor_kills, disturbance.restarts)
    table.add(what, chaos.jobs, *kills, done, f"{right} of {total}", lost, f"{seconds:.1f} s")
    planned = (chaos.kills, chaos.executor_kills, chaos.restarts)
    return done == chaos.jobs and right == total and kills == planned


@contextmanager
def places() -> Iterator[dict[str, dict[str, str]]]:
    """A new directory for SQLite and a new Redis."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="forkserve-chaos-"))
        yield {"SQLite": {"DATA_DIR": directory}, "Redis": {"REDIS_URL": stack.enter_context(redis_server()).url}}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=200)
    arguments.add_argument("--chunks", type=int, default=4)
    arguments.add_argument("--rows", type=int, default=16, help="of a chunk")
    arguments.add_argument("--runners", type=int, default=3)
    arguments.add_argument("--kills", type=int, default=50, help="of runners")
    arguments.add_argument("--executor-kills", type=int, default=10, help="of processes that call models")
    arguments.add_argument("--restarts", type=int, default=3, help="of all of gunicorn, in rows of their own")
    arguments.add_argument("--lease", type=float, default=1.0, help="seconds")
    arguments.add_argument("--seed", type=int, default=1)
    options = vars(arguments.parse_args())
    random.seed(options.pop("seed"))
    kills = {"kills": options.pop("kills"), "executor_kills": options.pop("executor_kills"), "restarts": 0}
    restarts = {"kills": 0, "executor_kills": 0, "restarts": options.pop("restarts")}
    table = Table("store", "jobs", "runners killed", "calls killed", "restarts", "done", "rows right", "lost", "time")
    well = []
    with demo_models() as models, places() as stores:
        add_sleepy(models)
        for store, where in stores.items():
            for disturbances in (kills, restarts):
                chaos = Chaos(**options, **disturbances)
                environ = where | {
                    "MODEL_DIR": str(models),
                    "WEB_CONCURRENCY": "1",
                    "MAX_REQUESTS": "0",
                    "SHAP_MAX_BATCH_SIZE": str(chaos.rows),
                    "JOB_RUNNERS": str(chaos.runners),
                    "JOB_LEASE_SECONDS": str(chaos.lease),
                    "JOB_MAX_QUEUED": str(chaos.jobs),
                    "CACHE_MAX_ITEMS": "0",
                    "ACCESS_LOG": "false",
                }
                well.append(measure(table, store, environ, chaos))
    print(table)
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
