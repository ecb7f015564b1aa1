"""The kernel of SHAP values beside shap.TreeExplainer, on one core: `python -m bench.explain`.

Milliseconds, the best of several rounds, for the demo models with trees and for larger ensembles of 30 features; how
far the values are apart at most, and how far sums are from outputs. Then how long another thread of the process is kept
waiting while 500 rows are explained.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from serving.process.child import limit_numeric_threads

limit_numeric_threads(os.environ)

import numpy as np  # noqa: E402 - numpy counts the threads it may have when it is imported
import shap  # noqa: E402
from sklearn.ensemble import (  # noqa: E402
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)

from bench.models import forest_of_100  # noqa: E402
from bench.table import Table  # noqa: E402
from registry.explain.compiled import tree_explainer  # noqa: E402
from registry.explain.shap_values import Explainer  # noqa: E402
from registry.kernels.compiling import take_apart  # noqa: E402
from registry.rows.features import Rows  # noqa: E402
from registry.rows.infer_schema import infer_features  # noqa: E402
from registry.rows.schema import Schema  # noqa: E402

ROWS = 500

ESTIMATORS: dict[str, Any] = {
    "forest of 100, depth 12": RandomForestClassifier(100, max_depth=12, random_state=0),
    "forest of 100, depth 6": RandomForestClassifier(100, max_depth=6, random_state=0),
    "forest of 100, any depth": RandomForestClassifier(100, random_state=0),
    "boosting of 100, depth 3": GradientBoostingClassifier(random_state=0),
    "histogram boosting of 100": HistGradientBoostingClassifier(random_state=0),
}


@dataclass(frozen=True)
class Case:
    """A fitted ensemble and both who explain it."""

    name: str
    ours: Explainer
    theirs: Any
    rows: Rows

    def differences(self) -> tuple[float, float]:
        """Between the values; between sums and outputs."""
        found = self.ours.explain(self.rows[:100])
        values = np.asarray(self.theirs.shap_values(self.rows[:100], check_additivity=False))
        values = values if values.ndim == 3 else values[:, :, None]
        sums = found.base_values + found.values.sum(axis=1)
        apart = np.abs(found.values[:, :, -values.shape[2] :] - values).max()
        return float(apart), float(np.abs(sums - found.outputs).max())


def cases() -> Iterator[Case]:
    """Ensembles fitted on 6,000 rows of 30 features."""
    table, target = forest_of_100()
    rows = table.to_numpy()
    schema = Schema(infer_features(table, 1.0))
    for name, estimator in ESTIMATORS.items():
        estimator.fit(rows, target)
        ours = tree_explainer(take_apart(estimator, schema))
        yield Case(name, ours, shap.TreeExplainer(estimator), rows[:ROWS].copy())


def milliseconds(explain: Callable[[], Any], seconds: float) -> float:
    """The best of as many rounds as fit, at least two."""
    best, rounds, started = float("inf"), 0, time.perf_counter()
    while rounds < 2 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        explain()
        best, rounds = min(best, time.perf_counter() - begun), rounds + 1
    return best * 1000


def longest_stall(explain: Callable[[], Any]) -> float:
    """Milliseconds that a thread which only wants to look at the clock every so often was late, at most."""
    late, ended = [0.0], threading.Event()

    def tick() -> None:
        before = time.perf_counter()
        while not ended.wait(0.0005):
            now = time.perf_counter()
            late.append(now - before - 0.0005)
            before = now

    thread = threading.Thread(target=tick)
    thread.start()
    explain()
    ended.set()
    thread.join()
    return max(late) * 1000


def main() -> None:
    speed = Table("ensemble", "rows", "shap (ms)", "kernel (ms)", "x", "max difference", "additivity", "stall (ms)")
    for case in cases():
        apart, gap = case.differences()
        for count in (1, ROWS):
            rows = case.rows[:count]
            ours, theirs = (
                partial(case.ours.explain, rows),
                partial(case.theirs.shap_values, rows, check_additivity=False),
            )
            slow, fast, stall = milliseconds(theirs, 0.5), milliseconds(ours, 0.5), longest_stall(ours)
            cells = f"{slow:.2f}", f"{fast:.3f}", f"{slow / fast:.1f}", f"{apart:.0e}", f"{gap:.0e}", f"{stall:.1f}"
            speed.add(case.name, count, *cells)
    print(speed)


if __name__ == "__main__":
    main()
