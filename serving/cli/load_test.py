"""`forkserve load-test`: how many requests a running service answers, how fast, and how much memory that takes."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from serving.cli.client import RemoteFault, RemoteService, Tally, post, send
from serving.cli.command import argument, command, fail, number, say
from serving.settings import Settings

MAX_MESSAGES = 20_000
"""Requests made before the first is sent, so that making them does not slow down sending; then they are repeated."""

PROGRESS_SECONDS = 1.0

PATIENCE_SECONDS = 30.0
"""Seconds to wait for the last answers."""


@command(
    argument("url", nargs="?", help="https://... of the service; default: this machine, port PORT"),
    argument("--seconds", type=number(float, 0.1), default=10.0, help="default: 10"),
    argument("--connections", type=number(int, 1), default=20, help="default: 20"),
    argument("--explained", type=number(float, 0, 1), default=0.1, help="share of explanations; default: 0.1"),
    argument("--repeated", type=number(float, 0, 1), default=0.2, help="share of requests sent before; default: 0.2"),
    argument("--models", default="", help="names, separated by commas; default: all"),
)
def load_test(arguments: argparse.Namespace, settings: Settings) -> int:
    """Send a running service as many requests as it answers, and report how it went."""
    try:
        with RemoteService.of(arguments.url, settings) as service:
            messages = _messages(service, _selected(service, arguments.models), arguments)
            before = service.memory()
            started = time.monotonic()
            tally = asyncio.run(_send(service.address, messages, arguments.seconds, arguments.connections))
            seconds = time.monotonic() - started
            after = service.memory()
    except RemoteFault as error:
        return fail(error)
    _progress("")
    for line in _report(tally, seconds):
        say(line)
    if before is not None and after is not None:
        say(f"memory       {before / 2**20:.0f} MB before, {after / 2**20:.0f} MB after, all processes")
    return 0 if tally.failed == 0 else 1


def _selected(service: RemoteService, names: str) -> list[dict[str, Any]]:
    served = {model["name"]: model for model in service.models()}
    wanted = [name for name in names.split(",") if name] or list(served)
    if unknown := [name for name in wanted if name not in served]:
        raise RemoteFault(f"the service has no model {', '.join(unknown)}")
    return [served[name] for name in wanted]


async def _send(address: str, messages: list[bytes], seconds: float, connections: int) -> Tally:
    tally, started = Tally(), time.monotonic()

    def until_the_end() -> Iterator[int]:
        numbers = itertools.count()
        while time.monotonic() - started < seconds:
            yield next(numbers)

    async def show_progress() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            _progress(_line(tally, time.monotonic() - started, seconds))

    showing = asyncio.create_task(show_progress())
    try:
        async with asyncio.timeout(seconds + PATIENCE_SECONDS):
            await send(address, itertools.cycle(messages), until_the_end(), tally, connections=connections)
    except TimeoutError:  # the connections that still waited have counted it
        pass
    finally:
        showing.cancel()
    return tally


def _report(tally: Tally, seconds: float) -> Iterator[str]:
    sent = tally.answered + tally.lost
    statuses = ", ".join(f"{count:,} x {status}" for status, count in sorted(tally.statuses.items()))
    quantiles = ", ".join(f"p{share * 100:g} {tally.quantile(share) * 1e3:.1f}" for share in (0.5, 0.95, 0.99))
    yield f"requests     {sent:,} in {seconds:.1f} s"
    yield f"rate         {tally.answered / seconds:,.0f} answers/s"
    yield f"success      {1 - tally.failed / sent if sent else 0.0:.3%}"
    yield f"answers      {statuses or 'none'}; {tally.lost:,} lost"
    yield f"latency      {quantiles} ms"


def _line(tally: Tally, seconds: float, of: float) -> str:
    filled = min(20, int(20 * seconds / of))
    bar = "#" * filled + "." * (20 - filled)
    recent = sorted(tally.seconds[-2000:])
    p95 = recent[int(0.95 * (len(recent) - 1))] * 1e3 if recent else float("nan")
    return f"[{bar}] {seconds:3.0f} s  {tally.answered:,} answers  {tally.failed:,} failed  p95 {p95:.1f} ms"


def _progress(line: str) -> None:
    """Show a line in the same place of a terminal; elsewhere below the last one."""
    sys.stderr.write(f"\r{line}\x1b[K" if sys.stderr.isatty() else f"{line}\n")
    sys.stderr.flush()


def _messages(service: RemoteService, models: list[dict[str, Any]], arguments: argparse.Namespace) -> list[bytes]:
    """Requests for all models in turn, each with a row of its own except those that are repeated."""
    chance = random.Random(0)  # noqa: S311 - the same requests every time
    made: list[bytes] = []
    for model, index in zip(itertools.cycle(models), range(MAX_MESSAGES), strict=False):
        if made and chance.random() < arguments.repeated:
            made.append(chance.choice(made[:100]))
            continue
        explainer = model["explainer"]
        explains = explainer is not None and not explainer["jobs_only"] and chance.random() < arguments.explained
        path = f"/v1/models/{model['name']}:{'explain' if explains else 'predict'}"
        body = json.dumps({"instances": [_vary(model, index / MAX_MESSAGES)]}).encode()
        made.append(post(service.address + path, body, service.key))
    return made


def _vary(model: dict[str, Any], share: float) -> dict[str, Any]:
    """The model's example with another value of the first number that may vary, within the range seen, or text."""
    example = dict(model["example"])
    for name, schema in model["schema"]["properties"].items():
        seen = schema.get("x-seen", schema)
        low, high = seen.get("minimum"), seen.get("maximum")
        if low is not None and high is not None and low < high and "integer" not in schema["type"]:
            return example | {name: low + (high - low) * share}
    for name, schema in model["schema"]["properties"].items():
        if "maxLength" in schema:
            return example | {name: f"{share} {example[name]}"[: schema["maxLength"]]}
    return example
