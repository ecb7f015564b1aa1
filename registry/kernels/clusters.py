"""Compiled forms of clusterers, mixtures and dummies: their formulas without checks of every array.

A clusterer's label is the nearest centre, found by scikit-learn's own functions. Mixtures compute with stacks of single
rows, as linear models do (see `linear.py`), because BLAS sums a batch in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.special import digamma  # type: ignore[import-untyped]
from sklearn import cluster, dummy, mixture
from sklearn.cluster._kmeans import _labels_inertia
from sklearn.metrics import pairwise_distances_argmin
from sklearn.mixture._base import _logsumexp
from sklearn.mixture._gaussian_mixture import _compute_log_det_cholesky
from sklearn.utils.extmath import row_norms

from registry.kernels.answers import Answer, Answers
from registry.kernels.kernel import Unsupported
from registry.kernels.neighbors import alone, in_double
from registry.rows.features import Rows


def _nearest(rows: Rows, centers: Rows) -> Any:
    """The index of the centre that is nearest to each row, as k-means finds it."""
    return _labels_inertia(rows, np.ones(len(rows)), centers, n_threads=1, return_inertia=False)


def _k_means(estimator: Any) -> Answers:
    return Answers(labels=partial(_nearest, centers=in_double(estimator.cluster_centers_)))


def _bisecting_k_means(estimator: Any) -> Answers:
    return Answers(labels=_bisected(estimator._bisecting_tree, getattr(estimator, "_X_mean", 0.0)))


def _bisected(node: Any, mean: Any) -> Answer:
    if node.left is None:
        return lambda rows: np.full(len(rows), node.label, np.int32)
    centers = in_double(np.vstack((node.left.center, node.right.center)) + mean)
    left, right = _bisected(node.left, mean), _bisected(node.right, mean)

    def labels(rows: Rows) -> Any:
        found, goes_left = np.empty(len(rows), np.int32), _nearest(rows, centers) == 0
        for ask, chosen in ((left, goes_left), (right, ~goes_left)):
            if chosen.any():
                found[chosen] = ask(rows[chosen])
        return found

    return labels


def _shift(estimator: Any) -> Answers:
    """The answers of a clusterer that tells which of its centres is the nearest."""
    centers = in_double(estimator.cluster_centers_)
    if not len(centers):
        raise Unsupported("it has found no centre")
    return Answers(labels=lambda rows: pairwise_distances_argmin(rows, centers))


def _birch(estimator: Any) -> Answers:
    centers, labels = in_double(estimator.subcluster_centers_), estimator.subcluster_labels_
    known = {"Y_norm_squared": estimator._subcluster_norms}
    return Answers(labels=lambda rows: labels[pairwise_distances_argmin(rows, centers, metric_kwargs=known)])


def _mixture(estimator: Any) -> Answers:
    logarithms, weights = _log_densities(estimator), estimator._estimate_log_weights(xp=np)

    def weighted(rows: Rows) -> Rows:
        made: Rows = logarithms(rows) + weights
        return made

    def probabilities(rows: Rows) -> Any:
        made = weighted(rows)
        with np.errstate(under="ignore"):
            return np.exp(made - _logsumexp(made, axis=1, xp=np)[:, np.newaxis])

    return Answers(labels=lambda rows: weighted(rows).argmax(axis=1), probabilities=probabilities)


def _log_densities(estimator: Any) -> Answer:
    """A function from rows to the logarithm of each component's density, shape (rows, components)."""
    features = estimator.means_.shape[1]
    squares = _SQUARES[estimator.covariance_type](estimator.means_, estimator.precisions_cholesky_)
    determinants = _compute_log_det_cholesky(estimator.precisions_cholesky_, estimator.covariance_type, features)
    constant = features * math.log(2 * math.pi)
    if type(estimator) is mixture.GaussianMixture:
        return lambda rows: -0.5 * (constant + squares(rows)) + determinants
    degrees = estimator.degrees_of_freedom_
    of_degrees = 0.5 * features * np.log(degrees)
    lambdas = features * np.log(2.0) + np.sum(digamma(0.5 * (degrees - np.arange(0, features)[:, np.newaxis])), 0)
    of_means = 0.5 * (lambdas - features / estimator.mean_precision_)
    return lambda rows: -0.5 * (constant + squares(rows)) + determinants - of_degrees + of_means


def _full(means: Rows, choleskys: Any) -> Answer:
    shifts = [mean @ own for mean, own in zip(means, choleskys, strict=True)]

    def squares(rows: Rows) -> Rows:
        parts = [np.square(alone(rows, own) - shift) for own, shift in zip(choleskys, shifts, strict=True)]
        return np.column_stack([np.sum(part, axis=1) for part in parts])

    return squares


def _tied(means: Rows, cholesky: Rows) -> Answer:
    return _full(means, [cholesky] * len(means))


def _diagonal(means: Rows, choleskys: Rows) -> Answer:
    precisions = choleskys**2
    constant, slopes = np.sum((means**2 * precisions), axis=1), (means * precisions).T
    return lambda rows: constant - 2.0 * alone(rows, slopes) + alone(rows**2, precisions.T)


def _spherical(means: Rows, choleskys: Rows) -> Answer:
    precisions = choleskys**2
    constant = np.sum(means**2, axis=1) * precisions

    def squares(rows: Rows) -> Rows:
        made: Rows = (
            constant - 2 * (alone(rows, means.T) * precisions) + np.outer(row_norms(rows, squared=True), precisions)
        )
        return made

    return squares


_SQUARES: dict[str, Callable[[Rows, Any], Answer]] = {
    "full": _full,
    "tied": _tied,
    "diag": _diagonal,
    "spherical": _spherical,
}


def _dummy_classifier(estimator: Any) -> Answers:
    if estimator.n_outputs_ != 1 or estimator.strategy in ("stratified", "uniform"):
        raise Unsupported("it answers by chance, or for several targets")
    row = np.zeros((1, estimator.n_features_in_))
    shares = np.asarray(estimator.predict_proba(row), np.float64)
    (label,) = np.flatnonzero(np.asarray(estimator.classes_) == estimator.predict(row)[0])
    return Answers(
        labels=lambda rows: np.full(len(rows), label), probabilities=lambda rows: np.repeat(shares, len(rows), 0)
    )


def _dummy_regressor(estimator: Any) -> Answers:
    constant = np.asarray(estimator.constant_, np.float64)
    return Answers(values=lambda rows: np.repeat(constant, len(rows), 0))


FORMULAS: dict[type, Callable[[Any], Answers]] = {
    cluster.AffinityPropagation: _shift,
    cluster.Birch: _birch,
    cluster.BisectingKMeans: _bisecting_k_means,
    cluster.KMeans: _k_means,
    cluster.MeanShift: _shift,
    cluster.MiniBatchKMeans: _k_means,
    dummy.DummyClassifier: _dummy_classifier,
    dummy.DummyRegressor: _dummy_regressor,
    mixture.BayesianGaussianMixture: _mixture,
    mixture.GaussianMixture: _mixture,
}
"""By class, a function from a fitted estimator to its answers about the matrix that it is fed, float64."""
