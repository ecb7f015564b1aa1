"""`forkserve load-test`: how many requests a running service answers, how fast, and how much memory that takes."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.cli.client import Place, RemoteService, Tally, Unreachable, post, send
from serving.cli.command import argument, command, count, fail, positive, progress, say, share
from serving.settings import Settings

MAX_MESSAGES = 20_000
"""Requests made before the first is sent, so that making them does not slow down sending; then they are repeated."""

PROGRESS_SECONDS = 1.0

PATIENCE_SECONDS = 30.0
"""How long the last answers are waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Requests to send: the shares of explanations and of repeated requests, and for how long."""

    seconds: float
    connections: int
    explained: float
    repeated: float
    models: tuple[str, ...] = ()
    """Names; empty for all."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome; `memory` is that of all processes before and after, in bytes, or None without the admin token."""

    tally: Tally
    seconds: float
    memory: tuple[int, int] | None

    @property
    def success(self) -> float:
        """The share of requests answered with 200."""
        sent = self.tally.answered + self.tally.lost
        return 1 - self.tally.failed / sent if sent else 0.0

    def lines(self) -> Iterator[str]:
        """The report, line by line."""
        statuses = ", ".join(f"{count:,} x {status}" for status, count in sorted(self.tally.statuses.items()))
        yield f"requests     {self.tally.answered + self.tally.lost:,} in {self.seconds:.1f} s"
        yield f"rate         {self.tally.answered / self.seconds:,.0f} answers/s"
        yield f"success      {self.success:.3%}"
        yield f"answers      {statuses or 'none'}; {self.tally.lost:,} lost"
        quantiles = ", ".join(f"p{share * 100:g} {self.tally.quantile(share) * 1e3:.1f}" for share in (0.5, 0.95, 0.99))
        yield f"latency      {quantiles} ms"
        if self.memory is not None:
            before, after = (size / 2**20 for size in self.memory)
            yield f"memory       {before:.0f} MB before, {after:.0f} MB after, all processes"


@command(
    argument("url", nargs="?", help="https://... of the service; default: this machine, port PORT"),
    argument("--seconds", type=positive, default=10.0, help="default: 10"),
    argument("--connections", type=count, default=20, help="default: 20"),
    argument("--explained", type=share, default=0.1, help="share of explanations; default: 0.1"),
    argument("--repeated", type=share, default=0.2, help="share of requests sent before; default: 0.2"),
    argument("--models", default="", help="names, separated by commas; default: all"),
)
def load_test(arguments: argparse.Namespace, settings: Settings) -> int:
    """Send a running service as many requests as it answers, and report how it went."""
    plan = Plan(
        seconds=arguments.seconds,
        connections=arguments.connections,
        explained=arguments.explained,
        repeated=arguments.repeated,
        models=tuple(filter(None, arguments.models.split(","))),
    )
    try:
        with RemoteService.of(arguments.url, settings) as service:
            report = _load(service, plan)
    except Unreachable as error:
        return fail(error)
    progress("")
    for line in report.lines():
        say(line)
    return 0 if report.tally.failed == 0 else 1


def _load(service: RemoteService, plan: Plan) -> Report:
    """Carry out a plan. Raises Unreachable."""
    served = service.models()
    if unknown := set(plan.models) - {model["name"] for model in served}:
        raise Unreachable(f"the service has no model {', '.join(sorted(unknown))}")
    messages = _messages(
        service.address, [model for model in served if not plan.models or model["name"] in plan.models], plan
    )
    before = service.memory() if service.may_read_metrics else 0
    started = time.monotonic()
    tally = asyncio.run(_send(service.address, messages, plan))
    seconds = time.monotonic() - started
    return Report(tally, seconds, (before, service.memory()) if service.may_read_metrics else None)


async def _send(address: str, messages: list[bytes], plan: Plan) -> Tally:
    tally, started = Tally(), time.monotonic()

    def until_the_end() -> Iterator[int]:
        numbers = itertools.count()
        while time.monotonic() - started < plan.seconds:
            yield next(numbers)

    async def report() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            progress(_line(tally, time.monotonic() - started, plan.seconds))

    reporting = asyncio.create_task(report())
    turns = itertools.cycle(messages)
    try:
        async with asyncio.timeout(plan.seconds + PATIENCE_SECONDS):
            await send(Place.of(address), turns, until_the_end(), tally, connections=plan.connections)
    except TimeoutError:  # the connections that still waited have counted it
        pass
    finally:
        reporting.cancel()
    return tally


def _line(tally: Tally, seconds: float, of: float) -> str:
    filled = min(20, int(20 * seconds / of))
    bar = "#" * filled + "." * (20 - filled)
    recent = sorted(tally.seconds[-2000:])
    p95 = recent[int(0.95 * (len(recent) - 1))] * 1e3 if recent else float("nan")
    return f"[{bar}] {seconds:3.0f} s  {tally.answered:,} answers  {tally.failed:,} failed  p95 {p95:.1f} ms"


def _messages(address: str, models: list[dict[str, Any]], plan: Plan) -> list[bytes]:
    """Requests for all models in turn, each with a row of its own except those that are repeated."""
    chance = random.Random(0)  # noqa: S311 - the same requests every time
    made: list[bytes] = []
    for model, number in zip(itertools.cycle(models), range(MAX_MESSAGES), strict=False):
        if made and chance.random() < plan.repeated:
            made.append(chance.choice(made[:100]))
            continue
        explainer = model["explainer"]
        explains = explainer is not None and not explainer["jobs_only"] and chance.random() < plan.explained
        path = f"/v1/models/{model['name']}:{'explain' if explains else 'predict'}"
        body = json.dumps({"instances": [_vary(model, number / MAX_MESSAGES)]}).encode()
        made.append(post(address + path, body))
    return made


def _vary(model: dict[str, Any], share: float) -> dict[str, Any]:
    """The model's example with another value, within bounds, of the first number that may vary."""
    example = dict(model["example"])
    for name, schema in model["schema"]["properties"].items():
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is not None and high is not None and low < high and schema.get("type") != "integer":
            return example | {name: low + (high - low) * share}
    return example
