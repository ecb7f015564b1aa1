"""Chunks of jobs computed here and on a Dask cluster of this machine: `python -m bench.scaleout` prints a table.

40 chunks, explained by the kernel of a forest and predicted by a model that sleeps, which shows what a cluster gives
where it has cores of its own; then the same while one of two workers is killed. Every answer is compared with the one
that is computed here. What a cluster costs is the time of a call of one row.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from bench.models import add_forest
from bench.table import Table
from harness.cluster import DaskCluster
from harness.estimators import SleepingRegressor
from registry.explain.explanation import Selection
from registry.registry import Registry, load_registry
from registry.rows.features import Rows
from registry.store.add import add_version
from registry.store.options import DEFAULT_OPTIONS
from serving.jobs.cluster import Cluster, pack_version
from serving.jobs.rows import Backend, LocalBackend
from serving.predict.operation import Operation, encode_rows, make_operations
from serving.process.executor import Executor
from serving.telemetry import logs

CHUNKS = 40
ROWS = 20
AT_ONCE = 8
SECONDS_A_ROW = 0.005
TIMEOUT = 120.0


def add_models(root: Path) -> None:
    """One that computes and one that sleeps."""
    add_forest(root)
    sample = pd.DataFrame({"seconds": np.linspace(0.0, 0.001, 5)})
    add_version(root, "sleepy", SleepingRegressor().fit(sample.to_numpy(), None), sample, margin=1e6)


def work(registry: Registry) -> list[tuple[str, Operation, list[Rows]]]:
    """The operation, and the rows of its chunks."""
    forest, sleepy = registry.get("forest"), registry.get("sleepy")
    rows = np.random.default_rng(0).normal(size=(CHUNKS * ROWS, len(forest.schema.names)))
    times = SECONDS_A_ROW + 1e-8 * np.arange(CHUNKS * ROWS).reshape(-1, 1)
    return [
        ("explain forest", Operation(forest, "explain"), np.split(rows, CHUNKS)),
        ("predict sleepy", Operation(sleepy, "predict"), np.split(times, CHUNKS)),
    ]


async def compute(backend: Backend, operation: Operation, chunks: Sequence[Rows]) -> list[bytes]:
    """All answers, as many chunks in flight as an attempt at a job has."""
    turns = asyncio.Semaphore(backend.at_once)

    async def one(rows: Rows) -> bytes:
        async with turns:
            return await backend.run(operation, encode_rows(rows, Selection()), timeout=TIMEOUT)

    return list(await asyncio.gather(*map(one, chunks)))


async def call_seconds(backend: Backend, operation: Operation, row: Rows) -> float:
    """The median time of a call with one row that takes no time."""
    seconds = []
    for _ in range(100):
        started = time.perf_counter()
        await backend.run(operation, encode_rows(row, Selection()), timeout=TIMEOUT)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


async def measure(
    table: Table, where: str, backend: Backend, registry: Registry, wanted: dict[str, list[bytes]]
) -> int:
    """The rows of the table for one backend; how many chunks came out wrong."""
    wrong = 0
    overhead = await call_seconds(backend, Operation(registry.get("sleepy"), "predict"), np.zeros((1, 1)))
    for name, operation, chunks in work(registry):
        await compute(backend, operation, chunks[:AT_ONCE])  # every worker has loaded the version
        started = time.perf_counter()
        answers = await compute(backend, operation, chunks)
        seconds = time.perf_counter() - started
        right = sum(map(bytes.__eq__, answers, wanted.setdefault(name, answers)))
        wrong += CHUNKS - right
        table.add(where, name, f"{CHUNKS / seconds:.1f}", f"{right} of {CHUNKS}", f"{overhead * 1e3:.1f}")
    await backend.close()
    return wrong


async def survive(
    table: Table, backend: Backend, cluster: DaskCluster, registry: Registry, wanted: dict[str, list[bytes]]
) -> int:
    """One of two workers is killed while it computes."""
    name, operation, chunks = work(registry)[1]
    await compute(backend, operation, chunks[:AT_ONCE])
    started = time.perf_counter()
    computing = asyncio.create_task(compute(backend, operation, chunks))
    await asyncio.sleep(SECONDS_A_ROW * ROWS * CHUNKS / 8)  # a quarter of the work of two
    cluster.kill_worker()
    answers = await computing
    seconds = time.perf_counter() - started
    right = sum(map(bytes.__eq__, answers, wanted[name]))
    table.add("2 workers, 1 killed", name, f"{CHUNKS / seconds:.1f}", f"{right} of {CHUNKS}", "")
    await backend.close()
    return CHUNKS - right


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    logs.configure("warning")
    table = Table("where", "what", "chunks/s", "bit for bit", "call ms")
    wanted: dict[str, list[bytes]] = {}
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        add_models(models)
        registry = load_registry(models)
        functions = {operation.name: operation.answer_call for operation in make_operations(registry)}
        executor = Executor(functions, processes=1)
        executor.start()
        local = LocalBackend(executor)
        pack = functools.partial(pack_version, models, options=DEFAULT_OPTIONS)

        async def run() -> int:
            wrong = await measure(table, "here", local, registry, wanted)
            for workers in (1, 2):
                with DaskCluster(workers) as cluster:
                    backend = Cluster(cluster.address, local, pack, at_once=AT_ONCE)
                    wrong += await measure(table, f"{workers} workers", backend, registry, wanted)
                    if workers == 2:
                        wrong += await survive(table, backend, cluster, registry, wanted)
            return wrong

        try:
            wrong = asyncio.run(run())
        finally:
            executor.stop()
    print(table)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
