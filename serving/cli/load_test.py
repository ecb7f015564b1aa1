"""A load test of a running service: how many requests, how quickly, how many in vain, and what memory they take."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from serving.cli.client import Place, Tally, post, send
from serving.cli.errors import Unreachable
from serving.cli.remote import RemoteService

MESSAGES = 20_000
"""Made before the first is sent, so that making them takes nothing from sending them."""

PROGRESS_SECONDS = 1.0

PATIENCE_SECONDS = 30.0
"""For the last answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sent, for how long. Of the requests, `explained` are explanations and `repeated` were sent before."""

    seconds: float
    connections: int
    explained: float
    repeated: float
    models: tuple[str, ...] = ()
    """All if empty."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it; memory of all processes in bytes before and after, if the figures may be seen."""

    tally: Tally
    seconds: float
    memory: tuple[int, int] | None

    @property
    def success(self) -> float:
        """The share of requests that was answered 200."""
        sent = self.tally.answered + self.tally.lost
        return 1 - self.tally.failed / sent if sent else 0.0

    def lines(self) -> Iterator[str]:
        """For the terminal."""
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


def run(service: RemoteService, plan: Plan, progress: Callable[[str], None]) -> Report:
    """`progress` is given a line every second. Raises Unreachable."""
    models = [model for model in service.models() if not plan.models or model["name"] in plan.models]
    if not models:
        raise Unreachable("none of these models is served there")
    messages = _messages(service.address, models, plan)
    before = _memory(service)
    started = time.monotonic()
    tally = asyncio.run(_run(service.address, messages, plan, progress))
    seconds = time.monotonic() - started
    after = _memory(service)
    return Report(tally, seconds, (before, after) if before is not None and after is not None else None)


async def _run(address: str, messages: list[bytes], plan: Plan, progress: Callable[[str], None]) -> Tally:
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
    except TimeoutError:  # counted by those who waited
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
    """Requests in turn for all models, each with rows of its own but for those that are repeated."""
    chance = random.Random(0)  # noqa: S311 - the same requests every time are wanted
    made: list[bytes] = []
    for model, number in zip(itertools.cycle(models), range(MESSAGES), strict=False):
        if made and chance.random() < plan.repeated:
            made.append(chance.choice(made[:100]))
            continue
        explainer = model["explainer"]
        explains = explainer is not None and not explainer["jobs_only"] and chance.random() < plan.explained
        path = f"/v1/models/{model['name']}:{'explain' if explains else 'predict'}"
        body = json.dumps({"instances": [_vary(model, number / MESSAGES)]}).encode()
        made.append(post(address + path, body))
    return made


def _vary(model: dict[str, Any], share: float) -> dict[str, Any]:
    """The model's example with another value, within its bounds, of its first number that may vary."""
    example = dict(model["example"])
    for name, schema in model["schema"]["properties"].items():
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is not None and high is not None and low < high and schema.get("type") != "integer":
            return example | {name: low + (high - low) * share}
    return example


def _memory(service: RemoteService) -> int | None:
    if not service.may_see_figures:
        return None
    return int(service.get("/api/admin/metrics", admin=True)["pss_bytes"])
