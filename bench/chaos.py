"""Jobs whose runners are killed all the time: `python -m bench.chaos` prints a table, for SQLite and for Redis.

Some runner processes work on jobs of some chunks each; at random moments one of them gets SIGKILL and is started anew.
In the end every job must be done, and every chunk must have one result, of the right input. A chunk that was worked on
but not yet kept when its runner died is done again: that is the price, and shown as such.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.table import Table
from bench.toy_runner import OPERATIONS, open_store
from serving.jobs.job import JobRequest
from serving.jobs.store import JobStore, results
from tests.servers import redis_server

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 600


@dataclass(frozen=True)
class Chaos:
    """How much of everything."""

    jobs: int
    chunks: int
    runners: int
    kills: int
    lease: float
    pause: float


class Runners:
    """Processes that are killed and replaced."""

    def __init__(self, where: str, chaos: Chaos) -> None:
        arguments = (where, chaos.lease, chaos.pause, 0)
        self._command = [sys.executable, "-m", "bench.toy_runner", *map(str, arguments)]
        self._processes = [self._start() for _ in range(chaos.runners)]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def replace_one(self) -> None:
        """Kill one as the kernel would that is short of memory, and start another."""
        place = random.randrange(len(self._processes))
        os.kill(self._processes[place].pid, signal.SIGKILL)
        self._processes[place].wait()
        self._processes[place] = self._start()

    def stop(self) -> None:
        """End all of them."""
        for process in self._processes:
            process.kill()
            process.wait()


async def submit(store: JobStore, chaos: Chaos) -> dict[str, list[bytes]]:
    """The inputs of every job."""
    inputs = {}
    for number in range(chaos.jobs):
        chunks = [b"job %d chunk %d" % (number, chunk) for chunk in range(chaos.chunks)]
        submitted = await store.submit(JobRequest(operation=OPERATIONS[0], inputs=chunks))
        inputs[submitted.job.id] = chunks
    return inputs


async def disturb(store: JobStore, runners: Runners, chaos: Chaos) -> tuple[int, float]:
    """Kill until it was often enough, spread over the work; gives the kills and the seconds until all was done."""
    kills, started = 0, time.monotonic()
    while (elapsed := time.monotonic() - started) < DEADLINE_SECONDS:
        counts = await store.counts()
        left = counts.queued + counts.running
        if not left:
            break
        # as many kills as are due at this state of the work; the last ones while there is still some
        if kills < chaos.kills and kills <= chaos.kills * (1 - left / chaos.jobs) + 1:
            runners.replace_one()
            kills += 1
        await asyncio.sleep(random.uniform(0, 2 * chaos.pause * chaos.chunks))
    return kills, elapsed


async def measure(table: Table, name: str, where: str, chaos: Chaos) -> bool:
    """One row of the table; True if nothing was lost or kept twice."""
    store = open_store(where)
    inputs = await submit(store, chaos)
    runners = Runners(where, chaos)
    try:
        kills, seconds = await disturb(store, runners, chaos)
    finally:
        runners.stop()
    done = attempts = right = 0
    for job_id, chunks in inputs.items():
        job = await store.get(job_id)
        done += job.state == "done"
        attempts += job.attempts
        kept = [result async for result in results(store, job)]
        wanted = [chunk[::-1] for chunk in chunks]
        right += sum(result.startswith(want) for result, want in zip(kept, wanted, strict=False))
    await store.close()
    total = chaos.jobs * chaos.chunks
    table.add(name, chaos.jobs, kills, done, f"{right} of {total}", attempts - done, f"{seconds:.1f} s")
    return done == chaos.jobs and right == total


@contextmanager
def places() -> Iterator[dict[str, str]]:
    """A new directory for SQLite and a new Redis."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="forkserve-chaos-"))
        yield {"SQLite": directory, "Redis": stack.enter_context(redis_server()).url}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=200)
    arguments.add_argument("--chunks", type=int, default=4)
    arguments.add_argument("--runners", type=int, default=3)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--lease", type=float, default=1.0, help="seconds")
    arguments.add_argument("--pause", type=float, default=0.05, help="seconds that a chunk takes")
    arguments.add_argument("--seed", type=int, default=1)
    options = vars(arguments.parse_args())
    random.seed(options.pop("seed"))
    chaos = Chaos(**options)
    table = Table("store", "jobs", "kills", "done", "chunks once", "attempts lost", "time")
    with places() as stores:
        well = [asyncio.run(measure(table, name, where, chaos)) for name, where in stores.items()]
    print(table)
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
