"""Exact SHAP values of compiled linear models, by the features that were sent.

Each column of a model's matrix is made from one feature. So a margin is a sum of functions of one feature each, and the
SHAP value of a feature is its function's value for the row less its mean over the background (Lundberg, Lee: "A Unified
Approach to Interpreting Model Predictions", 2017, arXiv:1705.07874, corollary 1; there for the columns of a linear
model).
"""

from __future__ import annotations

import numpy as np

from registry.explain.shap_values import Contributions, Explainer, both_classes
from registry.kernels.compiling import Parts
from registry.kernels.linear import REGRESSORS, coefficients
from registry.rows.features import Rows


def linear_explainer(parts: Parts, background: Rows) -> Explainer:
    """Explains margins of linear classifiers and values of linear regressors. Raises Unsupported."""
    weights, intercept = coefficients(parts.last)  # shape (columns, outputs), (outputs,)
    matrix = parts.behind_matrix(lambda made: made)
    means = matrix(background).mean(axis=0)
    base_values = means @ weights + intercept
    sources = np.array([column.source for column in parts.plan], np.intp)
    features = parts.features
    regressor = type(parts.last) in REGRESSORS
    binary = not regressor and len(intercept) == 1

    def explain(rows: Rows) -> Contributions:
        made = matrix(rows)
        values = np.zeros((len(rows), features, len(intercept)))
        by_column = (made - means)[:, :, None] * weights
        np.add.at(values.swapaxes(0, 1), sources, by_column.swapaxes(0, 1))
        # a stack of single rows, as in registry/kernels/linear.py: a row must not depend on the others
        outputs = np.matmul(made[:, None], weights)[:, 0] + intercept
        found = Contributions(outputs, base_values, values)
        return both_classes(found, 0.0) if binary else found

    return Explainer("linear", "value" if regressor else "margin", explain)
