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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit  # type: ignore[import-untyped]
from sklearn import cross_decomposition, linear_model, naive_bayes
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import LinearSVC, LinearSVR

from registry.estimator import Compute
from registry.kernels import links
from registry.kernels.kernel import MATRIX, OUT, Kernel, Unsupported
from registry.kernels.links import Link
from registry.rows.features import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """An estimator whose outputs follow from `matrix @ weights`.

    `weights` has shape (columns, outputs) and lies in memory as scikit-learn's does; `link` makes the outputs of the
    products and adds the intercept itself. `prepare` is applied to the matrix before. `decides` tells whether products
    and intercept are the estimator's `decision_function`; `explained` in which space they are what is explained, None
    if they are not.
    """

    weights: Rows
    intercept: Rows
    link: Link
    prepare: Callable[[Rows], Rows] | None = None
    decides: bool = False
    explained: Literal["margin", "value"] | None = None

    def products(self, *, sparse: bool) -> Callable[[Rows], Rows]:
        """A function from the matrix, shape (rows, columns), to its products, shape (rows, outputs)."""
        outputs, prepare = self.weights.shape[1], self.prepare
        if sparse:
            multiply, entries = MULTIPLY_ENTRIES.load(), np.ascontiguousarray(self.weights)

            def products(matrix: Rows) -> Rows:
                made = np.empty((len(matrix), outputs))
                multiply(matrix, entries, made)
                return made
        else:
            weights = self.weights

            def products(matrix: Rows) -> Rows:
                made: Rows = np.matmul(matrix[:, None], weights).reshape(-1, outputs)
                return made

        return products if prepare is None else lambda matrix: products(prepare(matrix))

    def compute(self, *, sparse: bool) -> Compute:
        """A function from the matrix to the estimator's outputs."""
        return self.compute_of(self.products(sparse=sparse))

    def compute_of(self, products: Compute) -> Compute:
        """A function from what `products` takes to the estimator's outputs."""
        link = self.link
        return lambda rows: link(products(rows))

    def margins(self, *, sparse: bool) -> Compute | None:
        """A function from the matrix to what `decision_function` answers, None for an estimator without."""
        return self.margins_of(self.products(sparse=sparse))

    def margins_of(self, products: Compute) -> Compute | None:
        """A function from what `products` takes to what `decision_function` answers."""
        if not self.decides:
            return None
        add = links.identity(self.intercept)
        if self.weights.shape[1] > 1:
            return lambda rows: add(products(rows))
        return lambda rows: add(products(rows))[:, 0]


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


def coefficients(estimator: Any) -> tuple[Rows, Rows]:
    """Weights of shape (columns, outputs) and an intercept an output. Raises Unsupported."""
    given = np.asarray(estimator.coef_)
    if given.dtype != np.float64:
        raise Unsupported("its coefficients are not float64")
    weights = np.atleast_2d(given).T.copy(order="K")
    outputs = weights.shape[1]
    return weights, np.broadcast_to(np.asarray(estimator.intercept_, np.float64).ravel(), (outputs,)).copy()


def _values(estimator: Any) -> Linear:
    weights, intercept = coefficients(estimator)
    return Linear(weights, intercept, links.identity(intercept), explained="value")


def _generalized(estimator: Any) -> Linear:
    """Poisson, gamma and Tweedie regression: the link is the logarithm, or none."""
    weights, intercept = coefficients(estimator)
    match type(estimator._base_loss.link).__name__:
        case "IdentityLink":
            return _values(estimator)
        case "LogLink":
            return Linear(weights, intercept, links.exponential_of(intercept), explained="margin")
    raise Unsupported("its link has no compiled form")


def _labels(estimator: Any) -> Linear:
    weights, intercept = coefficients(estimator)
    link = links.label_by_sign(intercept) if len(intercept) == 1 else links.label_by_argmax(intercept)
    return Linear(weights, intercept, link, decides=True, explained="margin")


def probabilistic(estimator: Any) -> Linear:
    """A classifier whose margins become probabilities by the logistic function or softmax."""
    weights, intercept = coefficients(estimator)
    link = links.binary(intercept) if len(intercept) == 1 else links.softmax(intercept)
    return Linear(weights, intercept, link, decides=True, explained="margin")


def _stochastic(estimator: linear_model.SGDClassifier) -> Linear:
    weights, intercept = coefficients(estimator)
    binary = len(intercept) == 1
    match estimator.loss:
        case "log_loss":
            link = links.binary(intercept) if binary else links.one_against_rest(intercept)
        case "modified_huber":
            link = links.modified_huber(intercept)
        case _:
            return _labels(estimator)
    return Linear(weights, intercept, link, decides=True, explained="margin")


def _one_class(estimator: linear_model.SGDOneClassSVM) -> Linear:
    weights = np.atleast_2d(estimator.coef_).T.copy(order="K")
    intercept = np.ravel(-np.asarray(estimator.offset_, np.float64))
    return Linear(weights, intercept, links.label_by_score(intercept), decides=True)


def _partial_least_squares(estimator: Any) -> Linear:
    weights, intercept = coefficients(estimator)
    mean = estimator._x_mean
    return Linear(weights, intercept, links.identity(intercept), lambda matrix: matrix - mean, explained="value")


def _multinomial(estimator: naive_bayes.MultinomialNB) -> Linear:
    return _joint_logarithms(estimator.feature_log_prob_, estimator.class_log_prior_)


def _complement(estimator: naive_bayes.ComplementNB) -> Linear:
    return _joint_logarithms(estimator.feature_log_prob_, None)


def _bernoulli(estimator: naive_bayes.BernoulliNB) -> Linear:
    absent = np.log(1 - np.exp(estimator.feature_log_prob_))
    constant = estimator.class_log_prior_ + absent.sum(axis=1)
    threshold = estimator.binarize
    prepare = None if threshold is None else lambda matrix: (matrix > threshold).astype(np.float64)
    return _joint_logarithms(estimator.feature_log_prob_ - absent, constant, prepare)


def _joint_logarithms(logarithms: Rows, constant: Rows | None, prepare: Callable[[Rows], Rows] | None = None) -> Linear:
    _check_double(logarithms)
    intercept = np.zeros(len(logarithms)) if constant is None else constant
    return Linear(logarithms.T, intercept, links.of_joint_logarithms(constant), prepare)


def _network(estimator: MLPClassifier | MLPRegressor) -> Linear:
    """A multilayer perceptron: the first layer is linear, and the link does all others."""
    _check_double(*estimator.coefs_, *estimator.intercepts_)
    layers = list(zip(estimator.coefs_[1:], estimator.intercepts_[1:], strict=True))
    first, activate = estimator.intercepts_[0], ACTIVATIONS[estimator.activation]
    finish, classifies = ACTIVATIONS[estimator.out_activation_], isinstance(estimator, MLPClassifier)

    def link(products: Rows) -> Rows:
        products += first
        for weights, intercept in layers:
            activate(products)
            products = np.matmul(products[:, None], weights).reshape(-1, weights.shape[1])
            products += intercept
        finish(products)
        if not classifies:
            return products
        if products.shape[1] == 1:
            return np.hstack([1 - products, products, products > 0.5])
        return np.column_stack([products, products.argmax(axis=1)])

    if classifies and estimator._label_binarizer.y_type_ not in ("binary", "multiclass"):
        raise Unsupported("it has several targets")
    return Linear(estimator.coefs_[0], first, link)


def _softmax(margins: Rows) -> None:
    raised = np.exp(margins - margins.max(axis=1)[:, None])
    np.divide(raised, raised.sum(axis=1)[:, None], margins)


ACTIVATIONS: dict[str, Callable[[Rows], object]] = {
    "exp": lambda margins: np.exp(margins, out=margins),
    "identity": lambda margins: margins,
    "logistic": lambda margins: expit(margins, out=margins),
    "relu": lambda margins: np.maximum(margins, 0, out=margins),
    "softmax": _softmax,
    "tanh": lambda margins: np.tanh(margins, out=margins),
}
"""What a layer of a network does with its margins, in place."""


def _check_double(*arrays: Any) -> None:
    if any(array.dtype != np.float64 for array in arrays):
        raise Unsupported("its coefficients are not float64")


LINEAR: dict[type, Callable[[Any], Linear]] = {
    **dict.fromkeys(
        (
            linear_model.ARDRegression,
            linear_model.BayesianRidge,
            linear_model.ElasticNet,
            linear_model.ElasticNetCV,
            linear_model.HuberRegressor,
            linear_model.Lars,
            linear_model.LarsCV,
            linear_model.Lasso,
            linear_model.LassoCV,
            linear_model.LassoLars,
            linear_model.LassoLarsCV,
            linear_model.LassoLarsIC,
            linear_model.LinearRegression,
            linear_model.MultiTaskElasticNet,
            linear_model.MultiTaskElasticNetCV,
            linear_model.MultiTaskLasso,
            linear_model.MultiTaskLassoCV,
            linear_model.OrthogonalMatchingPursuit,
            linear_model.OrthogonalMatchingPursuitCV,
            linear_model.QuantileRegressor,
            linear_model.Ridge,
            linear_model.RidgeCV,
            linear_model.SGDRegressor,
            linear_model.TheilSenRegressor,
            LinearSVR,
        ),
        _values,
    ),
    **dict.fromkeys(
        (linear_model.GammaRegressor, linear_model.PoissonRegressor, linear_model.TweedieRegressor), _generalized
    ),
    **dict.fromkeys(
        (
            LinearSVC,
            linear_model.Perceptron,
            linear_model.RidgeClassifier,
            linear_model.RidgeClassifierCV,
        ),
        _labels,
    ),
    **dict.fromkeys(
        (cross_decomposition.CCA, cross_decomposition.PLSCanonical, cross_decomposition.PLSRegression),
        _partial_least_squares,
    ),
    **dict.fromkeys((MLPClassifier, MLPRegressor), _network),
    naive_bayes.BernoulliNB: _bernoulli,
    naive_bayes.ComplementNB: _complement,
    naive_bayes.MultinomialNB: _multinomial,
    LinearDiscriminantAnalysis: probabilistic,
    linear_model.LogisticRegression: probabilistic,
    linear_model.LogisticRegressionCV: probabilistic,
    linear_model.SGDClassifier: _stochastic,
    linear_model.SGDOneClassSVM: _one_class,
}
"""By class, a function from a fitted estimator to its linear form, which raises Unsupported."""

for _name, _make in (("PassiveAggressiveClassifier", _labels), ("PassiveAggressiveRegressor", _values)):
    if hasattr(linear_model, _name):  # scikit-learn 1.10 has them no more
        LINEAR[getattr(linear_model, _name)] = _make


def linear_form(estimator: Any) -> Linear:
    """The linear form of an estimator. Raises Unsupported."""
    make = LINEAR.get(type(estimator))
    if make is None:
        raise Unsupported(f"a {type(estimator).__name__} is not linear")
    return make(estimator)


def linear_compute(estimator: Any, *, sparse: bool) -> Compute:
    """A function from the matrix, shape (rows, columns), to the estimator's outputs. Raises Unsupported."""
    return linear_form(estimator).compute(sparse=sparse)


def linear_margins(estimator: Any, *, sparse: bool) -> Compute | None:
    """A function from the matrix to what `decision_function` answers; None for an estimator without.

    Raises Unsupported.
    """
    return linear_form(estimator).margins(sparse=sparse)
