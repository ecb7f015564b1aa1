"""Every estimator whose answer is a formula over arrays answers compiled as scikit-learn does, bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import cross_decomposition, linear_model, naive_bayes
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.isotonic import IsotonicRegression
from sklearn.kernel_ridge import KernelRidge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import SVC, SVR, LinearSVR, NuSVC, NuSVR, OneClassSVM

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
SMOOTH: list[Any] = [
    SVR(),
    SVR(kernel="linear"),
    SVR(kernel="poly", degree=2),
    NuSVR(kernel="sigmoid"),
    KernelRidge(),
    KernelRidge(kernel="rbf", gamma=0.2),
    KernelRidge(kernel="poly"),
    GaussianProcessRegressor(ConstantKernel() * RBF() + WhiteKernel(), optimizer=None),
    KNeighborsRegressor(4),
    KNeighborsRegressor(weights="distance", algorithm="ball_tree", p=1),
    GaussianProcessRegressor(Matern(), optimizer=None, normalize_y=True),
]
MARGINS: list[Any] = [
    SVC(),
    SVC(kernel="linear"),
    SVC(kernel="poly", break_ties=True),
    NuSVC(nu=0.2),
    KNeighborsClassifier(4),
    KNeighborsClassifier(weights="distance", metric="manhattan"),
    naive_bayes.GaussianNB(),
    QuadraticDiscriminantAnalysis(),
    QuadraticDiscriminantAnalysis(reg_param=0.1),
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


@pytest.mark.parametrize("estimator", SMOOTH, ids=str)
def test_regressor_of_kernels(estimator: Any) -> None:
    assert_compiled(estimator, target(numbers()))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("estimator", MARGINS, ids=str)
def test_classifier_of_distances(estimator: Any, classes: int) -> None:
    assert_compiled(estimator, target(numbers(), classes))


def test_probabilities_of_a_support_vector_machine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert_compiled(SVC(probability=True, random_state=0), target(numbers(), 3))


def test_isotonic_regression() -> None:
    table = numbers(features=3)[["x0"]]
    assert_compiled(IsotonicRegression(out_of_bounds="clip"), target(table), table=table)


def test_categorical_naive_bayes() -> None:
    table = numbers().abs().round().clip(upper=2).astype(int)
    made = pair(naive_bayes.CategoricalNB(min_categories=3), table, target(numbers(), 3), margin=0)
    made.assert_same(np.ascontiguousarray(table, np.float64)[:40])


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


@pytest.mark.parametrize("estimator", [linear_model.SGDOneClassSVM(nu=0.3, random_state=0), OneClassSVM(nu=0.2)])
def test_outlier_detector(estimator: Any) -> None:
    assert_compiled(estimator, None)
