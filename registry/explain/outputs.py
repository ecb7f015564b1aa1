"""What of an estimator is explained: numbers, a column a class, that contributions add up to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from registry.estimator import Compute, Task, task_of
from registry.explain.library import CannotExplain
from registry.explain.shap_values import Space
from registry.rows.features import Rows
from registry.rows.schema import Schema


def natural_space(estimator: Any) -> Space:
    """Probabilities where there are some, else margins, else values. Raises CannotExplain."""
    task: Task | None = task_of(estimator)
    if task == "regression":
        return "value"
    if task == "classification" and hasattr(estimator, "predict_proba"):
        return "probability"
    if task in ("classification", "outlier-detection") and hasattr(estimator, "decision_function"):
        return "margin"
    raise CannotExplain(f"{type(estimator).__name__} gives a label and no number to explain")


def outputs_in(space: Space, estimator: Any, compute: Compute, schema: Schema, *, frame: bool) -> Compute:
    """A function from rows to the estimator's outputs in `space`, shape (rows, outputs).

    A binary classifier's margins are the negative one of the first class and that of the second.
    """
    classes = len(estimator.classes_) if task_of(estimator) == "classification" else 0

    ask = margins_of(estimator)

    def margins(rows: Rows) -> Rows:
        if ask is None:
            return np.log(compute(rows))  # a regressor's whose link is logarithmic
        made = np.asarray(ask(schema.frame(rows) if frame else rows), np.float64).reshape(len(rows), -1)
        if classes == 2:
            return np.hstack([-made, made])
        if made.shape[1] != max(classes, 1):
            raise CannotExplain("its margins are not one a class")
        return made

    if space == "probability":
        return lambda rows: np.ascontiguousarray(compute(rows)[:, :classes])
    return margins if space == "margin" else compute


def margins_of(estimator: Any) -> Callable[[Any], Any] | None:
    """A function from a table to margins, as the estimator's library calls it; None where there is none."""
    if hasattr(estimator, "decision_function"):
        ask: Callable[[Any], Any] = estimator.decision_function
        return ask
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    match type(last).__module__.split(".", maxsplit=1)[0]:
        case "lightgbm":
            return partial(estimator.predict, raw_score=True)
        case "xgboost":
            return partial(estimator.predict, output_margin=True)
    return None
