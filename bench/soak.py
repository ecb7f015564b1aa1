"""Ten minutes of everything at once under a real memory limit of 512 MB: `python -m bench.soak`.

Predictions, explanations, entities, jobs, streams and reloads come at a steady pace. The kernel may kill nobody, no
request may fail, no kind of process may grow after the first minute, and all together must stay below 450 MB. Needs a
memory cgroup, as bench.cgroup does. `--leak` serves a model that keeps every row it is asked: the soak has to find that
out.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.cgroup import ENTER, LIMIT, MB, Cgroup, memory_cgroup
from bench.models import add_leaking
from bench.pace import Answered, Pace, quantile
from bench.table import Table
from bench.traffic import Traffic
from harness.entities import import_market, sqlite_source
from harness.service import COMMAND, Service, demo_models
from harness.sse import follow
from serving.process.kernel import RUNNER, WEB, child_pids, name_of, read_memory

TOKEN = "a-token-only-for-soaking"
RATES = {"predict": 60.0, "explain": 10.0, "entity": 5.0, "job": 0.5}
"""Requests a second."""

STREAMS = 10
ROWS_A_JOB = 20
RELOAD_SECONDS = 60.0
MOST_BYTES, MOST_GROWTH = 450 * MB, 10 * MB


@dataclass
class Samples:
    """Private bytes of every kind of process over time (the largest of its kind), and of all together."""

    started: float = field(default_factory=time.monotonic)
    private: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    peak: int = 0

    def take(self, service: Service, cgroup: Cgroup) -> None:
        """One sample of each."""
        now, largest = time.monotonic() - self.started, Counter[str]()
        for pid in (service.master, *child_pids(service.master)):
            with suppress(OSError):
                name = "master" if pid == service.master else name_of(pid)
                largest[name] = max(largest[name], read_memory(pid).private)
        for name, size in largest.items():
            self.private[name].append((now, size))
        self.peak = max(self.peak, cgroup.resident())

    def most(self, name: str, begin: float, end: float) -> int:
        """The largest private memory of such a process in that time."""
        return max((size for at, size in self.private[name] if begin <= at < end), default=0)


@dataclass
class Soak:
    """One run of the traffic against a service."""

    service: Service
    cgroup: Cgroup
    seconds: float
    samples: Samples = field(default_factory=Samples)
    failures: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    async def run(self) -> dict[str, list[Answered]]:
        """The answers of each kind of request; all else is counted."""
        traffic = Traffic(self.service)
        kinds = {
            "predict": traffic.infer("predict"),
            "explain": traffic.infer("explain"),
            "entity": traffic.entities("AAPL", "IBM"),
            "job": traffic.jobs(ROWS_A_JOB),
        }
        until = time.monotonic() + self.seconds
        besides = [self._sample(until), self._reload(until), *(self._follow(traffic, until) for _ in range(STREAMS))]
        tasks = [asyncio.create_task(work) for work in besides]
        answered = await asyncio.gather(
            *(Pace(self.service.address).run(kinds[kind], RATES[kind], self.seconds) for kind in kinds)
        )
        await asyncio.gather(*tasks)
        return dict(zip(kinds, answered, strict=True))

    async def _sample(self, until: float) -> None:
        while time.monotonic() < until:
            await asyncio.to_thread(self.samples.take, self.service, self.cgroup)
            await asyncio.sleep(1)

    async def _reload(self, until: float) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=self.service.address, timeout=60, trust_env=False) as client:
            while time.monotonic() + RELOAD_SECONDS < until:
                await asyncio.sleep(RELOAD_SECONDS)
                answer = await client.post("/api/admin/models:reload", headers=headers)
                self._count("reload", well=answer.status_code in (200, 202))

    async def _follow(self, traffic: Traffic, until: float) -> None:
        """Jobs of its own, one after the other, each followed to its end."""
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=self.service.address, timeout=60, trust_env=False) as client:
            while time.monotonic() < until:
                body = traffic.job("predict", ROWS_A_JOB)
                answer = await client.post("/v1/jobs", content=body, headers=headers)
                if answer.status_code == 202:
                    place = answer.headers["Location"]
                    async with asyncio.timeout(60), aclosing(follow(self.service.address, f"{place}/events")) as frames:
                        last = [frame["event"] async for frame in frames][-1]
                    self._count("stream", well=last == "done")
                else:
                    self._count("stream", well=False)
                await asyncio.sleep(5)

    def _count(self, kind: str, *, well: bool) -> None:
        (self.done if well else self.failures)[kind] += 1


@contextmanager
def running(models: Path, cgroup: Cgroup) -> Iterator[Service]:
    """Four web workers and a job runner, inside the limit from their first page on."""
    cgroup.limit(LIMIT)
    environ = {
        "MODEL_DIR": str(models),
        "WEB_CONCURRENCY": "4",
        "ADMIN_TOKEN": TOKEN,
        "ACCESS_LOG": "false",
        "MAX_STREAMS_PER_ADDRESS": "0",
        "JOB_MEMORY_BYTES": str(128 * MB),
    }
    command = ("/bin/sh", "-c", ENTER, str(cgroup.procs), *COMMAND)
    with tempfile.TemporaryDirectory(prefix="forkserve-soak-") as data:
        import_market(sqlite_source(Path(data)))
        with Service(environ | {"DATA_DIR": data}, command) as service:
            yield service


def report(soak: Soak, answered: dict[str, list[Answered]], killed: int) -> bool:
    """Prints it; True if all is as it must be."""
    requests = Table("kind", "done", "failed", "p50 ms", "p99 ms")
    failed = sum(soak.failures.values())
    for kind, answers in answered.items():
        bad = sum(not 200 <= one.status < 300 for one in answers)
        failed += bad
        seconds = [one.seconds for one in answers]
        requests.add(kind, len(answers), bad, f"{quantile(seconds, 0.5):.1f}", f"{quantile(seconds, 0.99):.1f}")
    for kind in ("stream", "reload"):
        requests.add(kind, soak.done[kind], soak.failures[kind], "", "")
    memory = Table("process", "second minute (MB)", "last minute (MB)", "growth (MB)")
    growths = []
    for name in ("master", WEB, RUNNER):
        begin = soak.samples.most(name, 60, 120)
        end = soak.samples.most(name, soak.seconds - 60, soak.seconds)
        growths.append(end - begin)
        memory.add(name, f"{begin / MB:.1f}", f"{end / MB:.1f}", f"{(end - begin) / MB:+.1f}")
    print(requests, memory, sep="\n\n")
    print(f"\nkilled: {killed}; failed: {failed}; most memory of all together: {soak.samples.peak / MB:.0f} MB")
    return not killed and not failed and max(growths) <= MOST_GROWTH and soak.samples.peak <= MOST_BYTES


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--leak", action="store_true", help="serve a model that leaks, too")
    options = arguments.parse_args()
    with demo_models() as models, memory_cgroup() as cgroup:
        if options.leak:
            add_leaking(models)
        with running(models, cgroup) as service:
            soak = Soak(service, cgroup, options.minutes * 60)
            answered = asyncio.run(soak.run())
        well = report(soak, answered, cgroup.killed())
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
