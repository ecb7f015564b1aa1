"""Estimators of scikit-learn, XGBoost and LightGBM: what they are, how to call them, and the time of a call.

XGBoost and LightGBM are never imported here. Unpickling a model of theirs has imported its library, so its class is
recognised by name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import RANSACRegressor
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from registry.rows.features import Rows
from registry.threads import parts_of

Task = Literal["classification", "regression", "clustering", "outlier-detection", "ranking"]

Outputs = NDArray[np.float64]
"""The outputs of a model for rows, shape (rows, width). A `Layout` names their parts, from left to right:

- `value`: a regressor's number.
- `probabilities`: one a class, or one a component of a mixture.
- `label`: the index of a classifier's label, which is omitted where it is simply the most probable class (of forests,
  boosters): a threshold may be tuned, and ties broken otherwise. Without classes the label itself: a cluster, -1 or 1.
- `margins`: what `decision_function` says, one a class, and a single one of two classes: for classifiers without
  probabilities.
- `score`: an outlier detector's `decision_function`, or a ranker's score.

So there are the layouts [value], [probabilities], [probabilities, label], [label], [label, margins], [label, score] and
[score]. A model with several targets has the parts of the first, then those of the second: [value, value], or
[probabilities, label, probabilities, label].
"""

Compute = Callable[[Rows], Outputs]

MOST_PROBABLE = (DecisionTreeClassifier, ExtraTreesClassifier, RandomForestClassifier)
MOST_PROBABLE_BOOSTERS = frozenset({"lightgbm.sklearn.LGBMClassifier", "xgboost.sklearn.XGBClassifier"})
"""Classifiers whose `predict` is exactly the argmax of their `predict_proba`, so that one call does for both.

scikit-learn's boosting and logistic regression are not: they compare their margin with 0, and break ties the other way.
"""

TREES = frozenset(
    {
        DecisionTreeClassifier,
        DecisionTreeRegressor,
        ExtraTreeClassifier,
        ExtraTreeRegressor,
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    }
)
BOOSTED = frozenset({GradientBoostingClassifier, GradientBoostingRegressor})

WRAPPED = {
    BaseSearchCV: "best_estimator_",
    FrozenEstimator: "estimator",
    RANSACRegressor: "estimator_",
    SelfTrainingClassifier: "estimator_",
}
"""The attribute that holds the estimator which answers in place of its wrapper."""

PIPELINES = frozenset({"imblearn.pipeline.Pipeline", "sklearn.pipeline.Pipeline"})
RANKERS = frozenset({"catboost.core.CatBoostRanker", "lightgbm.sklearn.LGBMRanker", "xgboost.sklearn.XGBRanker"})

SCHEDULE = Path("/proc/thread-self/schedstat")
"""Linux's nanoseconds that a thread has run, and that it has waited for a processor, and the number of its turns."""

MAX_TIMED_CALLS = 5
MAX_TIMED_SECONDS = 0.5
"""Once calls have taken this long, no more are timed."""


def only_compares(estimator: Any) -> bool:
    """Return whether nothing but trees sees a row, which compare its values: 0.0 and -0.0 are then the same.

    A class of another's that is named like one may do anything, and so may the `init` of gradient boosting.
    """
    if type(estimator) in BOOSTED:
        return type(getattr(estimator, "init_", None)) in (str, DummyClassifier, DummyRegressor)
    return type(estimator) in TREES


def qualified_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def task_of(estimator: Any) -> Task | None:
    """The task of an estimator, None for one that does not predict."""
    if not hasattr(estimator, "predict"):
        return None
    kind = type(last_step(estimator))
    if qualified_name(kind) in RANKERS:
        return "ranking"
    try:
        return _task_by_tags(estimator)
    except AttributeError:  # a class that has no tags
        return None


def _task_by_tags(estimator: Any) -> Task | None:
    if is_classifier(estimator):
        return "classification"
    if is_regressor(estimator):
        return "regression"
    if is_clusterer(estimator) or (hasattr(estimator, "predict_proba") and library_of(estimator) == "sklearn"):
        return "clustering"  # the latter is a mixture
    return "outlier-detection" if is_outlier_detector(estimator) else None


def unwrap(estimator: Any) -> Any:
    """The estimator that answers for one that only wraps it: the best of a search, a frozen, a self-trained one.

    A class that extends such a one may answer otherwise, and is not opened.
    """
    while isinstance(estimator, tuple(WRAPPED)) and library_of(estimator) == "sklearn":
        (inner,) = (getattr(estimator, name, None) for kind, name in WRAPPED.items() if isinstance(estimator, kind))
        if inner is None:  # not fitted
            break
        estimator = inner
    return estimator


def steps_of(estimator: Any) -> tuple[list[Any], Any]:
    """The transformers of an estimator, and the one that they feed; pipelines in pipelines and wrappers are opened.

    What imbalanced-learn's pipelines only do while they are fitted, drawing other samples, is left out.
    """
    steps: list[Any] = []
    estimator = unwrap(estimator)
    while qualified_name(type(estimator)) in PIPELINES:
        inner = [unwrap(step) for _, step in estimator.steps[:-1] if step not in (None, "passthrough")]
        steps += [step for step in inner if not hasattr(step, "fit_resample")]
        estimator = unwrap(estimator.steps[-1][1])
    return steps, estimator


def last_step(estimator: Any) -> Any:
    """The estimator at the end of a pipeline; any other estimator is its own."""
    return steps_of(estimator)[1]


def library_of(estimator: Any) -> str:
    """The top-level package that an estimator's class comes from; of ours around a booster, that of the booster."""
    return type(getattr(estimator, "native_model", estimator)).__module__.split(".", maxsplit=1)[0]


def libraries(estimator: Any) -> set[str]:
    """The top-level packages that an estimator, its steps and its members come from."""
    return {library_of(part) for part in parts_of(estimator)} - sys.stdlib_module_names


def input_names(estimator: Any, columns: Sequence[str]) -> list[str] | None:
    """The names of the columns that the estimator was fitted on, None where it was fitted on an array.

    LightGBM replaces spaces in names by underscores and finds columns by position, so the column's own name is given.
    """
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return None
    if "lightgbm" not in libraries(estimator):
        return [str(name) for name in names]
    spelled = {column.replace(" ", "_"): column for column in columns} | {column: column for column in columns}
    return [spelled.get(str(name), str(name)) for name in names]


def with_categories(estimator: Any, table: pd.DataFrame) -> pd.DataFrame:
    """The table as a booster takes it: columns of text, as a CSV file has them, become categories."""
    estimator = unwrap(estimator)
    if isinstance(estimator, Pipeline) or library_of(estimator) not in ("lightgbm", "xgboost"):
        return table
    texts = [name for name in table.columns if pd.api.types.is_string_dtype(table[name].dropna())]
    return table.astype(dict.fromkeys(texts, "category"))


def held_up() -> float:
    """Seconds for which this thread has waited for a processor so far; 0 where the kernel does not tell."""
    try:
        return int(SCHEDULE.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def clock() -> float:
    """Seconds on a clock that stands still while other threads and processes have the processor that this one needs."""
    return time.perf_counter() - held_up()


def quickest(call: Callable[[], object]) -> float:
    """Seconds that the quickest of several calls takes, without those in which it waits for a processor."""
    seconds: list[float] = []
    while len(seconds) < MAX_TIMED_CALLS and sum(seconds) < MAX_TIMED_SECONDS:
        waited, started = held_up(), time.perf_counter()
        call()
        ended = time.perf_counter()  # first, because it takes microseconds to find out how long it was held up
        seconds.append(max(0.0, ended - started - (held_up() - waited)))
    return min(seconds)
