"""What bodies cost that are made to cost much: `python -m bench.costs`.

Each body of 4 MB goes to every route that takes one, within one process, so that its processor time is all its own:
how much it took, the longest stretch for which the event loop looked after nobody else, and the time a byte. Then a
real service: the memory that 100 unfinished bodies of one client take; and how long its health takes while clients of
each kind of `bench.attackers` come. Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from bench.attackers import ATTACKS, BYTES, GOOD, ROW, attacked
from bench.pace import quantile
from bench.table import Table
from examples.train import DEMOS, train
from harness.service import Service
from harness.wire import Connection, ask, request
from serving.app import Application, build, build_alerts
from serving.process.kernel import read_rss
from serving.settings import Settings
from serving.telemetry import logs

KEY = "a-key-only-for-this-run"
MAX_STRETCH_SECONDS, MAX_SECONDS, MAX_MB, MAX_HEALTH_MS = 0.05, 1.0, 64, 100
SLOW = b"[" + b",".join([b"1e308"] * len(ROW)) + b"]"
NAMES = b",".join(b'"%x":0' % number for number in range(300_000))
JOB = b'"operation":"predict","model":"wine",'
PIECE_BYTES = 64 * 1024

ELEMENTS = {
    "numbers": b"0",
    "slow numbers": b"1e308",
    "long numbers": b"1" * 4000,
    "empty arrays": b"[]",
    "empty objects": b"{}",
    "nested arrays": b"[" * 13 + b"]" * 13,
    "deep arrays": b"[" * 400 + b"]" * 400,
    "escapes": b'"' + b"\\u00e9" * 500 + b'"',
    "short texts": b'"\\n"',
    "good rows": GOOD,
    "rows of slow numbers": SLOW,
    "records": b'{"values":{"a":1e308}}',
}


def fill(element: bytes, start: bytes, end: bytes) -> bytes:
    """A body of BYTES, full of one element."""
    return start + b",".join([element] * ((BYTES - len(start) - len(end)) // (len(element) + 1))) + end


ROUTES = {
    "/v1/models/wine:predict": ("instances", b""),
    "/v1/models/wine:explain": ("instances", b""),
    "/v1/jobs": ("instances", JOB),
    "/v1/models/wine/outcomes": ("instances", b'"outcomes":[1],'),
    "/v1/entities/a/records": ("records", b""),
}

CSV = "/v1/jobs?operation=predict&model=wine"


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Routes, what their bodies are full of, and these."""
    for path, (member, more) in ROUTES.items():
        start = b'{%b"%b":[' % (more, member.encode())
        for name, element in ELEMENTS.items():
            yield path, name, fill(element, start, b"]}")
        yield path, "one of slow numbers", fill(b"1e308", start + b"[", b"]]}")
        yield path, "one of names", start + b"{" + NAMES + b"}]}"
        yield path, "parameters", fill(b"1e308", start + GOOD + b'],"parameters":{"classes":[', b"]}}")
        yield path, "unknown member", fill(b"[]", b'{"unknown":[', b"]}")
        yield path, "not JSON", b"[" * BYTES
    for name, content in {
        "line ends": b"\n" * BYTES,
        "short rows": b"1\n" * (BYTES // 2),
        "open quotes": b'a\n"\n' + b'",x"y,"\n' * (BYTES // 9),
        "columns": b"a," * (BYTES // 2),
    }.items():
        yield CSV, name, content


async def cost(app: Application, path: str, content: bytes) -> tuple[int, float, float]:
    """The status of the answer, the seconds of processor, and the longest stretch on the event loop."""
    loop, statuses, sent = asyncio.get_running_loop(), [], 0
    route, _, query = path.partition("?")
    kind = b"text/csv" if query else b"application/json"

    async def receive() -> Any:
        nonlocal sent
        if sent >= len(content):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        piece = content[sent : sent + PIECE_BYTES]
        sent += len(piece)
        return {"type": "http.request", "body": piece, "more_body": sent < len(content)}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": "POST",
        "path": route,
        "raw_path": route.encode(),
        "query_string": query.encode(),
        "headers": [(b"content-type", kind), (b"content-length", str(len(content)).encode()), (b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "scheme": "http",
        "state": {},
    }
    longest, last, done = 0.0, time.thread_time(), False

    def tick() -> None:
        nonlocal longest, last
        now = time.thread_time()  # and no other process's
        longest, last = max(longest, now - last), now
        if not done:
            loop.call_soon(tick)

    started = time.process_time()
    tick()
    await app(scope, receive, send)
    seconds = time.process_time() - started
    done = True
    await asyncio.sleep(0)
    return statuses[0], seconds, longest


async def measure(app: Application, *, everything: bool) -> bool:
    """Print the worst body of each route, or all; True if each keeps the bounds."""
    table, is_well = Table("route", "body", "MB", "status", "processor ms", "stretch ms", "ns/byte"), True
    worst: dict[str, list[tuple[float, tuple[object, ...]]]] = {}
    gc.collect()
    gc.freeze()  # as a master does before it forks; a collection would look like a stretch of work
    async with AsyncExitStack() as closing:
        await app.service.open(closing)
        for path, name, content in bodies():
            status, seconds, stretch = await cost(app, path, content)
            cells = (name, f"{len(content) / 1e6:.1f}", status, f"{seconds * 1e3:.0f}", f"{stretch * 1e3:.0f}")
            is_well &= seconds <= MAX_SECONDS and stretch <= MAX_STRETCH_SECONDS
            row = (*cells, f"{seconds / len(content) * 1e9:.0f}")
            worst.setdefault(path, []).append((max(seconds, 20 * stretch), row))
    for path, rows in worst.items():
        for _, figures in sorted(rows, key=lambda one: -one[0])[: None if everything else 2]:
            table.add(path, *figures)
    print(table)
    return is_well


def hold(service: Service, connections: int) -> bool:
    """Print what the unfinished bodies of one client take in memory; True if it is not too much."""

    def memory() -> float:
        return sum(read_rss(pid) for pid in service.workers) / 1e6

    content = b'{"instances":[' + b" " * (BYTES - 16)
    head = request("/v1/models/wine:predict", content_length=str(BYTES), x_api_key=KEY)
    before, most = memory(), 0.0
    with ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(Connection(service)).send(head + content)
            most = max(most, memory() - before)
    print(f"\n{connections} unfinished bodies of 4 MB: {most:.0f} MB\n")
    return most <= MAX_MB


class Probe(threading.Thread):
    """Asks for the health again and again."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self._over = threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        """Until it is over."""
        while not self._over.wait(0.01):
            started = time.perf_counter()
            is_well = ask(self._service, request("/health/live", method="GET")).status == 200
            self.seconds.append(time.perf_counter() - started if is_well else float("inf"))

    def stop(self) -> None:
        """Wait for its last answer."""
        self._over.set()
        self.join()


def endure(service: Service, seconds: float, only: str) -> bool:
    """Print how long the health takes under each kind of attack; True if that is short."""
    table, is_well = Table("while there are", "clients", "health p50 ms", "p99 ms"), True
    for name in ("", *(name for name in ATTACKS if only in name)):
        probe = Probe(service)
        with attacked(service.address, KEY, name) if name else nullcontext():
            probe.start()
            time.sleep(seconds)
            probe.stop()
        p99 = quantile(probe.seconds, 0.99)
        is_well &= p99 <= MAX_HEALTH_MS
        clients = ATTACKS[name].clients if name else 0
        table.add(name or "no attackers", clients, f"{quantile(probe.seconds, 0.5):.1f}", f"{p99:.1f}")
    print(table)
    return is_well


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--all", action="store_true", help="every body, not only the two worst of each route")
    arguments.add_argument("--connections", type=int, default=100)
    arguments.add_argument("--seconds", type=float, default=0.7, help="of each kind of attack")
    arguments.add_argument("--only", default="", help="kinds of attack whose names have these words, and nothing else")
    options = arguments.parse_args()
    logs.configure("error")
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory) / "models"
        train(next(demo for demo in DEMOS if demo.name == "wine"), models)
        settings = Settings(model_dir=models, data_dir=Path(directory) / "data", access_log=False)
        is_well = True
        if not options.only:
            is_well &= asyncio.run(measure(build(settings, build_alerts(settings)), everything=options.all))
        environ = {"MODEL_DIR": str(models), "API_KEY": KEY, "ACCESS_LOG": "false", "MAX_REQUESTS": "0"}
        with Service(environ) as service:
            if not options.only:
                is_well &= hold(service, options.connections)
            is_well &= endure(service, options.seconds, options.only)
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
