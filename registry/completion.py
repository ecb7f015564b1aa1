"""Estimators of the user's own that lack what scikit-learn's have: tags, which say their task, and `classes_`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from registry.errors import CannotAdd
from registry.estimator import Task, task_of
from registry.outputs import Label, json_label
from registry.store.code import plain

MAX_CLASSES = 1000


class _Completed(BaseEstimator):  # type: ignore[misc]
    """Answers as the estimator that it holds, whose attributes are its own."""

    def __init__(self, estimator: Any = None) -> None:
        self.estimator = estimator

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "estimator":
            raise AttributeError(name)
        return getattr(self.estimator, name)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, table: Any) -> Any:
        return self.estimator.predict(table)


class _Classifier(ClassifierMixin, _Completed):  # type: ignore[misc]
    pass


class _Regressor(RegressorMixin, _Completed):  # type: ignore[misc]
    pass


def is_complete(estimator: Any) -> bool:
    """Return whether an estimator says its task, and a classifier its classes."""
    task = task_of(estimator)
    return task is not None and (task != "classification" or hasattr(estimator, "classes_"))


def completed(estimator: Any, task: Task, classes: Sequence[Label]) -> Any:
    """The estimator with the task and classes that its manifest states, if it does not say them itself."""
    if is_complete(estimator) or not hasattr(estimator, "predict") or task not in ("classification", "regression"):
        return estimator
    base: Any = _Classifier if task == "classification" else _Regressor
    kind = type(type(estimator).__name__, (base,), {"__module__": type(estimator).__module__})
    made = kind(estimator)
    if task == "classification" and not hasattr(estimator, "classes_"):
        made.classes_ = np.array(classes, dtype=None if len({*map(type, classes)}) == 1 else object)
    return made


def completed_by_sample(estimator: Any, table: pd.DataFrame, target: pd.Series[Any] | None) -> Any:
    """The estimator with the task and classes that its answers for a table show, and the true values if there are any.

    Raises CannotAdd where it answers nothing, or its classes cannot be known.
    """
    if is_complete(estimator) or not hasattr(estimator, "predict"):
        return estimator
    answers = _asked(estimator.predict, table)
    if answers.size != len(table):
        raise CannotAdd(f"{type(estimator).__name__} is not a scikit-learn estimator that gives one answer a row")
    values = pd.Series(answers.reshape(-1)).tolist()
    if not _classifies(estimator, values, target):
        return completed(estimator, "regression", ())
    labels = {json_label(value) for value in [*values, *([] if target is None else target.dropna().tolist())]}
    if len(labels) > MAX_CLASSES or len({isinstance(label, str) for label in labels}) != 1:
        raise CannotAdd(f"{type(estimator).__name__} has no classes_; set them in fit")
    classes = sorted(labels)
    if hasattr(estimator, "predict_proba") and not hasattr(estimator, "classes_"):
        _check_order(estimator, table, classes, values)
    return completed(estimator, "classification", classes)


def _classifies(estimator: Any, values: Sequence[Any], target: pd.Series[Any] | None) -> bool:
    if (task := task_of(estimator)) is not None:
        return task == "classification"
    kind = getattr(estimator, "_estimator_type", None)
    if kind in ("classifier", "regressor"):
        return bool(kind == "classifier")
    if hasattr(estimator, "predict_proba") or hasattr(estimator, "classes_"):
        return True
    in_words = target is not None and not pd.api.types.is_numeric_dtype(target)
    return in_words or any(isinstance(value, str | bool | np.bool_) for value in values)


def _check_order(estimator: Any, table: pd.DataFrame, classes: Sequence[Label], values: Sequence[Any]) -> None:
    """Check that probabilities are in the order of the sorted classes, as far as the answers show. Raises CannotAdd."""
    shares = _asked(estimator.predict_proba, table)
    fits = shares.ndim == 2 and shares.shape[1] == len(classes) > 1
    if not fits or [classes[index] for index in shares.argmax(axis=1)] != [*map(json_label, values)]:
        raise CannotAdd(
            f"{type(estimator).__name__} has no classes_, and the order of its probabilities is not that of the "
            "sorted labels; set self.classes_ in fit"
        )


def _asked(ask: Any, table: pd.DataFrame) -> NDArray[Any]:
    """What a function answers for a DataFrame, else for an array. Raises CannotAdd with the first error."""
    first: Exception | None = None
    for given in (table, table.to_numpy()):
        try:
            answers = np.asarray(ask(given))
        except Exception as error:  # noqa: BLE001 - own code may raise anything
            first = first or error
            continue
        if answers.ndim and len(answers) == len(table):
            return answers
    reason = f"{type(first).__name__}: {first}" if first else "it does not give one answer a row"
    raise CannotAdd(f"the estimator cannot predict this table: {plain(reason)}") from first
