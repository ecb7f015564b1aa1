"""What the log of predictions costs: `python -m bench.logged`.

The forest, 64 keep-alive connections, one row a request, every row new, two workers; with and without
`LOG_PREDICTIONS=all`, both services at once, in turns of a second, because machines differ from one second to the next.
Then 5,000 rows a second for a while, of which none may be lost. wrk must be on PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from bench import wrk
from bench.pace import Pace
from bench.predict import CONNECTIONS, QUIET, shot
from bench.table import Table
from harness.admin import admin_figures
from harness.service import ADMIN_TOKEN, Service, demo_models
from serving.cli.client import post
from serving.process.kernel import RECORDER, child_pids, name_of

FOREST = "breast-cancer"
ROWS_A_SECOND = 5000
ROWS_A_REQUEST = 10
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def serve(models: Path, logs: str) -> Service:
    environ = {"MODEL_DIR": str(models), "ADMIN_TOKEN": ADMIN_TOKEN, "LOG_PREDICTIONS": logs}
    return Service(QUIET | environ)


def processor_seconds(pids: list[int]) -> float:
    """What processes have used so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(own[11]) + int(own[12]) for own in fields) * TICK_SECONDS


def recorders(service: Service) -> list[int]:
    return [pid for pid in child_pids(service.master) if name_of(pid) == RECORDER]


def logged(service: Service) -> dict[str, float]:
    """The rows of the log so far, by what became of them."""
    found: dict[str, float] = admin_figures(service)["totals"]["logged_predictions"]
    return found


def compare(models: Path, turns: int) -> Table:
    """Requests a second and processor time of the workers, in turns."""
    table = Table("LOG_PREDICTIONS", "requests/s", "x", "worker us a request", "recorder us", "rows", "dropped")
    with ExitStack() as stack:
        services = {logs: stack.enter_context(serve(models, logs)) for logs in ("off", "all")}
        target = shot(models, FOREST)
        rates: dict[str, list[float]] = {logs: [] for logs in services}
        used = dict.fromkeys(services, 0.0)
        for turn in range(turns + 1):
            for logs, service in services.items():
                before = processor_seconds(service.workers)
                load = wrk.run(service.address, target, connections=CONNECTIONS, seconds=1, seed=turn * 100_000)
                if turn:  # the first one warms up
                    rates[logs].append(load.rate)
                    used[logs] += processor_seconds(service.workers) - before
        ratio = statistics.median(a / b for a, b in zip(rates["all"], rates["off"], strict=True))
        for logs, service in services.items():
            requests = sum(rates[logs])
            own = logged(service) if logs == "all" else {"queued": 0, "dropped": 0}
            recorder = processor_seconds(recorders(service)) / max(1, own["queued"]) * 1e6
            table.add(
                logs,
                f"{statistics.median(rates[logs]):.0f}",
                f"{ratio:.3f}" if logs == "all" else "",
                f"{used[logs] / requests * 1e6:.0f}",
                f"{recorder:.0f}",
                f"{own['queued'] + own['dropped']:.0f}",
                f"{own['dropped']:.0f}",
            )
    return table


def messages(service: Service) -> Iterator[bytes]:
    """Requests of some rows, every row new."""
    example = service.get(f"/v1/models/{FOREST}")["example"]
    first = next(iter(example))
    for number in count():
        rows = [
            example | {first: example[first] + (number * ROWS_A_REQUEST + row) / 1e7} for row in range(ROWS_A_REQUEST)
        ]
        yield post(f"{service.address}/v1/models/{FOREST}:predict", json.dumps({"instances": rows}).encode())


def sustain(models: Path, seconds: float) -> Table:
    """Rows at a steady pace: all of them have to be in the store at the end."""
    table = Table("rows/s", "queued", "dropped", "stored", "recorder, share of a processor", "MB of the file")
    with serve(models, "all") as service:
        pace = Pace(service.address)
        answered = asyncio.run(pace.run(messages(service), ROWS_A_SECOND / ROWS_A_REQUEST, seconds))
        used = processor_seconds(recorders(service))
        found = logged(service)
        while (later := logged(service))["stored"] > found["stored"] or later["stored"] < later["queued"]:
            found = later
        rate = len(answered) * ROWS_A_REQUEST / max(one.due + one.seconds for one in answered)
        size = sum(path.stat().st_size for path in Path(service.data).glob("predictions.db*"))
        table.add(
            f"{rate:.0f}",
            f"{later['queued']:.0f}",
            f"{later['dropped']:.0f}",
            f"{later['stored']:.0f}",
            f"{used / seconds:.2f}",
            f"{size / 1e6:.0f}",
        )
    return table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=10, help="seconds for each of the two")
    arguments.add_argument("--seconds", type=float, default=10, help="of the steady pace")
    options = arguments.parse_args()
    with demo_models() as models:
        print(compare(models, options.turns))
        print(sustain(models, options.seconds))


if __name__ == "__main__":
    main()
