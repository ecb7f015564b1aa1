"""Metrics: how well a model predicts rows whose true values are known."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score, roc_auc_score

from registry.errors import CannotAdd, one_line
from registry.estimator import Outputs, Task
from registry.outputs import Labels, Layout, json_label
from registry.store.code import OwnCode, plain

MEASURED: tuple[Task, ...] = ("classification", "regression")
"""The tasks with true values to compare with."""

BUILT_IN = frozenset({"accuracy", "log_loss", "mean_absolute_error", "r2", "roc_auc"})

Better = Literal["higher", "lower"]
"""Which values of a metric are better."""

Metric = Callable[[Any, Any], Any]
"""A metric of the user's own: `f(y_true, y_pred)`, a number."""

Truth = NDArray[np.float64]
"""True values, shape (rows, targets): numbers, or indices of labels among the classes of a target."""


def true_values(table: pd.DataFrame, columns: Sequence[str], layout: Layout) -> Truth:
    """The true values in `columns`, one a target; `layout` has the estimator's own classes. Raises CannotAdd."""
    values = [
        _true_values(table[name], Labels(target.classes)) for name, target in zip(columns, layout.targets, strict=True)
    ]
    return np.column_stack(values)


def _true_values(column: pd.Series[Any], labels: Labels) -> Truth:
    if column.isna().any():
        raise CannotAdd(f"column {column.name!r} has missing values")
    if not len(labels):
        if not pd.api.types.is_numeric_dtype(column):
            raise CannotAdd(f"column {column.name!r} is not numeric")
        numbers: Truth = column.to_numpy(np.float64)
        return numbers
    found, values = pd.factorize(column)
    places = [labels.find(json_label(value)) for value in values]
    if None in places:
        raise CannotAdd(f"column {column.name!r} contains values that are not classes of the estimator")
    truth: Truth = np.array(places, np.float64)[found]
    return truth


def measure(task: Task, truth: Truth, outputs: Outputs, layout: Layout) -> dict[str, float]:
    """The metrics of a model's `outputs` against true values; none for a task without."""
    truth = truth.reshape(len(outputs), len(layout.targets))
    match task:
        case "regression":
            return {
                "r2": float(r2_score(truth, outputs)),
                "mean_absolute_error": float(mean_absolute_error(truth, outputs)),
            }
        case "classification" if layout.is_named:
            return _measure_targets(truth.astype(np.intp), outputs, layout)
        case "classification":
            return _measure_classes(truth[:, 0].astype(np.intp), outputs, layout)
    return {}


def custom_functions(names: Iterable[str], code: OwnCode | None) -> dict[str, Metric]:
    """Metrics of the user's own by their names, such as `costs:profit`, from a version's code. Raises CannotAdd."""
    found = {}
    for name in names:
        module, _, function = name.partition(":")
        if not module or not function:
            raise CannotAdd(f"{name!r} is not a metric; name it as module:function")
        try:
            if code is not None and code.owns(module):
                found[name] = code.find(module, function)
            else:
                found[name] = reduce(getattr, function.split("."), importlib.import_module(module))
        except (Exception, SystemExit) as error:
            reason = plain(f"{type(error).__name__}: {one_line(error)}")
            raise CannotAdd(f"the metric {name} cannot be imported: {reason}") from error
        if not callable(found[name]):
            raise CannotAdd(f"the metric {name} is not a function")
    return found


def measure_custom(functions: Mapping[str, Metric], truth: Truth, outputs: Outputs, layout: Layout) -> dict[str, float]:
    """The metrics of the user's own, by the names of their functions. Raises CannotAdd where one fails.

    A function is given true values and predictions, of shape (rows,): numbers, or the labels that `layout` has.
    """
    if not functions:
        return {}
    if layout.is_named:
        raise CannotAdd("a metric of your own needs a model with one output")
    y_true, y_pred = truth.reshape(len(outputs)), outputs[:, 0]
    if classes := layout.targets[0].classes:
        of_labels = np.array(classes, dtype=None if len({*map(type, classes)}) == 1 else object)
        y_true, y_pred = of_labels[y_true.astype(np.intp)], of_labels[layout.label_indices(outputs)]
    metrics = {}
    for name, function in functions.items():
        try:
            metrics[short_name(name)] = float(function(y_true, y_pred))
        except (Exception, SystemExit) as error:
            reason = plain(f"{type(error).__name__}: {one_line(error)}")
            raise CannotAdd(f"the metric {name} failed: {reason}") from error
    return metrics


def short_name(name: str) -> str:
    """The name under which a metric of the user's own is shown: `costs:profit` is `profit`."""
    return name.rpartition(":")[2]


def _measure_classes(truth: NDArray[np.intp], outputs: Outputs, layout: Layout) -> dict[str, float]:
    count = len(layout.targets[0].classes)
    metrics = {"accuracy": float(accuracy_score(truth, layout.label_indices(outputs)))}
    if "probabilities" not in layout.parts:
        return metrics
    shares = _shares(outputs, layout, 0)
    metrics["log_loss"] = float(log_loss(truth, shares, labels=range(count))) if count > 1 else 0.0
    if len(np.unique(truth)) == count > 1:
        scores = shares[:, 1] if count == 2 else shares
        metrics["roc_auc"] = float(roc_auc_score(truth, scores, multi_class="ovr"))
    return metrics


def _measure_targets(truth: NDArray[np.intp], outputs: Outputs, layout: Layout) -> dict[str, float]:
    """The share of rows all of whose labels are right, and the mean log loss of the targets."""
    indices = range(len(layout.targets))
    labels = np.column_stack([layout.label_indices(outputs, index) for index in indices])
    metrics = {"accuracy": float((labels == truth).all(axis=1).mean())}
    if "probabilities" in layout.parts:
        rows = np.arange(len(truth))
        shares = [_shares(outputs, layout, index)[rows, truth[:, index]] for index in indices]
        smallest = np.finfo(np.float64).eps
        metrics["log_loss"] = float(-np.log(np.clip(shares, smallest, 1.0)).mean())
    return metrics


def _shares(outputs: Outputs, layout: Layout, target: int) -> Outputs:
    """Probabilities that add up to 1 exactly, which they do not where an estimator computes in float32."""
    shares = np.clip(outputs[:, layout.columns[target]["probabilities"]], 0.0, 1.0)
    sums = shares.sum(axis=1, keepdims=True)
    # a row that no class claims
    return np.divide(shares, sums, out=np.full_like(shares, 1.0 / shares.shape[1]), where=sums > 0)
