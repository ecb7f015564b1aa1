"""Metrics: how well a model predicts rows whose true values are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score, roc_auc_score

from registry.errors import CannotAdd
from registry.estimator import Outputs, Task


def measure(task: Task, target: pd.Series[Any], outputs: Outputs, classes: Sequence[Any]) -> dict[str, float]:
    """The metrics of a model's `outputs` against the true values in `target`; `classes` are the sorted `classes_`.

    Raises CannotAdd for a target that the model does not predict.
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
        raise CannotAdd(f"column {target.name!r} contains values that are not classes of the estimator")
    truth, count = np.searchsorted(classes, target), len(classes)
    if outputs.shape[1] < count:
        return {"accuracy": float(accuracy_score(truth, outputs[:, 0]))}
    probabilities = outputs[:, :count]
    labels = outputs[:, -1] if outputs.shape[1] > count else probabilities.argmax(axis=1)
    # the sum of a row is not exactly 1 where an estimator computes in float32
    shares = probabilities / probabilities.sum(axis=1, keepdims=True)
    metrics = {
        "accuracy": float(accuracy_score(truth, labels)),
        "log_loss": float(log_loss(truth, shares, labels=range(count))),
    }
    if len(np.unique(truth)) == count:
        scores = probabilities[:, 1] if count == 2 else probabilities
        metrics["roc_auc"] = float(roc_auc_score(truth, scores, multi_class="ovr"))
    return metrics
