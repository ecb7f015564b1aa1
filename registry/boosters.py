"""What is particular to the estimators of XGBoost and LightGBM; neither library is imported here.

A model of theirs has imported its library by being unpickled, so its class is known by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from sklearn.pipeline import Pipeline

MOST_PROBABLE = frozenset({"lightgbm.sklearn.LGBMClassifier", "xgboost.sklearn.XGBClassifier"})
"""Classifiers whose `predict` is the argmax of their `predict_proba`."""


def qualified_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def libraries(estimator: Any) -> set[str]:
    """The top-level packages that an estimator and its steps come from."""
    return {type(step).__module__.split(".", maxsplit=1)[0] for step in _steps(estimator)}


def keep_to_one_thread(estimator: Any) -> None:
    """Let LightGBM predict in the calling thread, however many it was fitted with.

    It passes their number to OpenMP with every call, whatever OMP_NUM_THREADS says, and a pool of threads that is
    alive at the fork hangs the children. XGBoost heeds OMP_NUM_THREADS.
    """
    for step in _steps(estimator):
        if "lightgbm" in libraries(step) and hasattr(step, "n_jobs"):
            step.n_jobs = 1


def input_names(estimator: Any, columns: Sequence[str]) -> list[str] | None:
    """The names of the columns that the estimator was fitted on, None where it was fitted on an array.

    LightGBM writes an underscore for a space and looks columns up by their place; then the name is the column's own.
    """
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return None
    if "lightgbm" not in libraries(estimator):
        return [str(name) for name in names]
    spelled = {column.replace(" ", "_"): column for column in columns} | {column: column for column in columns}
    return [spelled.get(str(name), str(name)) for name in names]


def with_categories(estimator: Any, table: pd.DataFrame) -> pd.DataFrame:
    """The table as a booster takes it: columns of text, as a CSV file has them, are categories."""
    if isinstance(estimator, Pipeline) or libraries(estimator).isdisjoint({"lightgbm", "xgboost"}):
        return table
    texts = [name for name in table.columns if pd.api.types.is_string_dtype(table[name].dropna())]
    return table.astype(dict.fromkeys(texts, "category"))


def _steps(estimator: Any) -> Iterator[Any]:
    """The estimator, or the steps of the pipeline that it is."""
    if isinstance(estimator, Pipeline):
        for _, step in estimator.steps:
            yield from _steps(step)
    else:
        yield estimator
