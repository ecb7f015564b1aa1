"""A replay of 100,000 logged rows of a forest, beside predictions: seconds, and p99 before and meanwhile."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import pandas as pd
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier

from harness.jobs import call
from harness.service import ADMIN_TOKEN, Service
from registry.model import LoadedModel
from registry.store.add import add_version
from registry.store.aliases import promote
from serving.cli.client import Tally, post, send
from serving.monitoring.predictions.sqlite import SQLitePredictionStore
from serving.monitoring.predictions.store import LoggedPrediction, make_id

ROWS = 100_000
BEFORE_SECONDS = 5.0
CONNECTIONS, PAUSE = 4, 0.01
POLL_SECONDS = 0.1
BATCH = 2000


def make_forests(root: Path) -> tuple[LoadedModel, pd.DataFrame]:
    """Two versions of a forest of 100 trees, of which the first is live; and rows to ask about."""
    table = load_wine(as_frame=True)
    for seed in (0, 1):
        forest = RandomForestClassifier(100, random_state=seed).fit(table.data, table.target)
        model = add_version(root, "forest", forest, table.data)
    promote(root / "forest", "1")
    return model, table.data


async def fill(directory: Path, model: LoadedModel, data: pd.DataFrame) -> None:
    """Log as many rows as version 1 might have answered."""
    rows = data.sample(ROWS, replace=True, random_state=0) * 1.0
    answers = model.predict(rows.to_numpy())
    store, now = SQLitePredictionStore(directory), datetime.now(UTC)
    start = int(now.timestamp() * 1e6)
    logged = [
        LoggedPrediction(
            id=make_id(start + place, 0, place, 0),
            time=now,
            request_id=f"r{place}",
            place=0,
            model="forest",
            version="1",
            row=row,
            answer=answer,
            source="miss",
            milliseconds=1.0,
        )
        for place, (row, answer) in enumerate(zip(rows.to_dict("records"), answers, strict=True))
    ]
    for first in range(0, ROWS, BATCH):
        await store.add(logged[first : first + BATCH])
    await store.close()


def replay(service: Service) -> tuple[float, float]:
    """Have the rows replayed; the seconds that it took, and the share that agrees."""
    body = {"operation": "replay", "model": "forest", "version": "2", "parameters": {"last": ROWS}}
    bearer = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    started = time.perf_counter()
    content = json.dumps(body).encode()
    job = call(service, "POST", "/v1/jobs", content, Content_Type="application/json", **bearer).json["id"]
    while call(service, "GET", f"/v1/jobs/{job}", None, **bearer).json["state"] != "done":
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    return seconds, call(service, "GET", f"/v1/jobs/{job}/result", None, **bearer).json["share"]


async def measure(service: Service, data: pd.DataFrame) -> None:
    """Print the p99 of predictions before the replay and meanwhile, and how long it takes."""
    url = f"{service.address}/v1/models/forest:predict"
    messages = cycle([post(url, json.dumps({"instances": [row]}).encode()) for row in data.to_numpy().tolist()])

    async def asked(todo: Iterator[int]) -> Tally:
        tally = Tally()
        await send(service.address, messages, todo, tally, connections=CONNECTIONS, pause=PAUSE)
        return tally

    ends = time.perf_counter() + BEFORE_SECONDS
    before = await asked(iter(lambda: int(time.perf_counter() >= ends), 1))
    replaying = asyncio.create_task(asyncio.to_thread(replay, service))
    meanwhile = await asked(iter(lambda: int(replaying.done()), 1))
    seconds, share = await replaying
    quick, slow = before.quantile(0.99) * 1e3, meanwhile.quantile(0.99) * 1e3
    print(f"replay of {ROWS} rows: {seconds:.1f} s, {share:.1%} agree")
    print(f"p99 before {quick:.2f} ms, meanwhile {slow:.2f} ms: {slow / quick:.2f} times; failed {meanwhile.failed}")


def main() -> None:
    """Log rows, start a service, replay them."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model, data = make_forests(root / "models")
        asyncio.run(fill(root / "data", model, data))
        environ = {"MODEL_DIR": str(root / "models"), "DATA_DIR": str(root / "data"), "ADMIN_TOKEN": ADMIN_TOKEN}
        with Service({**environ, "MAX_REQUESTS": "0"}) as service:
            asyncio.run(measure(service, data))


if __name__ == "__main__":
    main()
