"""Compiled forms of linear models.

The order in which BLAS sums depends on the shapes: for 3 to 300 features, usually 20 to 100 % of the rows of a batch
(of 2 to 512, in C or Fortran order) get other last bits than alone, because a single row is a vector and a batch is a
matrix. So a batch here is a stack of single rows, `matmul` of (rows, 1, features) with (features, outputs), which numpy
computes row by row with the operation that scikit-learn applies to that row alone: measured equal for all shapes. An
answer never depends on the other rows of its batch, so it can be cached by row.
It costs little: 30 features, 3 classes, microseconds for 1 / 64 / 512 rows: 1.5 / 6.4 / 25 against 1.0 / 2.4 / 12.6.

A sparse matrix (one-hot encoders make them) is multiplied row by row, entry by entry, as scipy does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import linear_model
from sklearn.svm import LinearSVC

from registry.estimator import Compute
from registry.kernels.kernel import MATRIX, OUT, Kernel, Unsupported
from registry.kernels.links import Link, binary, identity, label_by_argmax, label_by_sign, softmax
from registry.rows.features import Rows

REGRESSORS = (
    linear_model.ElasticNet,
    linear_model.ElasticNetCV,
    linear_model.Lasso,
    linear_model.LassoCV,
    linear_model.LinearRegression,
    linear_model.Ridge,
    linear_model.RidgeCV,
)
PROBABILISTIC = (linear_model.LogisticRegression, linear_model.LogisticRegressionCV)
LABELLING = (LinearSVC, linear_model.RidgeClassifier, linear_model.RidgeClassifierCV)
LINEAR = (*REGRESSORS, *PROBABILISTIC, *LABELLING)


def _multiply_entries(matrix: Any, weights: Any, out: Any) -> None:
    for r in range(matrix.shape[0]):
        for k in range(weights.shape[1]):
            out[r, k] = 0.0
        for c in range(matrix.shape[1]):
            value = matrix[r, c]
            if value != 0.0:
                for k in range(weights.shape[1]):
                    out[r, k] += value * weights[c, k]


MULTIPLY_ENTRIES = Kernel(_multiply_entries, MATRIX, MATRIX, OUT)


def linear_compute(estimator: Any, *, sparse: bool) -> Compute:
    """A function from the matrix, shape (rows, columns). Raises Unsupported."""
    weights, intercept = coefficients(estimator)
    link = _link(estimator, intercept)
    if sparse:
        return _entry_by_entry(np.ascontiguousarray(weights), link)
    outputs = weights.shape[1]
    return lambda matrix: link(np.matmul(matrix[:, None], weights).reshape(-1, outputs))


def linear_margins(estimator: Any, *, sparse: bool) -> Compute | None:
    """A function from the matrix to what `decision_function` answers; None for a regressor. Raises Unsupported."""
    if type(estimator) in REGRESSORS:
        return None
    weights, intercept = coefficients(estimator)
    outputs = weights.shape[1]
    if sparse:
        margins = _entry_by_entry(np.ascontiguousarray(weights), identity(intercept))
    else:
        link = identity(intercept)
        margins = lambda matrix: link(np.matmul(matrix[:, None], weights).reshape(-1, outputs))  # noqa: E731
    return margins if outputs > 1 else lambda matrix: margins(matrix)[:, 0]


def coefficients(estimator: Any) -> tuple[Rows, Rows]:
    """Weights of shape (columns, outputs) and an intercept an output. Raises Unsupported."""
    given = np.asarray(estimator.coef_)
    weights = np.atleast_2d(given).T.copy(order="K")
    outputs = weights.shape[1]
    if given.dtype != np.float64 or (type(estimator) in REGRESSORS and outputs > 1):
        raise Unsupported("its coefficients are not float64, or predict several outputs")
    return weights, np.broadcast_to(np.asarray(estimator.intercept_, np.float64).ravel(), (outputs,)).copy()


def _entry_by_entry(weights: Rows, link: Link) -> Compute:
    multiply = MULTIPLY_ENTRIES.load()
    outputs = weights.shape[1]

    def compute(matrix: Rows) -> Rows:
        margins = np.empty((len(matrix), outputs))
        multiply(matrix, weights, margins)
        return link(margins)

    return compute


def _link(estimator: Any, intercept: Rows) -> Link:
    if type(estimator) in REGRESSORS:
        return identity(intercept)
    if type(estimator) in LABELLING:
        return label_by_sign(intercept) if len(intercept) == 1 else label_by_argmax(intercept)
    return binary(intercept) if len(intercept) == 1 else softmax(intercept)
