"""Event streams while workers come and go, and idle ones: `python -m bench.streams` prints two tables.

Clients follow jobs whose events are told from here, while predictions have every worker replaced after some requests.
Clients come back as they are told to, after half a second to one and a half. Every client must hear every event of its
job once and in order. The delay is from before an event is told until its client has it, resumed clients included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.table import Table
from harness.processes import hammer
from harness.servers import redis_server
from harness.service import SECRET_KEY, Service, demo_models
from harness.sse import Stream, follow
from serving.cli.client import post
from serving.events.log import EventLog
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.job import JobRequest
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore, jobs_database
from serving.jobs.store import JobStore
from serving.process.kernel import TICKS_PER_SECOND, read_memory
from serving.storage.seal import Seal

DIABETES = json.dumps({"instances": [[59.0, 2.0, 32.1, 101.0, 157.0, 93.2, 38.0, 4.0, 4.8598, 87.0]]}).encode()
OPERATION = "bench:nobody-runs-this"
TARGETS = {"SQLite": 0.100, "Redis": 0.030}
"""Seconds within which half of all events have to arrive."""

IDLE_BYTES, IDLE_SHARE = 60 * 1024, 0.02
"""The limits for 1,000 idle streams: memory of one, and share of a core of all."""


@dataclass
class Heard:
    """The events of one client: their numbers in the order of arrival, and their delays in seconds."""

    numbers: list[int] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def gaps(self, told: int) -> int:
        return told - len(set(self.numbers))

    @property
    def repeats(self) -> int:
        return len(self.numbers) - len(set(self.numbers))

    @property
    def disorder(self) -> int:
        return sum(after < before for before, after in zip(self.numbers, self.numbers[1:], strict=False))


@asynccontextmanager
async def stores(where: str) -> AsyncIterator[tuple[JobStore, EventLog]]:
    """Those of the service, from outside: under a URL or in a directory."""
    jobs: JobStore
    events: EventLog
    if where.startswith("redis:"):
        seal = Seal([SECRET_KEY])
        jobs, events = RedisJobStore(where, seal=seal), RedisEventLog(where, seal=seal)
    else:
        jobs, events = SQLiteJobStore(Path(where)), SQLiteEventLog(jobs_database(Path(where)))
    yield jobs, events
    await jobs.close()
    await events.close()


def environment(models: Path, where: str) -> dict[str, str]:
    place = "REDIS_URL" if where.startswith("redis:") else "DATA_DIR"
    return {"MODEL_DIR": str(models), place: where, "ROLES": "web", "MAX_STREAMS": "5000"} | {
        "MAX_STREAMS_PER_ADDRESS": "0"
    }


async def submit(jobs: JobStore, count: int) -> list[str]:
    """Jobs that nobody runs."""
    return [(await jobs.submit(JobRequest(operation=OPERATION, inputs=[b""]))).id for _ in range(count)]


async def hear(service: Service, job: str) -> Heard:
    """All events of a job but the last."""
    heard = Heard()
    async with aclosing(follow(service.address, f"/v1/jobs/{job}/events", patient=True)) as frames:
        async for frame in frames:
            if frame["event"] == "done":
                break
            number, told = json.loads(frame["data"])
            heard.numbers.append(number)
            heard.delays.append(time.time() - told)
    return heard


async def tell(events: EventLog, job: str, seconds: float, pause: float) -> int:
    """Tell events of a job for some seconds; gives how many."""
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        await events.append(job, "chunk", json.dumps([number, time.time()]).encode())
        number += 1
        await asyncio.sleep(pause)
    await events.append(job, "done", b"")
    return number


async def measure(table: Table, name: str, where: str, models: Path, options: argparse.Namespace) -> bool:
    """One row of the table; True if nothing was lost, told twice or late."""
    environ = environment(models, where) | {"MAX_REQUESTS": str(options.requests), "MAX_REQUESTS_JITTER": "0"}
    with Service(environ) as service:
        async with stores(where) as (jobs, events):
            topics = await submit(jobs, options.jobs)
            hearing = [asyncio.create_task(hear(service, topics[n % len(topics)])) for n in range(options.clients)]
            telling = [asyncio.create_task(tell(events, job, options.seconds, options.pause)) for job in topics]
            message, failed = post(f"{service.address}/v1/models/diabetes:predict", DIABETES), 0
            while not all(task.done() for task in telling):
                tally = await hammer(service.address, [message], requests=50, connections=4, pause=0.02)
                failed += tally.failed
            told = dict(zip(topics, await asyncio.gather(*telling), strict=True))
            async with asyncio.timeout(60):
                heard = await asyncio.gather(*hearing)
        replaced = len(service.events("Worker draining"))
        answers = sum(line["path"].endswith("/events") for line in service.events("Request completed"))
    gaps = sum(one.gaps(told[topics[n % len(topics)]]) for n, one in enumerate(heard))
    repeats, disorder = sum(one.repeats for one in heard), sum(one.disorder for one in heard)
    delays = sorted(delay for one in heard for delay in one.delays)
    half, most = median(delays), delays[int(len(delays) * 0.95)]
    resumed = answers - options.clients
    cells = (len(delays), replaced, resumed, gaps, repeats, failed, f"{half * 1e3:.0f} ms", f"{most * 1e3:.0f} ms")
    table.add(name, options.clients, *cells)
    return not (gaps or repeats or disorder or failed) and half <= TARGETS[name]


async def measure_idle(table: Table, models: Path, where: str, options: argparse.Namespace) -> bool:
    """Memory and time of one worker for streams on which nothing happens."""
    environ = environment(models, where) | {"WEB_CONCURRENCY": "1", "MAX_REQUESTS": "0"}
    with Service(environ) as service:
        async with stores(where) as (jobs, _), AsyncExitStack() as stack:
            (job,) = await submit(jobs, 1)
            (worker,) = service.workers
            path = f"/v1/jobs/{job}/events"
            await stack.enter_async_context(Stream(service.address, path))
            before = read_memory(worker).private
            for _ in range(options.idle):
                await stack.enter_async_context(Stream(service.address, path))
            spent, started = cpu_seconds(worker), time.monotonic()
            await asyncio.sleep(options.idle_seconds)
            share = (cpu_seconds(worker) - spent) / (time.monotonic() - started)
            each = (read_memory(worker).private - before) / options.idle
    table.add(options.idle, f"{each / 1024:.1f} KB", f"{share:.2%}")
    return each <= IDLE_BYTES and share <= IDLE_SHARE


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--clients", type=int, default=200)
    arguments.add_argument("--jobs", type=int, default=10)
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--pause", type=float, default=0.5, help="seconds between two events of a job")
    arguments.add_argument("--requests", type=int, default=200, help="after which a worker is replaced")
    arguments.add_argument("--idle", type=int, default=1000)
    arguments.add_argument("--idle-seconds", type=float, default=30)
    options = arguments.parse_args()
    table = Table("log", "clients", "events", "replaced", "resumed", "gaps", "repeats", "failed", "median", "95 %")
    idle = Table("idle streams", "private memory each", "of a core")
    with ExitStack() as stack:
        models = stack.enter_context(demo_models())
        places = {
            "SQLite": stack.enter_context(tempfile.TemporaryDirectory(prefix="forkserve-streams-")),
            "Redis": stack.enter_context(redis_server()).url,
        }
        well = [asyncio.run(measure(table, name, where, models, options)) for name, where in places.items()]
        well.append(asyncio.run(measure_idle(idle, models, places["SQLite"], options)))
    print(table, idle, sep="\n\n")
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
