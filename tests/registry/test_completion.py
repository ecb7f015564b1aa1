"""Estimators of one's own that have just `fit` and `predict`, without tags and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from registry.errors import CannotAdd
from registry.store.add import add_trained
from registry.store.loader import load_version
from registry.training.script import Trained

TABLE = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0, 0.0, 1.0]})
HIGH = TABLE["a"] > 2


class Doubler:
    """A regressor of no base class."""

    def predict(self, X: Any) -> Any:  # noqa: N803 - scikit-learn's name
        return np.asarray(X)[:, 0] * 2


class Words:
    """A classifier of no base class."""

    labels: Any = ("high", "low")

    def predict(self, X: Any) -> Any:  # noqa: N803
        return np.where(np.asarray(X)[:, 0] > 2, *self.labels)


class Shares(Words):
    """The same, with probabilities in the order of the sorted labels, if they are."""

    labels = (1, 0)
    order = (0, 1)

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        share = np.asarray(X)[:, 0] / 5
        return np.column_stack([1 - share, share])[:, self.order]


class Reversed(Shares):
    """Probabilities in an order of which nobody knows."""

    order = (1, 0)


class Mixed(ClassifierMixin, Words, BaseEstimator):  # type: ignore[misc]
    """A classifier of scikit-learn's that has forgotten its classes."""


class Broken(Doubler):
    """A regressor of a table with other columns."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        raise KeyError(X["z"])


def add(root: Path, estimator: Any, target: Any, **options: Any) -> Any:
    """What a version of the estimator answers for the table, once it is loaded again."""
    trained = Trained(estimator=estimator, sample=TABLE.assign(y=target), target="y", **options)
    add_trained(root, "own", trained)
    model = load_version(root, root / "own" / "1")
    found = model.predict(model.schema.rows(TABLE.to_dict("records")))
    return [one["label"] if isinstance(one, dict) else one for one in found]


def test_regressor_without_tags(tmp_path: Path) -> None:
    assert add(tmp_path, Doubler(), TABLE["a"] * 2) == [2, 4, 6, 8]


@pytest.mark.parametrize("kind", [Words, Mixed])
def test_classifier_without_classes(tmp_path: Path, kind: type) -> None:
    assert add(tmp_path, kind(), np.where(HIGH, "high", "low")) == ["low", "low", "high", "high"]


def test_class_that_is_only_in_the_true_values_is_a_class(tmp_path: Path) -> None:
    add(tmp_path, Words(), ["low", "low", "high", "medium"])
    assert load_version(tmp_path, tmp_path / "own" / "1").manifest.classes == ("high", "low", "medium")


def test_probabilities_without_classes_are_in_the_order_of_the_labels_or_refused(tmp_path: Path) -> None:
    assert add(tmp_path, Shares(), HIGH.astype(int)) == [0, 0, 1, 1]
    with pytest.raises(CannotAdd, match=r"Reversed has no classes_, and the order .*; set self.classes_ in fit"):
        add(tmp_path, Reversed(), HIGH.astype(int))


def test_what_fails_is_told_by_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(CannotAdd, match="the estimator cannot predict this table: KeyError: 'z'"):
        add(tmp_path, Broken(), TABLE["a"])
    with pytest.raises(CannotAdd, match="Words has no classes_ that labels could be given to"):
        add(tmp_path, Words(), np.where(HIGH, "high", "low"), labels=["H", "L"])
