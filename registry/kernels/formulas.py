"""Estimators that are a formula over whole rows: scikit-learn's own functions, without the checks of every array.

BLAS sums a batch in another order than a row alone, so what goes through it is computed row by row, or as a stack of
single rows (see `linear.py`). Support vector machines are asked through libsvm's own functions, which sum in order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import naive_bayes, svm
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils.multiclass import _ovr_decision_function

from registry.kernels.answers import Answer, Answers
from registry.kernels.clusters import FORMULAS as CLUSTERS
from registry.kernels.kernel import Unsupported
from registry.kernels.links import of_joint_logarithms
from registry.kernels.neighbors import NEIGHBORS
from registry.kernels.stages import row_products
from registry.rows.features import Rows


def _by_row(function: Answer) -> Answer:
    """A function of a batch that asks about each row alone."""
    return lambda rows: np.concatenate([function(row[None]) for row in rows])


def _of_logarithms(logarithms: Answer) -> Answers:
    """The answers of naive Bayes from the logarithms of joint likelihoods, shape (rows, classes)."""
    link = of_joint_logarithms(None)
    return Answers(
        labels=lambda rows: logarithms(rows).argmax(axis=1),
        probabilities=lambda rows: link(logarithms(rows))[:, :-1],
        outputs=lambda rows: link(logarithms(rows)),
    )


def _gaussian(estimator: naive_bayes.GaussianNB) -> Answers:
    means, variances = estimator.theta_, estimator.var_
    shares = [np.log(prior) for prior in estimator.class_prior_]
    constants = [-0.5 * np.sum(np.log(2.0 * np.pi * own)) for own in variances]

    def logarithms(rows: Rows) -> Rows:
        made = [
            share + (constant - 0.5 * np.sum(((rows - mean) ** 2) / variance, axis=1))
            for share, constant, mean, variance in zip(shares, constants, means, variances, strict=True)
        ]
        return np.stack(made).T.copy()

    return _of_logarithms(logarithms)


def _categorical(estimator: naive_bayes.CategoricalNB) -> Answers:
    tables, prior = estimator.feature_log_prob_, estimator.class_log_prior_

    def logarithms(rows: Rows) -> Rows:
        codes = rows.astype(np.intp)
        made = np.zeros((len(rows), len(prior)))
        for index, table in enumerate(tables):
            made += table[:, codes[:, index]].T
        made += prior
        return made

    return _of_logarithms(logarithms)


def _quadratic(estimator: QuadraticDiscriminantAnalysis) -> Answers:
    turned = [turn * (scale ** (-0.5)) for turn, scale in zip(estimator.rotations_, estimator.scalings_, strict=True)]
    means = estimator.means_
    logarithms = np.asarray([np.sum(np.log(scale)) for scale in estimator.scalings_])
    shares = np.log(estimator.priors_)

    def scores(rows: Rows) -> Rows:
        squares = [
            np.sum(row_products(rows - mean, turn) ** 2, axis=1) for mean, turn in zip(means, turned, strict=True)
        ]
        made: Rows = -0.5 * (np.array(squares).T + logarithms) + shares
        return made

    def probabilities_of(made: Rows) -> Rows:
        likelihoods = made - made.max(axis=1)[:, None]
        shares: Rows = np.exp(likelihoods - np.log(np.exp(likelihoods).sum(axis=1)[:, None]))
        return shares

    def outputs(rows: Rows) -> Rows:
        made = scores(rows)
        return np.column_stack([probabilities_of(made), made.argmax(axis=1)])

    def margins(rows: Rows) -> Rows:
        made = scores(rows)
        return made[:, 1] - made[:, 0] if made.shape[1] == 2 else made

    return Answers(
        labels=lambda rows: scores(rows).argmax(axis=1),
        probabilities=lambda rows: probabilities_of(scores(rows)),
        margins=margins,
        outputs=outputs,
    )


def _support_vectors(estimator: Any) -> Answers:
    """The answers of libsvm, asked as the estimator asks it."""
    machine = copy.copy(estimator)
    if machine._sparse or machine.kernel == "precomputed" or callable(machine.kernel):
        raise Unsupported("its support vectors are sparse, or its kernel is not libsvm's")
    predict, decide = machine._dense_predict, machine._dense_decision_function
    if isinstance(machine, svm.OneClassSVM):
        return Answers(labels=predict, margins=lambda rows: decide(rows).ravel())
    if isinstance(machine, svm.SVR | svm.NuSVR):
        return Answers(values=predict)
    classes = len(machine.classes_)

    def margins(rows: Rows) -> Any:
        made = decide(rows)
        if classes == 2:
            return -made.ravel()
        return _ovr_decision_function(made < 0, -made, classes) if machine.decision_function_shape == "ovr" else made

    labels: Answer = lambda rows: predict(rows).astype(np.intp)  # noqa: E731
    if machine.break_ties and classes > 2:
        labels = lambda rows: np.argmax(margins(rows), axis=1)  # noqa: E731
    fitted = len(getattr(machine, "_probA", ())) > 0
    return Answers(labels=labels, margins=margins, probabilities=machine._dense_predict_proba if fitted else None)


def _kernel_ridge(estimator: KernelRidge) -> Answers:
    metric, known, weights = estimator.kernel, estimator.X_fit_, estimator.dual_coef_
    given = {"gamma": estimator.gamma, "degree": estimator.degree, "coef0": estimator.coef0}
    if not isinstance(metric, str) or metric == "precomputed" or not isinstance(known, np.ndarray):
        raise Unsupported("its kernel is Python code, or its rows are sparse")

    def values(rows: Rows) -> Any:
        return np.dot(pairwise_kernels(rows, known, metric=metric, filter_params=True, **given), weights)

    return Answers(values=_by_row(values))


def _gaussian_process(estimator: GaussianProcessRegressor) -> Answers:
    if estimator.kernel_ is None or not estimator.kernel_.requires_vector_input:
        raise Unsupported("its kernel takes no numbers")
    kernel, known, weights = estimator.kernel_, estimator.X_train_, estimator.alpha_
    scale, mean = estimator._y_train_std, estimator._y_train_mean

    def values(rows: Rows) -> Any:
        return scale * (kernel(rows, known) @ weights) + mean

    return Answers(values=_by_row(values))


FORMULAS: dict[type, Callable[[Any], Answers]] = {
    **CLUSTERS,
    **NEIGHBORS,
    GaussianProcessRegressor: _gaussian_process,
    KernelRidge: _kernel_ridge,
    QuadraticDiscriminantAnalysis: _quadratic,
    naive_bayes.CategoricalNB: _categorical,
    naive_bayes.GaussianNB: _gaussian,
    svm.NuSVC: _support_vectors,
    svm.NuSVR: _support_vectors,
    svm.OneClassSVM: _support_vectors,
    svm.SVC: _support_vectors,
    svm.SVR: _support_vectors,
}
"""By class, a function from a fitted estimator to its answers about the matrix that it is fed, float64."""
