"""What bodies cost that are made to cost much: `python -m bench.costs`.

Each body of 4 MB goes to every route that takes one, within one process, so that its processor time is all its own:
how much it took, the longest stretch for which the event loop looked after nobody else, and the time a byte. Then a
real service: the memory that 100 unfinished bodies of one client take, and how long its health takes meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

from bench.pace import quantile
from bench.table import Table
from examples.train import DEMOS, train
from harness.service import Service
from harness.wire import Connection, ask, request
from serving.app import Application, build, build_alerts
from serving.process.kernel import read_rss
from serving.settings import Settings
from serving.telemetry import logs

BYTES = 4 * 1024 * 1024
ROW = [13.2, 1.78, 2.14, 11.2, 100, 2.65, 2.76, 0.26, 1.28, 4.38, 1.05, 3.4, 1050]
GOOD = json.dumps(ROW).encode()
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


async def measure(app: Application, *, everything: bool) -> None:
    """Print the worst body of each route, or all."""
    table = Table("route", "body", "MB", "status", "processor ms", "stretch ms", "ns/byte")
    worst: dict[str, list[tuple[float, tuple[object, ...]]]] = {}
    async with AsyncExitStack() as closing:
        await app.service.open(closing)
        for path, name, content in bodies():
            status, seconds, stretch = await cost(app, path, content)
            cells = (name, f"{len(content) / 1e6:.1f}", status, f"{seconds * 1e3:.0f}", f"{stretch * 1e3:.0f}")
            row = (*cells, f"{seconds / len(content) * 1e9:.0f}")
            worst.setdefault(path, []).append((max(seconds, 20 * stretch), row))
    for path, rows in worst.items():
        for _, figures in sorted(rows, key=lambda one: -one[0])[: None if everything else 2]:
            table.add(path, *figures)
    print(table)


def hold(service: Service, connections: int) -> None:
    """Print what the unfinished bodies of one client take in memory, and the health of the service meanwhile."""

    def memory() -> float:
        return sum(read_rss(pid) for pid in service.workers) / 1e6

    content = b'{"instances":[' + b" " * (BYTES - 16)
    head = request("/v1/models/wine:predict", content_length=str(BYTES))
    before, most, seconds = memory(), 0.0, []
    with ExitStack() as stack:
        for _ in range(connections):
            connection = stack.enter_context(Connection(service))
            connection.send(head + content)
            started = time.perf_counter()
            assert ask(service, request("/health/live", method="GET")).status == 200
            seconds.append(time.perf_counter() - started)
            most = max(most, memory() - before)
    print(f"{connections} unfinished bodies of 4 MB: {most:.0f} MB; health p99 {quantile(seconds, 0.99):.1f} ms")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--all", action="store_true", help="every body, not only the two worst of each route")
    arguments.add_argument("--connections", type=int, default=100)
    options = arguments.parse_args()
    logs.configure("error")
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory) / "models"
        train(next(demo for demo in DEMOS if demo.name == "wine"), models)
        settings = Settings(model_dir=models, data_dir=Path(directory) / "data", access_log=False)
        asyncio.run(measure(build(settings, build_alerts(settings)), everything=options.all))
        with Service({"MODEL_DIR": str(models), "ACCESS_LOG": "false", "MAX_REQUESTS": "0"}) as service:
            hold(service, options.connections)


if __name__ == "__main__":
    main()
