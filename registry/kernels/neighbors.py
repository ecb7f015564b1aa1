"""Compiled forms of estimators that compare distances: nearest neighbours and centroids, and elliptic envelopes.

Trees of neighbours are asked directly: the answer for a row does not depend on the others of its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]
from sklearn.covariance import EllipticEnvelope
from sklearn.metrics import pairwise_distances_argmin
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid
from sklearn.utils.extmath import row_norms, weighted_mode

from registry.kernels.answers import Answer, Answers, most_probable
from registry.kernels.kernel import Unsupported
from registry.rows.features import Rows


def in_double(centers: Any) -> Rows:
    """Centres, if they are float64. Raises Unsupported."""
    if centers.dtype != np.float64:
        raise Unsupported("its centres are not float64")
    return np.ascontiguousarray(centers)


def alone(rows: Rows, matrix: Rows) -> Rows:
    """`rows @ matrix`, computed as for each row alone."""
    made: Rows = np.matmul(rows[:, None], matrix)[:, 0]
    return made


def _nearest_centroid(estimator: Any) -> Answers:
    centers, metric = in_double(estimator.centroids_), estimator.metric
    scores = _centroid_scores(estimator, centers) if metric == "euclidean" else None

    def nearest(rows: Rows) -> Any:
        return pairwise_distances_argmin(rows, centers, metric=metric)

    equally_likely = np.isclose(estimator.class_prior_, 1 / len(estimator.classes_)).all()
    if scores is None:
        if not equally_likely:
            raise Unsupported("its classes are not equally likely")
        return Answers(labels=nearest)

    def probabilities(rows: Rows) -> Any:
        found = scores(rows)
        found -= found.max(axis=1)[:, np.newaxis]
        return np.exp(found - np.log(np.exp(found).sum(axis=1)[:, np.newaxis]))

    def margins(rows: Rows) -> Rows:
        found: Rows = scores(rows)
        return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found

    most_likely = nearest if equally_likely else lambda rows: scores(rows).argmax(axis=1)
    return Answers(labels=most_likely, probabilities=probabilities, margins=margins)


def _centroid_scores(estimator: Any, centers: Rows) -> Answer:
    """A function from rows to each class's negative squared distance, scaled, and its prior."""
    deviations, priors = estimator.within_class_std_dev_, 2.0 * np.log(estimator.class_prior_)
    scales = np.where(deviations != 0, deviations, 1.0)
    scaled = centers / scales
    norms = row_norms(scaled, squared=True)

    def scores(rows: Rows) -> Any:
        moved = rows / scales
        squares = row_norms(moved, squared=True)[:, None]
        found = np.column_stack([-2 * alone(moved, np.ascontiguousarray(center[:, None])) for center in scaled])
        found += squares
        found += norms
        np.sqrt(np.maximum(found, 0, out=found), out=found)
        return -(found**2) + priors

    return scores


def _neighbors(estimator: Any) -> Callable[[Rows], tuple[Any, Rows | None]]:
    """A function from rows to the places of their neighbours and the weights of these, shape (rows, neighbours)."""
    tree, count, weights = getattr(estimator, "_tree", None), estimator.n_neighbors, estimator.weights
    if tree is None:
        raise Unsupported("its neighbours are not kept in a tree")
    if weights not in (None, "uniform", "distance"):
        raise Unsupported("its weights are Python code")

    def ask(rows: Rows) -> tuple[Any, Rows | None]:
        if weights != "distance":
            return tree.query(rows, count, return_distance=False), None
        distances, places = tree.query(rows, count)
        with np.errstate(divide="ignore"):
            shares = 1.0 / distances
        equal = np.isinf(shares)
        some = equal.any(axis=1)
        shares[some] = equal[some]
        return places, shares

    return ask


def _neighbor_classes(estimator: Any) -> Answers:
    if estimator.outputs_2d_:
        raise Unsupported("its neighbours have several classes")
    neighbors, known, count = _neighbors(estimator), estimator._y, len(estimator.classes_)

    def votes(rows: Rows) -> Rows:
        places, shares = neighbors(rows)
        made, every = np.zeros((len(rows), count)), np.arange(len(rows))
        for index, classes in enumerate(known[places].T):
            made[every, classes] += 1 if shares is None else shares[:, index]
        return made

    def probabilities(rows: Rows) -> Rows:
        made = votes(rows)
        made /= made.sum(axis=1)[:, np.newaxis]
        return made

    def labels(rows: Rows) -> Any:
        places, shares = neighbors(rows)
        found, _ = weighted_mode(known[places], shares, axis=1)
        return found.ravel().astype(np.intp)

    if estimator.weights != "distance":
        return most_probable(probabilities)
    return Answers(labels=labels, probabilities=probabilities)


def _neighbor_values(estimator: Any) -> Answers:
    neighbors, known = _neighbors(estimator), np.asarray(estimator._y, np.float64)
    if known.ndim > 1:
        raise Unsupported("its neighbours have several values")

    def values(rows: Rows) -> Any:
        places, shares = neighbors(rows)
        if shares is None:
            return np.mean(known[places], axis=1)
        return np.sum(known[places] * shares, axis=1) / np.sum(shares, axis=1)

    return Answers(values=values)


def _elliptic(estimator: Any) -> Answers:
    center, precision, offset = estimator.location_[np.newaxis], estimator.get_precision(), estimator.offset_

    def margins(rows: Rows) -> Any:
        return -(cdist(rows, center, metric="mahalanobis", VI=precision)[:, 0] ** 2) - offset

    return Answers(labels=lambda rows: np.where(margins(rows) >= 0, 1, -1), margins=margins)


NEIGHBORS: dict[type, Callable[[Any], Answers]] = {
    EllipticEnvelope: _elliptic,
    KNeighborsClassifier: _neighbor_classes,
    KNeighborsRegressor: _neighbor_values,
    NearestCentroid: _nearest_centroid,
}
"""By class, a function from a fitted estimator to its answers about the matrix that it is fed, float64."""
