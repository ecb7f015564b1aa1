"""How good a model is on rows whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score, roc_auc_score

from registry.errors import CannotAdd
from registry.estimator import Outputs, Task


def measure(task: Task, target: pd.Series[Any], outputs: Outputs, classes: Sequence[Any]) -> dict[str, float]:
    """The metrics of a task for a model's `outputs` where `target` is the truth; `classes` are the sorted `classes_`.

    Raises CannotAdd when the target is not what the model predicts.
    """
    if target.isna().any():
        raise CannotAdd(f"column {target.name!r} has missing values")
    match task:
        case "regression":
            return _measure_regression(target, outputs)
        case "classification":
            return _measure_classification(target, outputs, np.asarray(classes))
    return {}


def _measure_regression(target: pd.Series[Any], outputs: Outputs) -> dict[str, float]:
    if not pd.api.types.is_numeric_dtype(target):
        raise CannotAdd(f"column {target.name!r} is not numeric")
    values = outputs[:, 0]
    return {"r2": float(r2_score(target, values)), "mean_absolute_error": float(mean_absolute_error(target, values))}


def _measure_classification(target: pd.Series[Any], outputs: Outputs, classes: Any) -> dict[str, float]:
    if not target.isin(classes).all():
        raise CannotAdd(f"column {target.name!r} holds values that are no classes of the estimator")
    truth, count = np.searchsorted(classes, target), len(classes)
    if outputs.shape[1] < count:
        return {"accuracy": float(accuracy_score(truth, outputs[:, 0]))}
    probabilities = outputs[:, :count]
    labels = outputs[:, -1] if outputs.shape[1] > count else probabilities.argmax(axis=1)
    metrics = {
        "accuracy": float(accuracy_score(truth, labels)),
        "log_loss": float(log_loss(truth, _adding_up(probabilities), labels=range(count))),
    }
    if len(np.unique(truth)) == count:
        scores = probabilities[:, 1] if count == 2 else probabilities
        metrics["roc_auc"] = float(roc_auc_score(truth, scores, multi_class="ovr"))
    return metrics


def _adding_up(probabilities: Outputs) -> Outputs:
    """Each row divided by its sum, which is not quite 1 where an estimator computes in float32."""
    return probabilities / probabilities.sum(axis=1, keepdims=True)
