"""What of an estimator is explained: numbers, a column a class, that contributions add up to."""

from __future__ import annotations

from typing import Any

import numpy as np

from registry.contributions import Space
from registry.explainers.library import CannotExplain
from registry.features import Rows
from registry.manifest import Task
from registry.model import Compute, task_of
from registry.schema import Schema


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

    def margins(rows: Rows) -> Rows:
        if not hasattr(estimator, "decision_function"):
            return np.log(compute(rows))  # a regressor's whose link is logarithmic
        made = np.asarray(estimator.decision_function(schema.frame(rows) if frame else rows), np.float64)
        made = made.reshape(len(rows), -1)
        if classes == 2:
            return np.hstack([-made, made])
        if made.shape[1] != max(classes, 1):
            raise CannotExplain("its margins are not one a class")
        return made

    if space == "probability":
        return lambda rows: compute(rows)[:, :classes]
    return margins if space == "margin" else compute
