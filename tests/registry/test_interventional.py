"""Explanations of probabilities: held against shap, and against their definition over all coalitions of features."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, SplineTransformer, StandardScaler

from registry.errors import InvalidSelection
from registry.explain import choose
from registry.explain.explanation import Selection
from registry.explain.shap_values import CannotExplain
from registry.model import LoadedModel
from registry.rows.features import Rows
from registry.store.add import add_version
from tests.registry.explanations import CLOSE, assert_additive, assert_same_alone, shap, shapley_values
from tests.registry.parity import numbers, target

TABLE = numbers(features=4)
ROWS = TABLE.to_numpy()
STEPS = (np.arange(20_000) + 0.5) / 20_000


def booster(module: str, name: str, **options: Any) -> Any:
    return getattr(importlib.import_module(module), name)(n_estimators=20, **options)


BOOSTERS: dict[str, Callable[[], Any]] = {
    "gradient boosting": lambda: GradientBoostingClassifier(n_estimators=20, random_state=0),
    "XGBoost": lambda: booster("xgboost", "XGBClassifier", max_depth=4),
    "LightGBM": lambda: booster("lightgbm", "LGBMClassifier", verbose=-1),
}


def background_of(model: LoadedModel) -> Rows:
    return model.schema.rows([list(row) for row in model.manifest.background])


@pytest.mark.parametrize("name", BOOSTERS)
def test_probabilities_are_explained_as_by_shap(name: str, tmp_path: Path) -> None:
    y = (target(TABLE, 2) == "b").astype(int)
    estimator = BOOSTERS[name]().fit(ROWS, y)
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert model.spaces == ("margin", "probability")
    found = model.contributions(ROWS[:20], "probability")
    library = shap.TreeExplainer(estimator, data=background_of(model), model_output="probability")
    expected = library.shap_values(ROWS[:20], check_additivity=False)
    # shap rounds thresholds, and some margins, to float32
    np.testing.assert_allclose(found.values[:, :, 1], expected, rtol=0, atol=2e-7)
    np.testing.assert_array_equal(found.outputs, model.compute(ROWS[:20])[:, :2])
    assert_additive(found)
    assert_same_alone(model.other_explainers["probability"], ROWS[:5])


def mixed_table() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"city": pd.Categorical(rng.choice(list("xyz"), 80)), "age": rng.normal(size=80)})
    table["size"] = np.where(rng.random(80) < 0.1, np.nan, rng.normal(size=80))
    return table


def by_definition(model: LoadedModel, margins: Callable[[Any], Rows], link: Callable[[Rows], Rows], row: Rows) -> Rows:
    """Margins' values against each background row, times the link's mean derivatives between the two rows' margins."""
    features, schema = len(row), model.schema
    total: Any = 0.0
    for other in background_of(model):

        def ask(known: Any, other: Rows = other) -> Rows:
            made = other.copy()
            made[list(known)] = row[list(known)]
            return np.ravel(margins(schema.table(made[None])))

        one, end = ask(range(features)), ask(())
        outputs = range(len(end))

        def game(j: int, ask: Callable[[Any], Rows] = ask) -> Callable[[Any], float]:
            return lambda known: float(ask(known)[j])

        values = np.array([shapley_values(game(j), features) for j in outputs])
        way = end + STEPS[:, None] * (one - end)
        step = 1e-6
        mean_derivatives = [
            ((link(way + step * np.eye(len(end))[j]) - link(way - step * np.eye(len(end))[j])) / (2 * step)).mean(
                axis=0
            )
            for j in outputs
        ]
        total = total + values.T @ np.array(mean_derivatives)
    return np.asarray(total) / len(model.manifest.background)


def logistic(margins: Rows) -> Rows:
    return 1 / (1 + np.exp(-margins))


def softmax(margins: Rows) -> Rows:
    powers = np.exp(margins)
    return powers / powers.sum(axis=-1, keepdims=True)


BEHIND_ENCODERS = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")

DEFINED: dict[str, tuple[Any, int, Callable[[Rows], Rows]]] = {
    "categories": (HistGradientBoostingClassifier(max_iter=5, categorical_features=[0]), 2, logistic),
    "one-hot columns": (make_pipeline(BEHIND_ENCODERS, HistGradientBoostingClassifier(max_iter=5)), 2, logistic),
    "exponential loss": (
        make_pipeline(
            make_column_transformer((OneHotEncoder(), ["city"]), ("passthrough", ["age"])),
            GradientBoostingClassifier(n_estimators=5, loss="exponential"),
        ),
        2,
        lambda margins: logistic(2 * margins),
    ),
    "three classes": (make_pipeline(BEHIND_ENCODERS, HistGradientBoostingClassifier(max_iter=4)), 3, softmax),
    "logarithmic link": (
        make_pipeline(BEHIND_ENCODERS, HistGradientBoostingRegressor(loss="poisson", max_iter=4)),
        0,
        np.exp,
    ),
    "linear": (
        make_pipeline(
            make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["age"])), LogisticRegression()
        ),
        3,
        softmax,
    ),
}


@pytest.mark.parametrize("name", DEFINED)
def test_values_are_those_of_the_definition(name: str, tmp_path: Path) -> None:
    estimator, classes, link = DEFINED[name]
    table = mixed_table()
    y: Any = target(table[["age"]], classes) if classes else np.exp(table["age"])
    estimator.fit(table, y)
    columns = ["city", "age", "size"] if hasattr(estimator, "feature_names_in_") else None
    model = add_version(tmp_path, "model", estimator, table[columns].head(40))
    space: Any = "probability" if classes else "value"
    assert model.other_explainers[space].method == "interventional"
    rows = model.schema.rows([list(row) for row in model.manifest.background[:2]])
    found = model.contributions(rows, space)
    assert_additive(found)
    assert_same_alone(model.other_explainers[space], background_of(model)[:4])
    margins = estimator.decision_function if classes else lambda table: np.log(estimator.predict(table))
    for row, values in zip(rows, found.values, strict=True):
        expected = by_definition(model, margins, link, row)
        np.testing.assert_allclose(values[:, -expected.shape[1] :], expected, rtol=0, atol=1e-7)


def test_boosted_trees_that_vote_have_margins_behind_their_probabilities(tmp_path: Path) -> None:
    estimator = AdaBoostClassifier(n_estimators=5, random_state=0).fit(ROWS, target(TABLE, 3))
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert "probability" in model.spaces
    assert_additive(model.contributions(ROWS[:9], "probability"))


def test_probabilities_behind_an_unknown_link_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> Any:
        raise CannotExplain("its outputs do not follow from its margins by a known link")

    monkeypatch.setattr(choose, "interventional_explainer", refuse)
    estimator = GradientBoostingClassifier(n_estimators=5).fit(ROWS, target(TABLE, 3))
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert model.other_explainers["probability"].method == "exact"
    found = model.contributions(ROWS[:2], "probability")
    assert_additive(found)
    np.testing.assert_allclose(found.outputs, estimator.predict_proba(ROWS[:2]), rtol=0, atol=CLOSE)


def test_columns_made_of_several_features_are_sampled(tmp_path: Path) -> None:
    estimator = make_pipeline(PCA(2), GradientBoostingClassifier(n_estimators=5)).fit(ROWS, target(TABLE, 2))
    model = add_version(tmp_path, "model", estimator, TABLE)
    explainers = [model.explainer, *model.other_explainers.values()]
    assert [one.method for one in explainers if one is not None and one.space == "probability"] == ["exact"]
    assert_additive(model.contributions(ROWS[:2], "probability"))


def test_texts_are_explained_in_probabilities(tmp_path: Path) -> None:
    texts = pd.Series([f"{'good' if index % 3 else 'bad'} soup {index % 7}" for index in range(60)], name="text")
    labels = np.where(texts.str.startswith("good"), "yes", "no")
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    model = add_version(tmp_path, "model", estimator, texts.to_frame())
    assert model.other_explainers["probability"].method == "interventional"
    rows = background_of(model)[:5]
    found = model.contributions(rows, "probability")
    assert_additive(found)
    expected = estimator.predict_proba(model.schema.table(rows))
    np.testing.assert_allclose(found.outputs, expected, rtol=0, atol=CLOSE)


def test_space_that_is_the_models_own_is_the_default(tmp_path: Path) -> None:
    estimator = RandomForestClassifier(5, random_state=0).fit(ROWS, target(TABLE, 2))
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert model.spaces == ("probability",)
    assert model.explain(ROWS[:1], Selection(space="probability")) == model.explain(ROWS[:1])
    with pytest.raises(InvalidSelection, match="space must be one of probability"):
        model.explain(ROWS[:1], Selection(space="margin"))


def test_columns_that_a_step_makes_are_credited_to_the_feature_that_it_is_given(tmp_path: Path) -> None:
    y = (target(TABLE, 2) == "b").astype(int)
    splines = make_column_transformer((SplineTransformer(n_knots=4), [1]), remainder="passthrough")
    boosted = GradientBoostingClassifier(n_estimators=5, random_state=0)
    model = add_version(tmp_path, "model", make_pipeline(splines, boosted).fit(ROWS, y), TABLE)
    assert model.compiled
    explainer = model.explainer_for(Selection(space="probability"))
    assert explainer.method == "interventional"
    assert_additive(explainer.explain(ROWS[:5]))
