"""The kernels of SHAP values beside shap.TreeExplainer, on one core: `python -m bench.explain`.

Microseconds of processor time a row for ensembles of 30 features, the best of several rounds in turns; how far the
values are apart at most, and how far sums are from outputs; how long another thread of the process is kept waiting
meanwhile. For models of XGBoost shap asks the library itself, with one thread; so does the case of 3,000 rows, which
are in its own matrix already. Then interactions. Names of ensembles as arguments choose among them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
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

MANY_ROWS = 3000


def estimators() -> dict[str, Any]:
    """Those of scikit-learn, and of XGBoost and LightGBM where they are installed."""
    made = dict(ESTIMATORS)
    if find_spec("xgboost"):
        from xgboost import XGBClassifier

        made["XGBoost of 100, depth 3"] = XGBClassifier(n_estimators=100, max_depth=3, n_jobs=1)
        made["XGBoost of 100, depth 6"] = XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1)
    if find_spec("lightgbm"):
        from lightgbm import LGBMClassifier

        made["LightGBM of 100, depth 3"] = LGBMClassifier(n_estimators=100, max_depth=3, n_jobs=1, verbose=-1)
    return made


ESTIMATORS: dict[str, Any] = {
    "forest of 100, depth 12": RandomForestClassifier(100, max_depth=12, random_state=0),
    "forest of 100, depth 6": RandomForestClassifier(100, max_depth=6, random_state=0),
    "forest of 100, any depth": RandomForestClassifier(100, random_state=0),
    "boosting of 100, depth 3": GradientBoostingClassifier(random_state=0),
    "boosting of 300, depth 3": GradientBoostingClassifier(n_estimators=300, random_state=0),
    "histogram boosting of 100": HistGradientBoostingClassifier(random_state=0),
}


@dataclass(frozen=True)
class Case:
    """A fitted ensemble and both who explain it."""

    name: str
    estimator: Any
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


def cases(chosen: list[str]) -> Iterator[Case]:
    """Ensembles fitted on 6,000 rows of 30 features."""
    table, target = forest_of_100()
    rows = table.to_numpy()
    schema = Schema(infer_features(table, 1.0))
    for name, estimator in estimators().items():
        if not chosen or name in chosen:
            estimator.fit(rows, target)
            ours = tree_explainer(take_apart(estimator, schema))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a change in the form of LightGBM's values
                theirs = shap.TreeExplainer(estimator)
                yield Case(name, estimator, ours, theirs, rows)


def milliseconds(explain: Callable[[], Any], seconds: float) -> float:
    """Of processor time, the best of as many rounds as fit, at least one; short calls are timed several at a time."""
    started = time.perf_counter()
    explain()
    calls = 1 + int(0.005 / (time.perf_counter() - started))
    best = float("inf")
    while best == float("inf") or time.perf_counter() - started < seconds:
        begun = time.process_time()
        for _ in range(calls):
            explain()
        best = min(best, (time.process_time() - begun) / calls)
    return best * 1000


def in_turns(theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of both, the best of three rounds of either."""
    pairs = [(milliseconds(theirs, 0.3), milliseconds(ours, 0.3))]
    while len(pairs) < 3 and pairs[0][0] < 2000:
        pairs.append((milliseconds(theirs, 0.3), milliseconds(ours, 0.3)))
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


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


def pred_contribs(case: Case) -> Callable[[], Any]:
    """The SHAP values of XGBoost itself for MANY_ROWS, by one thread."""
    import xgboost

    matrix = xgboost.DMatrix(case.rows[:MANY_ROWS], nthread=1)
    return partial(case.estimator.get_booster().predict, matrix, pred_contribs=True)


def compare(speed: Table, pairs: Table, case: Case) -> None:
    """The lines of one ensemble."""
    apart, gap = case.differences()
    for count in (1, ROWS):
        rows = case.rows[:count].copy()
        ours = partial(case.ours.explain, rows)
        slow, fast = in_turns(partial(case.theirs.shap_values, rows, check_additivity=False), ours)
        cells = f"{1000 * slow / count:.1f}", f"{1000 * fast / count:.2f}", f"{slow / fast:.1f}"
        speed.add(case.name, count, *cells, f"{apart:.0e}", f"{gap:.0e}", f"{longest_stall(ours):.1f}")
    if case.name == "XGBoost of 100, depth 6":
        slow, fast = in_turns(pred_contribs(case), partial(case.ours.explain, case.rows[:MANY_ROWS].copy()))
        cells = f"{1000 * slow / MANY_ROWS:.1f}", f"{1000 * fast / MANY_ROWS:.2f}", f"{slow / fast:.1f}"
        speed.add(f"{case.name}: pred_contribs", MANY_ROWS, *cells, "", "", "")
    if case.name == "forest of 100, depth 12":
        assert case.ours.interact is not None
        one = case.rows[:1].copy()
        slow, fast = in_turns(partial(case.theirs.shap_interaction_values, one), partial(case.ours.interact, one))
        pairs.add(case.name, f"{slow:.1f}", f"{fast:.2f}", f"{slow / fast:.0f}")


def main() -> None:
    kinds = "max difference", "additivity", "stall (ms)"
    speed = Table("ensemble", "rows", "shap (us a row)", "kernel (us a row)", "x", *kinds)
    pairs = Table("interactions of", "shap (ms a row)", "kernel (ms a row)", "x")
    for case in cases(sys.argv[1:]):
        compare(speed, pairs, case)
    print(speed)
    print(pairs)


if __name__ == "__main__":
    main()
