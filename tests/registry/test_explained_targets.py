"""Models with several targets are explained target by target; log links, scores and margins are explained, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor, IsolationForest, RandomForestClassifier
from sklearn.linear_model import GammaRegressor, LinearRegression, Perceptron, PoissonRegressor, TweedieRegressor
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC, LinearSVC, OneClassSVM

from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.store.add import add_version
from tests.registry.explanations import CLOSE, assert_additive
from tests.registry.parity import numbers, target

TABLE = numbers(features=3)
ROWS = TABLE.to_numpy()
VALUES = np.stack([ROWS[:, 0] * ROWS[:, 1], np.abs(ROWS[:, 2])], axis=1)
LABELS = np.stack([ROWS[:, 0] > 0, ROWS[:, 1] + ROWS[:, 2] > 0.2], axis=1).astype(int)


def added(root: Path, estimator: Any, y: Any) -> LoadedModel:
    return add_version(root, "model", estimator.fit(ROWS, y), TABLE)


def assert_adds_up(item: dict[str, Any]) -> None:
    assert item["base_value"] + sum(item["values"].values()) == pytest.approx(item["output"], abs=CLOSE)


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        KNeighborsRegressor(),
        ExtraTreesRegressor(5, random_state=0),
        MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=5)),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_each_value_is_explained(estimator: Any, tmp_path: Path) -> None:
    model = added(tmp_path, estimator, VALUES)
    (prediction,) = model.predict(ROWS[:1])
    (item,) = model.explain(ROWS[:1])
    assert list(item) == ["space", "method", "targets"]
    assert item["space"] == "value"
    assert item["targets"].keys() == prediction["prediction"].keys()
    for name, one in item["targets"].items():
        assert one["output"] == pytest.approx(prediction["prediction"][name], abs=CLOSE)
        assert_adds_up(one)


@pytest.mark.parametrize(
    "estimator",
    [KNeighborsClassifier(), RandomForestClassifier(5, random_state=0), MultiOutputClassifier(GaussianNB())],
    ids=lambda estimator: type(estimator).__name__,
)
def test_label_of_each_target_is_explained(estimator: Any, tmp_path: Path) -> None:
    model = added(tmp_path, estimator, LABELS)
    (prediction,) = model.predict(ROWS[:1])
    (item,) = model.explain(ROWS[:1])
    (whole,) = model.explain(ROWS[:1], Selection(classes="all"))
    for name, one in item["targets"].items():
        of_target = prediction["prediction"][name]
        assert one["label"] == of_target["label"]
        assert one["output"] == pytest.approx(of_target["probabilities"][str(one["label"])], abs=CLOSE)
        assert_adds_up(one)
        assert whole["targets"][name]["classes"].keys() == of_target["probabilities"].keys()


@pytest.mark.parametrize(
    ("estimator", "space"),
    [(PoissonRegressor(), "value"), (GammaRegressor(), "value"), (TweedieRegressor(power=1.5), "value")],
    ids=["Poisson", "gamma", "Tweedie"],
)
def test_regressor_with_a_logarithmic_link_is_explained_in_values(estimator: Any, space: Any, tmp_path: Path) -> None:
    model = added(tmp_path, estimator, np.exp(ROWS[:, 0]))
    assert space in model.spaces
    found = model.contributions(ROWS[:5], space)
    np.testing.assert_allclose(found.outputs[:, 0], estimator.predict(ROWS[:5]), rtol=0, atol=CLOSE)
    assert_additive(found)


@pytest.mark.parametrize(
    ("estimator", "classes"),
    [
        (LinearSVC(), 2),
        (Perceptron(), 3),
        (SVC(decision_function_shape="ovr"), 3),
        (OneClassSVM(), None),
        (IsolationForest(n_estimators=20, random_state=0), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_margins_and_scores_are_explained(estimator: Any, classes: int | None, tmp_path: Path) -> None:
    y = None if classes is None else target(TABLE, classes)
    model = added(tmp_path, estimator, y)
    assert model.spaces == ("margin",)
    found = model.contributions(ROWS[:5])
    expected = estimator.decision_function(ROWS[:5]).reshape(5, -1)
    np.testing.assert_allclose(found.outputs[:, -expected.shape[1] :], expected, rtol=0, atol=CLOSE)
    assert_additive(found)
    for item, answer in zip(model.explain(ROWS[:5]), model.predict(ROWS[:5]), strict=True):
        expected_output = answer["score"] if classes is None else answer["margins"][str(answer["label"])]
        assert item["output"] == pytest.approx(expected_output, abs=CLOSE)
