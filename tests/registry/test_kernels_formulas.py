"""Every estimator whose answer is a formula over arrays answers compiled as scikit-learn does, bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import cross_decomposition, linear_model, naive_bayes
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import LinearSVR

from registry.kernels import probe_rows, verify
from tests.registry.parity import numbers, pair, target

REGRESSORS: list[Any] = [
    linear_model.ARDRegression(),
    linear_model.BayesianRidge(),
    linear_model.HuberRegressor(),
    linear_model.Lars(),
    linear_model.LarsCV(),
    linear_model.LassoLars(alpha=0.01),
    linear_model.LassoLarsCV(),
    linear_model.LassoLarsIC(),
    linear_model.OrthogonalMatchingPursuit(),
    linear_model.OrthogonalMatchingPursuitCV(),
    linear_model.QuantileRegressor(alpha=0.01),
    linear_model.RANSACRegressor(random_state=0),
    linear_model.SGDRegressor(random_state=0),
    linear_model.TheilSenRegressor(random_state=0, max_subpopulation=50),
    LinearSVR(),
    cross_decomposition.PLSRegression(),
    cross_decomposition.CCA(1),
    cross_decomposition.PLSCanonical(1),
    MLPRegressor(hidden_layer_sizes=(7, 5), max_iter=20, random_state=0),
    MLPRegressor(hidden_layer_sizes=(4,), activation="logistic", max_iter=20, random_state=0),
]
POSITIVE: list[Any] = [
    linear_model.GammaRegressor(),
    linear_model.PoissonRegressor(),
    linear_model.TweedieRegressor(power=1.5),
    linear_model.TweedieRegressor(power=0),
    linear_model.TweedieRegressor(power=2, link="identity", alpha=100),
]
CLASSIFIERS: list[Any] = [
    linear_model.LogisticRegressionCV(
        Cs=3, max_iter=500, use_legacy_attributes=False, l1_ratios=(0,), scoring="accuracy"
    ),
    linear_model.Perceptron(),
    linear_model.RidgeClassifierCV(),
    *(linear_model.SGDClassifier(loss=loss, random_state=0) for loss in ("hinge", "log_loss", "modified_huber")),
    linear_model.SGDClassifier(loss="squared_hinge", random_state=0),
    LinearDiscriminantAnalysis(),
    LinearDiscriminantAnalysis("lsqr", shrinkage="auto"),
    naive_bayes.BernoulliNB(binarize=0.3),
    MLPClassifier((6,), max_iter=20, random_state=0),
    MLPClassifier((6, 4), activation="tanh", max_iter=20, random_state=0),
]
COUNTS: list[Any] = [
    naive_bayes.BernoulliNB(binarize=1.5),
    naive_bayes.ComplementNB(),
    naive_bayes.ComplementNB(norm=True),
    naive_bayes.MultinomialNB(),
    naive_bayes.MultinomialNB(fit_prior=False),
]


def assert_compiled(estimator: Any, y: Any, **options: Any) -> None:
    """The compiled form answers the table, and the rows where models break, as the estimator does for the row alone."""
    table = options.pop("table", numbers())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        made = pair(estimator, table, y, **options)
    rows = np.ascontiguousarray(table, np.float64)  # BLAS sums columns that lie apart in another order
    made.assert_same(rows[:40])
    assert verify(made.compiled, made.reference, probe_rows(made.schema, rows[:30]))


@pytest.mark.parametrize("estimator", REGRESSORS, ids=str)
def test_regressor(estimator: Any) -> None:
    assert_compiled(estimator, target(numbers()))


@pytest.mark.parametrize("estimator", POSITIVE, ids=str)
def test_regressor_of_positive_numbers(estimator: Any) -> None:
    assert_compiled(estimator, np.exp(target(numbers())))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=str)
def test_classifier(estimator: Any, classes: int) -> None:
    assert_compiled(estimator, target(numbers(), classes))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("estimator", COUNTS, ids=str)
def test_classifier_of_counts(estimator: Any, classes: int) -> None:
    table = numbers().abs().mul(3).round()
    assert_compiled(estimator, target(numbers(), classes), table=table)


def test_passive_aggressive_models_of_earlier_releases() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are deprecated
        assert_compiled(linear_model.PassiveAggressiveRegressor(), target(numbers()))
        assert_compiled(linear_model.PassiveAggressiveClassifier(), target(numbers(), 3))


@pytest.mark.parametrize("estimator", [linear_model.SGDOneClassSVM(nu=0.3, random_state=0)])
def test_outlier_detector(estimator: Any) -> None:
    assert_compiled(estimator, None)
