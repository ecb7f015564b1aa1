"""Exact path-dependent SHAP values of compiled tree ensembles: the kernel's work put into the user's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from registry.estimator import Compute
from registry.explain.shap_values import Contributions, Method, Space, both_classes
from registry.kernels.compiling import Parts
from registry.kernels.ensembles import Ensemble
from registry.kernels.paths import lay_out
from registry.kernels.tree_shap import TREE_SHAP, quadrature
from registry.rows.features import Rows


@dataclass(frozen=True, slots=True, eq=False)
class TreeExplainer:
    """Explains probabilities of forests, margins of boosted classifiers, values of regressors.

    Values of one-hot columns are summed to the feature that they were made from. Releases the GIL.
    """

    space: Space
    margins: Compute
    attribute: Callable[[Rows], Rows]
    base_values: Rows
    binary: bool
    tolerance: float
    method: Method = field(default="tree-path-dependent", init=False)
    in_process: bool = field(default=True, init=False)
    jobs_only: bool = field(default=False, init=False)
    evaluations: int = field(default=0, init=False)

    def explain(self, rows: Rows) -> Contributions:
        """What each feature contributes to each output."""
        outputs = self.margins(rows).astype(np.float64, copy=False)
        found = Contributions(outputs[:, -len(self.base_values) :], self.base_values, self.attribute(rows))
        if not self.binary:
            return found
        if self.space == "margin":
            return both_classes(found, 0.0)
        return replace(both_classes(found, 1.0), outputs=outputs)  # what predict answers, to the last bit


def tree_explainer(parts: Parts) -> TreeExplainer:
    """The explainer of a tree ensemble that was taken apart. Raises Unsupported."""
    assert parts.trees is not None
    ensemble, link = parts.trees
    classifier = is_classifier(parts.last)
    outputs = len(ensemble.start)
    if classifier and link is None and outputs == 2:
        ensemble = _second_class(ensemble)
    sources = np.array([column.source for column in parts.plan], np.int32)
    attribute, base_values = attribution(ensemble, sources, parts.features)
    margins = parts.behind_matrix(parts.trees[0].compute(None))
    in_double = margins(np.zeros((0, parts.features))).dtype == np.float64
    return TreeExplainer(
        space="margin" if link is not None else "probability" if classifier else "value",
        margins=margins,
        attribute=parts.behind_matrix(attribute),
        base_values=base_values,
        binary=classifier and len(base_values) == 1,
        tolerance=1e-9 if in_double else 1e-5,  # of margins that are summed in float32
    )


def _second_class(ensemble: Ensemble) -> Ensemble:
    """Of two probabilities the second says all."""
    forest = ensemble.forest
    return replace(ensemble, forest=replace(forest, values=forest.values[:, 1:]), start=ensemble.start[1:])


def attribution(ensemble: Ensemble, sources: Any, features: int) -> tuple[Callable[[Rows], Rows], Rows]:
    """A function from the matrix to values, shape (rows, features, outputs), and the base values.

    `sources` are the features that the matrix's columns were made from. Raises Unsupported.
    """
    outputs, divisor = len(ensemble.start), ensemble.divisor
    paths = lay_out(ensemble.forest, outputs)
    points = quadrature(int(paths.trees["players"].max()))
    slots = sources[paths.slots]
    kernel = TREE_SHAP.load()

    def attribute(matrix: Rows) -> Rows:
        values = np.zeros((len(matrix), features, outputs))
        kernel(matrix, paths.splits, paths.leaves, paths.values, slots, paths.trees, points, values)
        values /= divisor
        return values

    return attribute, (ensemble.start + paths.expected) / divisor
