"""Measures predictions while Redis or Supabase fails: `python -m bench.faults` prints a table, one row per fault.

Predictions, explanations, job submissions and entity predictions come at their own pace; the fault begins, lasts, and
ends. Predictions must all be answered, be little later before the breakers open and not later after it, and all must be
as before within ten seconds of the end; `/health` must be answered 200 throughout and say what is so.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio

from bench.faulty import FaultyProxy
from bench.pace import Answered, Pace, quantile
from bench.table import Table
from bench.traffic import Traffic
from harness.entities import import_market, sqlite_source
from harness.servers import RedisServer, redis_server
from harness.service import Service, demo_models
from harness.supabase import SupabaseServer, postgres_server, supabase_server
from serving.entities.supabase import SupabaseEntityStore

BEGIN, OPENED, END, LAST = 9.0, 12.0, 20.0, 32.0
"""Seconds: the fault begins; by now the breakers are open; the fault ends; the load ends."""

RATES = {"predict": 100.0, "explain": 25.0, "entity": 25.0, "job": 2.5}
"""Requests a second. So many predictions, because their median is compared to a millisecond."""

HEALTH_SECONDS = 0.1
MODEL = "breast-cancer"

Change = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Fault:
    """Something that happens to a server, and its end."""

    name: str
    begin: Change
    end: Change


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the health: when, the answer's status, and whether it says that all is well."""

    at: float
    status: int
    well: bool


def redis_faults(server: RedisServer, proxy: FaultyProxy) -> Iterator[Fault]:
    """All that a Redis can suffer from."""
    for kind in ("refused", "black-holed", "slow", "garbage"):
        yield Fault(kind, partial(proxy.be, kind), partial(proxy.be, "none"))

    async def tell(*command: str) -> None:
        async with redis.asyncio.Redis(port=server.port) as client:
            await client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def pause() -> None:
        server.pause()

    async def resume() -> None:
        server.resume()

    yield Fault("stopped", pause, resume)
    yield Fault("read-only", partial(tell, "REPLICAOF", "127.0.0.1", "1"), partial(tell, "REPLICAOF", "NO", "ONE"))
    yield Fault(
        "out of memory",
        partial(tell, "CONFIG", "SET", "maxmemory", "1"),
        partial(tell, "CONFIG", "SET", "maxmemory", "0"),
    )


def supabase_faults(server: SupabaseServer, proxy: FaultyProxy) -> Iterator[Fault]:
    """All that a Supabase can suffer from; that its PostgreSQL takes no more connections stands for want of memory."""
    for kind in ("refused", "black-holed", "slow", "garbage"):
        yield Fault(kind, partial(proxy.be, kind), partial(proxy.be, "none"))

    async def tell(*statements: str) -> None:
        for statement in statements:
            await asyncio.to_thread(server.postgres.run, "postgres", "--command", statement)

    async def pause() -> None:
        server.pause()

    async def resume() -> None:
        server.resume()

    reload = "select pg_reload_conf()"
    read_only = "alter system set default_transaction_read_only = on"
    lock_out = f"alter database {server.database} allow_connections false"
    end = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{server.database}'"
    yield Fault("stopped", pause, resume)
    yield Fault(
        "read-only",
        partial(tell, read_only, reload),
        partial(tell, "alter system reset default_transaction_read_only", reload),
    )
    yield Fault(
        "no connections",
        partial(tell, lock_out, end),
        partial(tell, f"alter database {server.database} allow_connections true"),
    )


async def suffer(service: Service, fault: Fault) -> tuple[dict[str, list[Answered]], list[Look]]:
    """The load, with the fault in its midst."""
    traffic = Traffic(service, MODEL)
    kinds = {"predict": traffic.infer("predict"), "explain": traffic.infer("explain"), "job": traffic.jobs(1)}
    kinds["entity"] = traffic.entities("AAPL", "IBM")
    looks: list[Look] = []
    watching = asyncio.create_task(watch(service, looks))
    changing = asyncio.create_task(change(fault))
    answered = await asyncio.gather(
        *(Pace(service.address).run(messages, RATES[kind], LAST) for kind, messages in kinds.items())
    )
    await changing
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return dict(zip(kinds, answered, strict=True)), looks


async def change(fault: Fault) -> None:
    await asyncio.sleep(BEGIN)
    await fault.begin()
    await asyncio.sleep(END - BEGIN)
    await fault.end()


async def watch(service: Service, looks: list[Look]) -> None:
    """On a connection of its own, as a platform looks; a look that fails has the status 0."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with httpx.AsyncClient(base_url=service.address, timeout=5, trust_env=False) as client:
        while True:
            at = loop.time() - started
            try:
                answer = await client.get("/health")
                looks.append(Look(at, answer.status_code, answer.json()["status"] == "ok"))
            except httpx.HTTPError:
                looks.append(Look(at, 0, well=False))
            await asyncio.sleep(HEALTH_SECONDS)


def judge(table: Table, who: str, fault: Fault, answered: dict[str, list[Answered]], looks: list[Look]) -> bool:
    """A row; True if all is as it must be."""
    predictions = answered["predict"]

    def seconds(begin: float, end: float) -> list[float]:
        return [one.seconds for one in predictions if begin <= one.due < end]

    before, opening, opened = seconds(1, BEGIN), seconds(BEGIN, OPENED), seconds(OPENED, END)
    added = quantile(opening, 0.99) - quantile(before, 0.99)
    later = quantile(opened, 0.5) - quantile(before, 0.5)
    lost = sum(one.status != 200 for one in predictions)
    unanswered = sum(look.status != 200 for look in looks)
    told = any(not look.well for look in looks if BEGIN <= look.at < END)
    back = max((look.at for look in looks if not look.well), default=END) - END
    others = {kind: sum(one.status >= 500 or not one.status for one in answered[kind]) for kind in answered}
    del others["predict"]
    table.add(
        who,
        fault.name,
        len(predictions),
        lost,
        f"{added:+.1f}",
        f"{later:+.2f}",
        f"{max(back, 0):.1f}",
        "yes" if told else "no",
        unanswered,
        ", ".join(f"{count} {kind}" for kind, count in others.items() if count) or "none",
    )
    return not lost and not unanswered and added <= 50 and later <= 1 and back <= 10 and told


@asynccontextmanager
async def services(
    models: Path, data: Path, server: RedisServer | SupabaseServer
) -> AsyncIterator[tuple[Service, FaultyProxy]]:
    """The service, and what stands between it and the server."""
    async with FaultyProxy(server.port) as proxy:
        environ = {"MODEL_DIR": str(models), "DATA_DIR": str(data), "MAX_REQUESTS": "0", "ACCESS_LOG": "false"}
        if isinstance(server, SupabaseServer):
            environ |= {"SUPABASE_URL": f"http://127.0.0.1:{proxy.port}", "SUPABASE_SERVICE_KEY": server.key}
        else:
            environ["REDIS_URL"] = proxy.url
        service = await asyncio.to_thread(Service(environ).__enter__)
        try:
            yield service, proxy
        finally:
            await asyncio.to_thread(service.stop)


async def run(models: Path, only: list[str]) -> tuple[Table, bool]:
    headings = ("added, ms", "then, ms", "back, s", "health tells", "health lost", "others refused")
    table = Table("server", "fault", "predictions", "lost", *headings)
    well = True
    with tempfile.TemporaryDirectory(prefix="forkserve-faults-") as directory:
        data = Path(directory)
        with redis_server() as redis_:
            await asyncio.to_thread(import_market, sqlite_source(data))
            async with services(models, data, redis_) as (service, proxy):
                well &= await try_all(table, "Redis", service, redis_faults(redis_, proxy), only)
        with postgres_server() as postgres, supabase_server(postgres) as server:
            source = SupabaseEntityStore(server.url, server.key, keep_records=1000, keep_outcomes=1000)
            await asyncio.to_thread(import_market, source)
            async with services(models, data, server) as (service, proxy):
                well &= await try_all(table, "Supabase", service, supabase_faults(server, proxy), only)
    return table, well


async def try_all(table: Table, who: str, service: Service, faults: Iterator[Fault], only: list[str]) -> bool:
    """A row each, but for those that are not wanted; True if all is as it must be."""
    well = True
    for fault in faults:
        if not only or fault.name in only or who in only:
            answered, looks = await suffer(service, fault)
            well &= judge(table, who, fault, answered, looks)
    return well


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", nargs="*", default=[], help="names of faults, or of servers")
    options = arguments.parse_args()
    with demo_models() as models:
        table, well = asyncio.run(run(models, options.only))
    print(table)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
