"""Good requests beside hostile ones: `python -m bench.hostile`.

Predictions and explanations come at a steady pace, with a key of their own. Beside them, three in ten of all requests
are hostile: fuzzed, slow, costly, aborted (`bench.attackers`, all kinds mixed). Every good request must be answered,
with the bytes that the model gives in this process; no kind of process may grow, no worker end, and every line of the
log must be JSON. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import uvloop

from bench.attackers import attacked
from bench.pace import Answered, Pace, quantile
from bench.table import Table
from examples.train import DEMOS, train
from harness.service import Service
from registry.registry import load_registry
from serving.cli.client import Connection, post
from serving.http.keys import digest_of
from serving.predict.operation import EVERYTHING, VERBS, Operation, encode_answer
from serving.process.kernel import RUNNER, WEB, child_pids, name_of, read_memory

MODELS = ("breast-cancer", "diabetes", "wine")
GOOD_KEY, HOSTILE_KEY = "the-key-of-good-clients", "the-key-of-hostile-clients"
HOSTILE_SHARE = 0.3
EXPLAINED_SHARE = 0.1
ROWS = 20_000
"""Different rows of each model: a worker caches half of them."""

MB = 1024 * 1024
MAX_GROWTH = 10 * MB
WRONG = -1
"""The status of an answer with other bytes than it should have."""


class CheckedConnection(Connection):
    """Compares each answer with what it should be."""

    def __init__(self, expected: Mapping[bytes, bytes]) -> None:
        """The body of the answer to each message."""
        super().__init__()
        self._expected = expected

    def request(self, message: bytes) -> asyncio.Future[int]:
        self._message, self._body = message, b""
        return super().request(message)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self._parser is not None
        assert self._answer is not None
        if self._parser.get_status_code() == 200 and self._body != self._expected[self._message]:
            self._answer.set_result(WRONG)
        super().on_message_complete()


def expect(address: str, models: Path, rows: int) -> dict[bytes, bytes]:
    """Good requests, and the body of the answer to each: what the models here give."""
    expected, source = {}, random.Random(0)
    for model in load_registry(models):
        low, high = model.background.min(axis=0) + 0.001, model.background.max(axis=0) - 0.001
        for _ in range(rows):
            verb = VERBS[source.random() < EXPLAINED_SHARE]
            instance = [round(float(source.uniform(*bounds)), 3) for bounds in zip(low, high, strict=True)]
            body = json.dumps({"instances": [instance]}).encode()
            message = post(f"{address}/v1/models/{model.name}:{verb}", body, GOOD_KEY)
            answers = Operation(model, verb).answer(model.schema.rows([instance]), EVERYTHING)
            expected[message] = encode_answer(model, {verb: answers})
    return expected


class Watch:
    """Follows the memory, the workers and the log of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = time.monotonic()
        self._read_bytes = 0
        self._workers = service.workers
        self.private: dict[str, list[tuple[float, int]]] = {}
        """Seconds, and private bytes of the largest process of each kind."""
        self.lines: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Look once a second."""
        while (now := time.monotonic() - self._started) < seconds:
            await asyncio.to_thread(self._look, now)
            await asyncio.sleep(1)

    def _look(self, now: float) -> None:
        largest = Counter[str]()
        for pid in (self._service.master, *child_pids(self._service.master)):
            with suppress(OSError):  # it has just ended
                name = "master" if pid == self._service.master else name_of(pid)
                largest[name] = max(largest[name], read_memory(pid).private)
        for name, size in largest.items():
            self.private.setdefault(name, []).append((now, size))
        self.read_log()

    def read_log(self) -> None:
        """Count the lines since the last time by their level; those that are no JSON are printed."""
        written = self._service.log_after(self._read_bytes)
        self._read_bytes += len(written)
        for line in written.splitlines():
            try:
                self.lines[json.loads(line)["level"]] += 1
            except (ValueError, KeyError, TypeError):
                self.lines["not JSON"] += 1
                print("not JSON:", line[:300])

    def growth(self, name: str) -> int:
        """By how much the largest such process is larger in the last quarter than in the second."""
        samples = self.private[name]
        quarter = max(len(samples) // 4, 1)
        return max(size for _, size in samples[-quarter:]) - max(size for _, size in samples[quarter : 2 * quarter])

    @property
    def ended(self) -> int:
        """Workers that were there at the start and have ended."""
        return len(set(self._workers) - set(self._service.workers))


def endless(expected: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """All messages in another order each time."""
    messages = list(expected)
    while True:
        random.shuffle(messages)
        yield from messages


async def play(watch: Watch, pace: Pace, messages: Iterator[bytes], rate: float, seconds: float) -> list[Answered]:
    """What became of the good requests."""
    watching = asyncio.create_task(watch.run(seconds))
    answered = await pace.run(messages, rate, seconds)
    await watching
    return answered


def report(answered: list[Answered], watch: Watch, hostile: int, seconds: float) -> bool:
    """Print it; True if all is as it must be."""
    statuses = Counter(one.status for one in answered)
    wrong, lost = statuses.pop(WRONG, 0), statuses.pop(0, 0)
    refused = sum(count for status, count in statuses.items() if status != 200)
    times = [one.seconds for one in answered]
    requests = Table("good", "a second", "lost", "refused", "wrong", "p50 ms", "p99 ms", "hostile", "a second")
    figures = (f"{quantile(times, 0.5):.1f}", f"{quantile(times, 0.99):.1f}", hostile, f"{hostile / seconds:.0f}")
    requests.add(len(answered), f"{len(answered) / seconds:.0f}", lost, refused, wrong, *figures)
    memory, growths = Table("process", "private MB, second quarter", "growth by the last"), []
    for name in ("master", WEB, RUNNER):
        samples, growth = watch.private[name], watch.growth(name)
        quarter = max(len(samples) // 4, 1)
        growths.append(growth)
        begin = max(size for _, size in samples[quarter : 2 * quarter])
        memory.add(name, f"{begin / MB:.1f}", f"{growth / MB:+.1f}")
    print(requests, memory, sep="\n\n")
    print(f"\nworkers ended: {watch.ended}; lines of the log: {dict(watch.lines)}; statuses: {dict(statuses)}")
    is_well = not (wrong or lost or refused or watch.ended or watch.lines["error"] or watch.lines["not JSON"])
    return is_well and max(growths) <= MAX_GROWTH


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=600)
    arguments.add_argument("--rate", type=float, default=1000, help="good requests a second")
    arguments.add_argument("--rows", type=int, default=ROWS, help="different rows of each model")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="forkserve-hostile-") as directory:
        models = Path(directory) / "models"
        for demo in DEMOS:
            if demo.name in MODELS:
                train(demo, models)
        entries = (f"{key}:{digest_of(key).hex()}:predict,write,read" for key in (GOOD_KEY, HOSTILE_KEY))
        environ = {"MODEL_DIR": str(models), "API_KEYS": " ".join(entries), "MAX_REQUESTS": "0"}
        with Service(environ) as service:
            expected = expect(service.address, models, options.rows)
            watch, pace = Watch(service), Pace(service.address, partial(CheckedConnection, expected))
            hostile_rate = options.rate * HOSTILE_SHARE / (1 - HOSTILE_SHARE)
            with attacked(service.address, HOSTILE_KEY, rate=hostile_rate) as attackers:
                answered = uvloop.run(play(watch, pace, endless(expected), options.rate, options.seconds))
                hostile = attackers.played.value
            watch.read_log()
            is_well = report(answered, watch, hostile, options.seconds)
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
