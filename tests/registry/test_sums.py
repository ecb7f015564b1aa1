"""Estimators that add up their members are explained exactly, the others by sampling their compiled form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_selection import RFE
from sklearn.linear_model import LinearRegression, LogisticRegression, RANSACRegressor, Ridge
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from registry.explain.shap_values import Explainer
from registry.explain.sums import exact_explainer
from registry.kernels.transformers import source_matrix
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from registry.store.add import add_version
from tests.registry.ensembles import QUICK, SEED, SMALL
from tests.registry.explanations import CLOSE, assert_additive, assert_same_alone
from tests.registry.parity import numbers, target

TABLE = numbers()
ROWS = np.ascontiguousarray(TABLE.to_numpy()[:9])
FEW = SMALL | {"n_estimators": 3}


def forests(kind: Any) -> list[tuple[str, Any]]:
    return [("shallow", kind(max_depth=2, **FEW)), ("deep", kind(**FEW))]


def scaled() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression())


EXPLAINED: dict[str, tuple[Callable[[], Any], int, str, str]] = {
    "vote of forests": (
        lambda: VotingClassifier(forests(RandomForestClassifier), voting="soft", weights=[1, 3]),
        3,
        "tree-path-dependent",
        "probability",
    ),
    "mean of forests": (lambda: VotingRegressor(forests(RandomForestRegressor)), 0, "tree-path-dependent", "value"),
    "mean of linear models": (lambda: VotingRegressor([("a", Ridge()), ("b", Ridge(9))]), 0, "linear", "value"),
    "bagging of forests": (
        lambda: BaggingClassifier(RandomForestClassifier(**FEW), max_features=0.6, **FEW),
        2,
        "tree-path-dependent",
        "probability",
    ),
    "bagging of linear models": (lambda: BaggingRegressor(Ridge(), max_features=3, **FEW), 0, "linear", "value"),
    "stacked forests": (
        lambda: StackingRegressor(forests(RandomForestRegressor), Ridge(), cv=2),
        0,
        "tree-path-dependent",
        "value",
    ),
    "one against the rest": (lambda: OneVsRestClassifier(scaled()), 3, "linear", "margin"),
    "one against the rest, 2 classes": (lambda: OneVsRestClassifier(scaled()), 2, "linear", "margin"),
    "one against the rest, boosted": (
        lambda: OneVsRestClassifier(HistGradientBoostingClassifier(**QUICK)),
        3,
        "tree-path-dependent",
        "margin",
    ),
    "one against the rest, no probabilities": (lambda: OneVsRestClassifier(LinearSVC()), 3, "linear", "margin"),
    "threshold": (
        lambda: FixedThresholdClassifier(GradientBoostingClassifier(**FEW), threshold=0.3),
        2,
        "tree-path-dependent",
        "margin",
    ),
    "scaled target": (
        lambda: TransformedTargetRegressor(RandomForestRegressor(**FEW), transformer=StandardScaler()),
        0,
        "tree-path-dependent",
        "value",
    ),
    "target as it is": (lambda: TransformedTargetRegressor(Ridge()), 0, "linear", "value"),
    "some columns": (lambda: RFE(LogisticRegression(), n_features_to_select=2), 2, "linear", "margin"),
    "robust": (lambda: RANSACRegressor(LinearRegression(), **SEED), 0, "linear", "value"),
    "vote behind a scaler": (
        lambda: make_pipeline(StandardScaler(), VotingClassifier(forests(RandomForestClassifier), voting="soft")),
        2,
        "tree-path-dependent",
        "probability",
    ),
    "search for a vote": (
        lambda: GridSearchCV(VotingRegressor(forests(RandomForestRegressor)), {"weights": [None, [1, 2]]}, cv=2),
        0,
        "tree-path-dependent",
        "value",
    ),
    "vote of unlike members": (
        lambda: VotingClassifier([("linear", scaled()), *forests(RandomForestClassifier)], voting="soft"),
        2,
        "exact",
        "probability",
    ),
    "calibrated": (lambda: CalibratedClassifierCV(RandomForestClassifier(**FEW), cv=2), 3, "exact", "probability"),
    "stacked classifiers": (
        lambda: StackingClassifier(forests(RandomForestClassifier), cv=2),
        2,
        "exact",
        "probability",
    ),
    "logarithmic target": (
        lambda: TransformedTargetRegressor(Ridge(), func=np.arcsinh, inverse_func=np.sinh),
        0,
        "exact",
        "value",
    ),
    "one against one": (lambda: OneVsOneClassifier(LogisticRegression()), 3, "exact", "margin"),
    "isolation forest": (lambda: IsolationForest(**SMALL), 0, "exact", "margin"),
}
"""Each with its number of classes, 0 for none, and the method and space of its explanation."""


@pytest.mark.parametrize("name", EXPLAINED)
def test_composite_is_explained_in_a_request(name: str, tmp_path: Path) -> None:
    make, classes, method, space = EXPLAINED[name]
    estimator = make().fit(TABLE.to_numpy(), target(TABLE, classes))
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert model.explainer is not None
    assert (model.compiled, model.explainer.method, model.explainer.space) == (True, method, space)
    assert not model.explainer.jobs_only
    found = model.contributions(ROWS[:2])
    assert found.gap() <= model.explainer.tolerance
    expected = outputs(estimator, space)
    np.testing.assert_allclose(found.outputs[:, -expected.shape[1] :], expected, rtol=0, atol=CLOSE)


def outputs(estimator: Any, space: str) -> Any:
    method = {"probability": "predict_proba", "margin": "decision_function", "value": "predict"}[space]
    return np.asarray(getattr(estimator, method)(ROWS[:2])).reshape(2, -1)


def explainer(estimator: Any) -> Explainer:
    return exact_explainer(estimator, source_matrix(Schema(infer_features(TABLE, None))), TABLE.to_numpy()[:50])


def test_values_of_a_vote_are_the_weighted_mean_of_its_members() -> None:
    vote = VotingClassifier([*forests(RandomForestClassifier), ("none", "drop")], voting="soft", weights=[1, 3, 5])
    vote.fit(TABLE.to_numpy(), target(TABLE, 3))
    made = explainer(vote)
    found = made.explain(ROWS)
    shallow, deep = (explainer(member).explain(ROWS).values for member in vote.estimators_)
    np.testing.assert_allclose(found.values, (shallow + 3 * deep) / 4, rtol=0, atol=CLOSE)
    assert_additive(found)
    assert_same_alone(made, ROWS)


def test_values_of_bagged_linear_models_are_those_of_their_mean() -> None:
    bagging = BaggingRegressor(Ridge(), max_features=3, **FEW).fit(TABLE.to_numpy(), target(TABLE))
    mean = np.zeros(5)
    for member, chosen in zip(bagging.estimators_, bagging.estimators_features_, strict=True):
        mean[chosen] += member.coef_ / 3
    found = explainer(bagging).explain(ROWS)
    np.testing.assert_allclose(
        found.values[:, :, 0], (ROWS - TABLE.to_numpy()[:50].mean(axis=0)) * mean, rtol=0, atol=CLOSE
    )


def test_values_of_stacked_regressors_are_weighted_by_the_last() -> None:
    stacking = StackingRegressor(forests(RandomForestRegressor), Ridge(), cv=2).fit(TABLE.to_numpy(), target(TABLE))
    found = explainer(stacking).explain(ROWS)
    parts = [explainer(member).explain(ROWS).values for member in stacking.estimators_]
    expected = sum(part * weight for part, weight in zip(parts, stacking.final_estimator_.coef_, strict=True))
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=CLOSE)


def test_each_class_against_the_rest_is_explained_by_its_own_member() -> None:
    wrapper = OneVsRestClassifier(scaled()).fit(TABLE.to_numpy(), target(TABLE, 3))
    found = explainer(wrapper).explain(ROWS)
    for place, member in enumerate(wrapper.estimators_):
        own = explainer(member).explain(ROWS)
        np.testing.assert_array_equal(found.values[:, :, place], own.values[:, :, 1])
