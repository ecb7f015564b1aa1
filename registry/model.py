"""A model as it is served: a loaded estimator, its manifest, and one uniform way to ask it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

from registry import boosters
from registry.boosters import qualified_name
from registry.errors import ModelFailed, NotExplained
from registry.explain.explanation import Selection, present_contributions
from registry.explain.shap_values import Contributions, Explainer
from registry.rows.features import Rows
from registry.rows.schema import Schema
from registry.store.manifest import Manifest, Task

Outputs = NDArray[np.float64]
"""What a model gives for rows, shape (rows, width).

A classifier's width is one probability a class; where its label is not simply the most probable class (a tuned
threshold, an SVC) or it has no probabilities, the label's index follows as the last column. Any other model's is 1.
"""

Compute = Callable[[Rows], Outputs]

TREES = frozenset(
    f"{family}{task}"
    for family in ("DecisionTree", "ExtraTrees", "GradientBoosting", "HistGradientBoosting", "RandomForest")
    for task in ("Classifier", "Regressor")
)

MOST_PROBABLE = (DecisionTreeClassifier, ExtraTreesClassifier, RandomForestClassifier)
"""Classifiers whose `predict` is exactly the argmax of their `predict_proba`, so that one call does for both.
scikit-learn's boosting and logistic regression are not: they compare their margin with 0, and break ties the other
way."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """One version of one model, ready to answer."""

    manifest: Manifest
    compute: Compute
    fallback: bool = False
    """True when the version could not be loaded and a minimal model stands in for it."""
    compiled: bool = False
    """True when a compiled form, held against the estimator bit for bit, answers instead of it."""
    explainer: Explainer | None = None

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @cached_property
    def content_hash(self) -> bytes:
        """Of the manifest, which holds the artefact's hash: all that an answer depends on besides the row."""
        return hashlib.sha256(msgspec.json.encode(self.manifest)).digest()

    @cached_property
    def ignores_sign_of_zero(self) -> bool:
        """True for trees alone: they compare their input and never compute with it."""
        return self.manifest.estimator in TREES

    @cached_property
    def schema(self) -> Schema:
        return Schema(self.manifest.features)

    def predict(self, rows: Rows) -> list[Any]:
        """One prediction a row, as API.md shows it. `rows` has shape (rows, features). Raises ModelFailed."""
        outputs = self.compute(rows)
        if not np.isfinite(outputs).all():
            raise ModelFailed(f"{self.name}/{self.version} gave a result that is not finite")
        return self.present(outputs)

    def explain(self, rows: Rows, selection: Selection | None = None) -> list[dict[str, Any]]:
        """One explanation a row, as `present_contributions` shows it. `rows` has shape (rows, features).

        Raises NotExplained, InvalidSelection, ModelFailed.
        """
        selection = selection or Selection()
        selection.check(self.manifest.classes)
        found = self.contributions(rows)
        labels = [answer["label"] if isinstance(answer, dict) else None for answer in self.predict(rows)]
        assert self.explainer is not None
        return present_contributions(found, self.explainer, self.schema.names, self.manifest.classes, labels, selection)

    def contributions(self, rows: Rows) -> Contributions:
        """What each feature of each row contributes; checked to add up. Raises NotExplained, ModelFailed."""
        if self.explainer is None:
            raise NotExplained(f"{self.name}/{self.version} has no explainer")
        found = self.explainer.explain(rows)
        if not found.gap() <= self.explainer.tolerance:  # NaN is not
            raise ModelFailed(f"{self.name}/{self.version}: contributions do not add up to the output")
        return found

    def present(self, outputs: Outputs) -> list[Any]:
        """Outputs of shape (rows, width) as JSON values."""
        classes = self.manifest.classes
        if not classes:
            column: list[float] = outputs[:, 0].tolist()
            return column if self.manifest.task == "regression" else [{"label": int(label)} for label in column]
        if outputs.shape[1] == 1:
            return [{"label": classes[int(index)]} for (index,) in outputs.tolist()]
        labels = outputs[:, -1].astype(int) if outputs.shape[1] > len(classes) else outputs.argmax(axis=1)
        return [
            {"label": classes[label], "probabilities": dict(zip(classes, row, strict=False))}
            for label, row in zip(labels.tolist(), outputs.tolist(), strict=True)
        ]


def task_of(estimator: Any) -> Task | None:
    """The task of a scikit-learn estimator, None for one that does not predict."""
    if not hasattr(estimator, "predict"):
        return None
    if is_classifier(estimator):
        return "classification"
    if is_regressor(estimator):
        return "regression"
    if is_clusterer(estimator):
        return "clustering"
    return "outlier-detection" if is_outlier_detector(estimator) else None


def estimator_compute(estimator: Any, schema: Schema, *, frame: bool) -> Compute:
    """Asks the estimator itself; `frame` when it was fitted on a DataFrame and looks columns up by name."""
    ask = asking(estimator)
    if not frame:
        return ask
    return lambda rows: ask(schema.frame(rows))


def asking(estimator: Any) -> Callable[[Any], Outputs]:
    """A function from a table, in the form that the estimator was fitted on, to its outputs."""

    def values(table: Any) -> Outputs:
        outputs = np.asarray(estimator.predict(table), dtype=np.float64)
        if outputs.size != len(table):
            raise ValueError("several outputs for a row; one is served")
        return outputs.reshape(len(table), 1)

    def probabilities(table: Any) -> Outputs:
        return np.asarray(estimator.predict_proba(table), dtype=np.float64)

    def labels(table: Any) -> Outputs:
        # classes_ is sorted, as scikit-learn promises
        indices = np.searchsorted(estimator.classes_, estimator.predict(table))
        return np.asarray(indices, dtype=np.float64).reshape(len(table), 1)

    def probabilities_and_labels(table: Any) -> Outputs:
        return np.hstack([probabilities(table), labels(table)])

    if task_of(estimator) != "classification":
        return values
    if not hasattr(estimator, "predict_proba"):
        return labels
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    most_probable = type(last) in MOST_PROBABLE or qualified_name(type(last)) in boosters.MOST_PROBABLE
    return probabilities if most_probable else probabilities_and_labels
