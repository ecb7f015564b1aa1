"""Exact SHAP values of compiled linear models, back through what made their columns to the features that were sent.

Each column is made from one feature. So a margin is a sum of functions of one feature each, and the SHAP value of a
feature is what its function gives for the row less its mean over the background (Lundberg, Lee: "A Unified Approach to
Interpreting Model Predictions", 2017, arXiv:1705.07874, corollary 1; there for the columns of a linear model).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from registry.explain.shap_values import Contributions, Method, Space, both_classes
from registry.kernels.compiling import Parts
from registry.kernels.linear import REGRESSORS, coefficients
from registry.rows.features import Rows


@dataclass(frozen=True, slots=True, eq=False)
class LinearExplainer:
    """Explains margins of linear classifiers, values of linear regressors."""

    space: Space
    matrix: Callable[[Rows], Rows]
    sources: NDArray[np.intp]
    """The features that the matrix's columns are made from; `means` are the columns' over the background."""
    means: Rows
    weights: Rows
    """Shape (columns, outputs)."""
    intercept: Rows
    features: int
    binary: bool
    method: Method = field(default="linear", init=False)
    tolerance: float = field(default=1e-9, init=False)
    in_process: bool = field(default=True, init=False)
    jobs_only: bool = field(default=False, init=False)
    evaluations: int = field(default=0, init=False)

    def explain(self, rows: Rows) -> Contributions:
        """What each feature contributes to each margin."""
        matrix = self.matrix(rows)
        values = np.zeros((len(rows), self.features, len(self.intercept)))
        of_columns = (matrix - self.means)[:, :, None] * self.weights
        np.add.at(values.swapaxes(0, 1), self.sources, of_columns.swapaxes(0, 1))
        # a stack of single rows, as in registry/kernels/linear.py: a row must not depend on the others
        outputs = np.matmul(matrix[:, None], self.weights)[:, 0] + self.intercept
        found = Contributions(outputs, self.means @ self.weights + self.intercept, values)
        return both_classes(found, 0.0) if self.binary else found


def linear_explainer(parts: Parts, background: Rows) -> LinearExplainer:
    """The explainer of a linear model that was taken apart. Raises Unsupported."""
    weights, intercept = coefficients(parts.last)
    matrix = parts.behind_matrix(lambda made: made)
    regressor = type(parts.last) in REGRESSORS
    return LinearExplainer(
        space="value" if regressor else "margin",
        matrix=matrix,
        sources=np.array([column.source for column in parts.plan], np.intp),
        means=matrix(background).mean(axis=0),
        weights=weights,
        intercept=intercept,
        features=parts.features,
        binary=not regressor and len(intercept) == 1,
    )
