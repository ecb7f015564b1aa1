"""Compiled clusterers, mixtures, neighbours, centroids and dummies answer as scikit-learn does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AffinityPropagation, Birch, BisectingKMeans, KMeans, MeanShift, MiniBatchKMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.kernels.kernel import Unsupported
from tests.registry.ensembles import SEED
from tests.registry.parity import Pair, numbers, pair, pair_and_values, rows_of, target

KINDS = ("full", "tied", "diag", "spherical")

FORMULAS: dict[str, tuple[Callable[[], Any], int]] = {
    "k-means": (lambda: KMeans(4, n_init=1, **SEED), 0),
    "k-means behind a scaler": (lambda: make_pipeline(StandardScaler(), KMeans(3, n_init=1, **SEED)), 0),
    "k-means of batches": (lambda: MiniBatchKMeans(5, n_init=1, **SEED), 0),
    "bisecting k-means": (lambda: BisectingKMeans(6, **SEED), 0),
    "mean shift": (lambda: MeanShift(bandwidth=2.0), 0),
    "affinity propagation": (lambda: AffinityPropagation(damping=0.9, **SEED), 0),
    "birch": (lambda: Birch(n_clusters=3), 0),
    "nearest centroid": (NearestCentroid, 3),
    "nearest centroid, 2 classes": (partial(NearestCentroid, priors="empirical"), 2),
    "nearest centroid, other priors": (partial(NearestCentroid, priors=[0.2, 0.3, 0.5]), 3),
    "nearest centroid, manhattan": (lambda: NearestCentroid(metric="manhattan"), 2),
    "neighbours": (KNeighborsClassifier, 3),
    "neighbours, weighted": (lambda: KNeighborsClassifier(9, weights="distance", algorithm="ball_tree"), 2),
    "neighbours, numbers": (lambda: KNeighborsRegressor(12, p=1), 0),
    "neighbours, numbers, weighted": (lambda: KNeighborsRegressor(weights="distance"), 0),
    "elliptic envelope": (lambda: EllipticEnvelope(contamination=0.2, **SEED), 0),
    **{f"mixture, {kind}": (partial(GaussianMixture, 3, covariance_type=kind, **SEED), 0) for kind in KINDS},
    **{
        f"Bayesian mixture, {kind}": (
            partial(BayesianGaussianMixture, n_components=3, covariance_type=kind, max_iter=300, **SEED),
            0,
        )
        for kind in KINDS
    },
    "most frequent class": (lambda: DummyClassifier(strategy="most_frequent"), 3),
    "classes as often as they were": (DummyClassifier, 3),
    "constant class": (lambda: DummyClassifier(strategy="constant", constant="b"), 2),
    "mean": (DummyRegressor, 0),
    "quantile": (lambda: DummyRegressor(strategy="quantile", quantile=0.3), 0),
}
"""Each with its number of classes, 0 for none."""


@cache
def fitted(name: str) -> tuple[Pair, list[float]]:
    return pair_and_values(*FORMULAS[name])


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_answers_the_same(name: str) -> None:
    made, _ = fitted(name)
    made.assert_same(np.ascontiguousarray(numbers().to_numpy()[:60]))


@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=8)
@given(data=st.data())
def test_formula_answers_any_row_as_scikit_learn_does(name: str, data: st.DataObject) -> None:
    made, interesting = fitted(name)
    made.assert_same(data.draw(rows_of(made.schema, interesting, count=4)))


@pytest.mark.parametrize("strategy", ["stratified", "uniform"])
def test_dummy_that_answers_by_chance_is_left_alone(strategy: str) -> None:
    with pytest.raises(Unsupported, match="by chance"):
        pair(DummyClassifier(strategy=strategy, **SEED), numbers(), target(numbers(), 2))
