"""Estimators that are made of others, compiled from their members, answer as scikit-learn does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor, RegressorChain
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from registry.kernels.kernel import Unsupported
from tests.registry.ensembles import QUICK, SEED, SMALL
from tests.registry.parity import Pair, around, mixed, numbers, pair, pair_and_values, rows_of, rows_of_table, target

FEW = SMALL | {"n_estimators": 3}


class Own(GaussianNB):  # type: ignore[misc]
    """A classifier of Python code."""


def logistic() -> Any:
    return LogisticRegression(max_iter=500)


def scaled() -> Any:
    return make_pipeline(StandardScaler(), logistic())


def forest() -> Any:
    return RandomForestClassifier(**FEW)


def three(last: Any = None) -> list[tuple[str, Any]]:
    return [("linear", scaled()), ("trees", forest()), ("boosted", last or HistGradientBoostingClassifier(**QUICK))]


def regressors() -> list[tuple[str, Any]]:
    return [("linear", Ridge()), ("trees", RandomForestRegressor(**FEW)), ("one", DecisionTreeRegressor(**SEED))]


def many() -> list[tuple[str, Any]]:
    """As many members as make numpy add in pairs."""
    return [(f"{depth}", DecisionTreeRegressor(max_depth=depth, **SEED)) for depth in range(1, 12)]


def calibrated(estimator: Any, method: str, **options: Any) -> Any:
    return CalibratedClassifierCV(estimator, method=method, cv=2, **options)


def prefit(classes: int) -> Any:
    table = numbers()
    fitted = RandomForestClassifier(**FEW).fit(table.to_numpy(), target(table, classes))
    return CalibratedClassifierCV(FrozenEstimator(fitted), method="isotonic")


def stacking(**options: Any) -> Any:
    return StackingClassifier(three(), cv=2, **options)


COMPOSITES: dict[str, tuple[Callable[[], Any], int]] = {
    "vote, soft": (lambda: VotingClassifier(three(), voting="soft"), 3),
    "vote, soft, weighted": (lambda: VotingClassifier(three(), voting="soft", weights=[2, 1, 0.3]), 2),
    "vote, hard": (lambda: VotingClassifier(three(LinearSVC()), voting="hard"), 3),
    "vote, hard, weighted": (lambda: VotingClassifier(three(LinearSVC()), weights=[1, 1, 1.5]), 3),
    "vote, one dropped": (lambda: VotingClassifier([*three(), ("none", "drop")], weights=[1, 2, 3, 4]), 2),
    "vote of votes": (lambda: VotingClassifier([("a", VotingClassifier(three())), ("b", logistic())]), 2),
    "vote, a member in Python": (lambda: VotingClassifier(three(Own()), voting="soft"), 2),
    "mean of regressors": (lambda: VotingRegressor(regressors()), 0),
    "mean of regressors, weighted": (lambda: VotingRegressor(regressors(), weights=[0.1, 0.2, 0.7]), 0),
    "mean of many regressors": (lambda: VotingRegressor(many()), 0),
    "bagging of pipelines": (lambda: BaggingClassifier(scaled(), **FEW), 3),
    "bagging of forests, some columns": (lambda: BaggingClassifier(forest(), max_features=0.6, **FEW), 2),
    "bagging of classifiers without probabilities": (lambda: BaggingClassifier(LinearSVC(), **SMALL), 3),
    "bagging of few rows": (lambda: BaggingClassifier(logistic(), max_samples=6, **SMALL), 4),
    "bagging of regressors": (lambda: BaggingRegressor(Ridge(), max_features=3, **SMALL), 0),
    "calibrated, sigmoid": (lambda: calibrated(logistic(), "sigmoid"), 2),
    "calibrated, sigmoid, 3 classes": (lambda: calibrated(forest(), "sigmoid"), 3),
    "calibrated, sigmoid, of a margin": (lambda: calibrated(LinearSVC(), "sigmoid"), 3),
    "calibrated, isotonic": (lambda: calibrated(forest(), "isotonic"), 2),
    "calibrated, isotonic, 4 classes": (lambda: calibrated(scaled(), "isotonic"), 4),
    "calibrated, temperature": (lambda: calibrated(logistic(), "temperature"), 2),
    "calibrated, temperature, of probabilities": (lambda: calibrated(forest(), "temperature"), 2),
    "calibrated, temperature, 3 classes": (lambda: calibrated(forest(), "temperature"), 3),
    "calibrated, one model": (lambda: calibrated(GradientBoostingClassifier(**FEW), "sigmoid", ensemble=False), 2),
    "calibrated, prefit": (lambda: prefit(3), 3),
    "stacking": (stacking, 2),
    "stacking, 3 classes": (lambda: stacking(final_estimator=forest()), 3),
    "stacking, passthrough": (lambda: stacking(passthrough=True), 3),
    "stacking of margins": (
        lambda: StackingClassifier([*three()[::2]], stack_method="decision_function", final_estimator=forest(), cv=2),
        2,
    ),
    "stacking of labels": (lambda: stacking(stack_method="predict"), 3),
    "stacking of regressors": (lambda: StackingRegressor(regressors(), cv=2), 0),
    "stacking of regressors, passthrough": (
        lambda: StackingRegressor(regressors(), RandomForestRegressor(**FEW), cv=2, passthrough=True),
        0,
    ),
    "one against the rest": (lambda: OneVsRestClassifier(logistic()), 3),
    "one against the rest, 9 classes": (lambda: OneVsRestClassifier(forest()), 9),
    "one against the rest, 2 classes": (lambda: OneVsRestClassifier(scaled()), 2),
    "one against the rest, margins": (lambda: OneVsRestClassifier(LinearSVC()), 3),
    "one against the rest, regressors": (lambda: OneVsRestClassifier(Ridge()), 3),
    "one against one": (lambda: OneVsOneClassifier(logistic()), 4),
    "one against one, forests": (lambda: OneVsOneClassifier(forest()), 3),
    "one against one, 2 classes": (lambda: OneVsOneClassifier(LinearSVC()), 2),
    "code of classes": (lambda: OutputCodeClassifier(logistic(), code_size=3, **SEED), 4),
    "boosted logistic regression": (lambda: AdaBoostClassifier(logistic(), **SMALL), 2),
    "boosted forests, 3 classes": (lambda: AdaBoostClassifier(forest(), **FEW), 3),
    "boosted regressors": (lambda: AdaBoostRegressor(**SMALL), 0),
    "boosted linear regressors": (lambda: AdaBoostRegressor(Ridge(), **SMALL), 0),
    "fixed threshold": (lambda: FixedThresholdClassifier(logistic(), threshold=0.3), 2),
    "fixed threshold of the first class": (
        lambda: FixedThresholdClassifier(forest(), threshold=0.7, pos_label="a"),
        2,
    ),
    "fixed threshold of a margin": (
        lambda: FixedThresholdClassifier(
            LinearSVC(), threshold=0.2, response_method="decision_function", pos_label="a"
        ),
        2,
    ),
    "tuned threshold": (lambda: TunedThresholdClassifierCV(scaled(), scoring="balanced_accuracy", cv=2), 2),
    "target, transformed by functions": (
        lambda: TransformedTargetRegressor(LinearRegression(), func=np.arcsinh, inverse_func=np.sinh),
        0,
    ),
    "target, scaled": (
        lambda: TransformedTargetRegressor(HistGradientBoostingRegressor(**QUICK), transformer=StandardScaler()),
        0,
    ),
    "target, as it is": (lambda: TransformedTargetRegressor(Ridge()), 0),
    "search for a vote": (
        lambda: GridSearchCV(VotingClassifier(three(), voting="soft"), {"weights": [None, [1, 2, 3]]}, cv=2),
        2,
    ),
    "vote behind a scaler": (lambda: make_pipeline(StandardScaler(), VotingClassifier(three(), voting="soft")), 3),
    "stacking behind a scaler": (lambda: make_pipeline(StandardScaler(), stacking(passthrough=True)), 2),
}
"""Each with its number of classes, 0 for numbers."""


@cache
def fitted(name: str) -> tuple[Pair, list[float]]:
    return pair_and_values(*COMPOSITES[name])


@pytest.mark.parametrize("name", COMPOSITES)
def test_composite_answers_the_same(name: str) -> None:
    made, _ = fitted(name)
    made.assert_same(np.ascontiguousarray(numbers().to_numpy()[:60]))


@pytest.mark.parametrize("name", COMPOSITES)
@settings(max_examples=5)
@given(data=st.data())
def test_composite_answers_any_row_as_scikit_learn_does(name: str, data: st.DataObject) -> None:
    made, interesting = fitted(name)
    made.assert_same(data.draw(rows_of(made.schema, interesting, count=4)))


TARGETS: dict[str, Callable[[], Any]] = {
    "regressors": lambda: MultiOutputRegressor(Ridge()),
    "chain of regressors": lambda: RegressorChain(Ridge(), order=[2, 0, 1]),
    "chain of trees": lambda: RegressorChain(RandomForestRegressor(**FEW)),
    "classifiers": lambda: MultiOutputClassifier(logistic()),
    "classifiers without probabilities": lambda: MultiOutputClassifier(LinearSVC()),
    "chain of classifiers": lambda: ClassifierChain(logistic(), order=[1, 2, 0]),
    "chain of probabilities": lambda: ClassifierChain(forest(), chain_method="predict_proba"),
    "chain of margins": lambda: ClassifierChain(logistic(), chain_method="decision_function"),
    "several labels": lambda: OneVsRestClassifier(logistic()),
    "several labels, one of which never comes": lambda: OneVsRestClassifier(forest()),
}


def targets(name: str) -> Any:
    """Three targets; whether each is positive where the estimator classifies."""
    table = numbers().to_numpy()
    values = table[:, :3] + 0.5 * table[:, 2:]
    if "regressors" in name or "trees" in name:
        return values
    found = (values > 0).astype(int)
    if "never" in name:
        found[:, 1] = 0
    return found


@pytest.mark.filterwarnings("ignore:Label .* is present in all training examples")
@pytest.mark.filterwarnings("ignore:Label not .* is present in all training examples")
@pytest.mark.parametrize("name", TARGETS)
def test_estimator_for_several_targets_answers_the_same(name: str) -> None:
    made = pair(TARGETS[name](), numbers(), targets(name))
    made.assert_same(np.ascontiguousarray(numbers().to_numpy()[:40]))


BOOSTED: dict[str, Callable[[Any, Any], Any]] = {
    "sigmoid": lambda classifier, _: calibrated(classifier, "sigmoid"),
    "isotonic": lambda classifier, _: calibrated(classifier, "isotonic"),
    "vote": lambda classifier, _: VotingClassifier([("boosted", classifier), ("trees", forest())], voting="soft"),
    "one against the rest": lambda classifier, _: OneVsRestClassifier(classifier),
    "stacking": lambda classifier, _: StackingClassifier([("boosted", classifier)], cv=2),
    "bagging": lambda classifier, _: BaggingClassifier(classifier, n_estimators=2, **SEED),
    "mean": lambda _, regressor: VotingRegressor([("boosted", regressor), ("linear", Ridge())]),
    "stacking of numbers": lambda _, regressor: StackingRegressor([("boosted", regressor)], cv=2),
    "target": lambda _, regressor: TransformedTargetRegressor(regressor, func=np.arcsinh, inverse_func=np.sinh),
}


@pytest.mark.parametrize("name", BOOSTED)
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_composite_of_boosters_answers_the_same(library: str, name: str) -> None:
    module = pytest.importorskip(library, exc_type=(ImportError, OSError))  # type: ignore[arg-type]
    classifier, regressor = (
        ("LGBMClassifier", "LGBMRegressor") if library == "lightgbm" else ("XGBClassifier", "XGBRegressor")
    )
    options: Any = {"n_estimators": 4, "n_jobs": 1, **({"verbose": -1} if library == "lightgbm" else {})}
    estimator = BOOSTED[name](getattr(module, classifier)(**options), getattr(module, regressor)(**options))
    values = target(numbers())
    y = np.digitize(values, [-0.5, 0.5]) if is_classifier(estimator) else values
    made = pair(estimator, numbers(), y)
    made.assert_same(np.ascontiguousarray(numbers().to_numpy()[:40]))


def encoded(last: Any) -> Any:
    transformer = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["city", "heating"]), (StandardScaler(), ["age"]), remainder="drop"
    )
    return make_pipeline(transformer, last)


@pytest.mark.parametrize("inside", [True, False], ids=["encoders inside", "encoder outside"])
def test_vote_over_categories_answers_the_same(inside: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    table = mixed().dropna()
    members: Any = [("linear", logistic()), ("trees", DecisionTreeClassifier(max_depth=4))]
    if inside:
        vote = VotingClassifier([(name, encoded(member)) for name, member in members], voting="soft")
    else:
        vote = encoded(VotingClassifier(members, voting="soft"))
    made = pair(vote, table, target(table, 2), frame=True)
    made.assert_same(rows_of_table(made.schema, table)[:60])


def test_missing_values_go_where_the_members_send_them() -> None:
    table = numbers(missing=True)
    vote = VotingClassifier([("a", forest()), ("b", HistGradientBoostingClassifier(**QUICK))], voting="soft")
    made = pair(vote, table, target(table, 2))
    made.assert_same(np.ascontiguousarray(table.to_numpy()[:60]))


REFUSING: dict[str, Callable[[], Any]] = {
    "vote, soft": lambda: VotingClassifier(three(), voting="soft"),
    "vote, hard": lambda: VotingClassifier(three(), voting="hard"),
    "bagging": lambda: BaggingClassifier(forest(), **FEW),
    "stacking": stacking,
    "stacking of labels": lambda: stacking(stack_method="predict", final_estimator=forest()),
    "boosting": lambda: AdaBoostClassifier(forest(), **FEW),
    "one against one": lambda: OneVsOneClassifier(forest()),
    "calibrated": lambda: calibrated(forest(), "isotonic"),
}


@pytest.mark.parametrize("name", REFUSING)
def test_row_that_a_member_refuses_is_answered_nan(name: str) -> None:
    estimator = make_pipeline(StandardScaler(), REFUSING[name]())
    made = pair(estimator, numbers(), target(numbers(), 2), margin=None)
    rows = np.full((2, 5), 0.5)
    rows[1, 2] = 3.4e38  # as a scaled float32 it is infinite
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="infinity"):
        made.reference(rows)
    answers = made.compiled(rows)
    assert np.isfinite(answers[0]).all()
    assert np.isnan(answers[1]).any()


@pytest.mark.parametrize("out_of_bounds", ["clip", "nan"])
def test_isotonic_regression_answers_the_same(out_of_bounds: str) -> None:
    table = pd.DataFrame({"x": numbers()["x0"]})
    made = pair(IsotonicRegression(out_of_bounds=out_of_bounds), table, target(numbers()))
    made.assert_same(np.array(around(table["x"].tolist()[:20]))[:, None])


def test_composite_whose_members_are_all_python_is_left_alone() -> None:
    with pytest.raises(Unsupported, match="Own is Python code"):
        pair(BaggingClassifier(Own(), **FEW), numbers(), target(numbers(), 2))
