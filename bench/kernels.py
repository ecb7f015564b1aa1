"""A compiled model beside its estimator, and what numba costs: `python -m bench.kernels`.

Time per row in microseconds, the best of several rounds, for the demo models, for a forest of 100 trees of depth 12 on
30 features, and for 100 trees of XGBoost and of LightGBM where these are installed. All are asked as the service asks:
canonical rows in, outputs out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from serving.process.child import limit_numeric_threads

limit_numeric_threads(os.environ)

import numpy as np  # noqa: E402 - numpy counts the threads it may have when it is imported
import pandas as pd  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402

from bench.models import forest_of_100  # noqa: E402
from bench.table import Table  # noqa: E402
from examples.demo import Demo  # noqa: E402
from examples.train import DEMOS  # noqa: E402
from registry.asking import estimator_compute  # noqa: E402
from registry.estimator import Compute  # noqa: E402
from registry.kernels import compile_estimator, probe_rows, verify  # noqa: E402
from registry.rows.features import Rows  # noqa: E402
from registry.rows.infer_schema import infer_features  # noqa: E402
from registry.rows.schema import Schema  # noqa: E402

BATCHES = (1, 64, 512)
SECONDS = 0.3
"""Seconds of one round."""

COST = """
import os, sys, time
import numpy, pandas, sklearn.ensemble, sklearn.linear_model, sklearn.svm, structlog, msgspec
from pathlib import Path
def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return found["Rss:"], found["Private_Dirty:"]
before, started = memory(), time.perf_counter()
import registry.kernels
imported, middle = memory(), time.perf_counter()
registry.kernels.warm()
warmed, ended = memory(), time.perf_counter()
grown = [after - start for later in (imported, warmed) for start, after in zip(before, later)]
print(middle - started, ended - middle, *grown)
"""


FOREST = Demo("forest of 100", "", forest_of_100, lambda: RandomForestClassifier(100, max_depth=12, random_state=0))


def boosters() -> Iterator[Demo]:
    """100 trees each of the libraries that are installed."""
    if find_spec("xgboost"):
        from xgboost import XGBClassifier

        yield Demo("XGBoost of 100", "", forest_of_100, lambda: XGBClassifier(n_estimators=100, n_jobs=1))
    if find_spec("lightgbm"):
        from lightgbm import LGBMClassifier

        yield Demo("LightGBM of 100", "", forest_of_100, lambda: LGBMClassifier(n_jobs=1, verbose=-1))


def models() -> Iterator[tuple[str, Compute, Compute, Rows]]:
    """Name, estimator, compiled form, and 2,000 different rows."""
    for demo in (*DEMOS, FOREST, *boosters()):
        table, target = demo.read()
        estimator = demo.estimator().fit(table if demo.named_columns else table.to_numpy(), target)
        schema = Schema(infer_features(table, 1.0), "frame" if demo.named_columns else "array")
        reference = estimator_compute(estimator, schema)
        compiled = compile_estimator(estimator, schema)
        cells = table.to_dict("split")["data"]
        rows = schema.rows([[None if pd.isna(cell) else cell for cell in row] for row in cells])
        if not verify(compiled, reference, probe_rows(schema, rows[:100])):
            raise SystemExit(f"{demo.name} is not compiled")
        yield demo.name, reference, compiled, np.resize(rows, (2000, len(schema)))


def microseconds(compute: Compute, rows: Rows, batch: int) -> float:
    """Per row, the best of five rounds."""
    batches = [rows[start : start + batch].copy() for start in range(0, len(rows) - batch + 1, batch)]
    rounds = []
    for _ in range(5):
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS / 5:
            asked = batches[done % len(batches) : done % len(batches) + 16]
            for part in asked:
                compute(part)
            done += len(asked)
        rounds.append((time.perf_counter() - started) / done / batch)
    return min(rounds) * 1e6


def cost_of_numba(cache: str) -> list[float]:
    """Seconds of import and of warming; MB of RSS and of private memory after the one and after the other."""
    environ = {**os.environ, "NUMBA_CACHE_DIR": cache}
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", COST], env=environ, cwd=root, capture_output=True, text=True, check=True
    )
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    table = Table("model", "rows", "estimator (us a row)", "compiled (us a row)", "x")
    for name, reference, compiled, rows in models():
        for batch in BATCHES:
            slow, fast = microseconds(reference, rows, batch), microseconds(compiled, rows, batch)
            table.add(name, batch, f"{slow:.1f}", f"{fast:.2f}", f"{slow / fast:.0f}")
    print(table)
    costs = Table(
        "cache", "import (s)", "warm (s)", "RSS after import (MB)", "private", "RSS after warm (MB)", "private"
    )
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("empty", "full"):
            costs.add(kind, *(f"{number:.2f}" for number in cost_of_numba(cache)))
    print(costs)


if __name__ == "__main__":
    main()
