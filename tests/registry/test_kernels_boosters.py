"""Compiled XGBoost and LightGBM models answer as their libraries do, bit for bit."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from registry.asking import estimator_compute, layout_of
from registry.kernels import compile_estimator, probe_rows, verify
from registry.kernels.kernel import Unsupported
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from tests.registry.parity import Pair, around, mixed, numbers, pair, rows_of, target

# No wheel on some systems, or one that needs OpenMP from elsewhere
lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
xgboost = pytest.importorskip("xgboost", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
XGBClassifier, XGBRegressor = xgboost.XGBClassifier, xgboost.XGBRegressor
LGBMClassifier, LGBMRegressor = lightgbm.LGBMClassifier, lightgbm.LGBMRegressor

XGB: dict[str, Any] = {"n_estimators": 11, "n_jobs": 1, "random_state": 0}
LGBM: dict[str, Any] = {"n_estimators": 11, "n_jobs": 1, "random_state": 0, "min_child_samples": 5, "verbose": -1}

CASES: dict[str, tuple[Any, int, bool]] = {
    "XGBoost, 2 classes": (XGBClassifier(**XGB), 2, False),
    "XGBoost, 2 classes, missing values": (XGBClassifier(**XGB), 2, True),
    "XGBoost, 3 classes": (XGBClassifier(**XGB), 3, True),
    "XGBoost, 9 classes": (XGBClassifier(**XGB), 9, False),
    "XGBoost, 3 classes, parallel trees": (XGBClassifier(num_parallel_tree=3, subsample=0.8, **XGB), 3, False),
    "XGBoost, pruned": (XGBClassifier(tree_method="exact", gamma=1.5, **XGB), 2, False),
    "XGBoost, certain beyond its largest power": (XGBClassifier(learning_rate=500.0, **XGB), 2, False),
    "XGBoost, grown by loss": (XGBClassifier(grow_policy="lossguide", max_leaves=9, **XGB), 2, True),
    "XGBoost, weighted classes": (XGBClassifier(scale_pos_weight=3.0, **XGB), 2, False),
    "XGBoost, numbers": (XGBRegressor(**XGB), 0, True),
    "XGBoost, exact": (XGBRegressor(tree_method="exact", **XGB), 0, False),
    "XGBoost, absolute error": (XGBRegressor(objective="reg:absoluteerror", **XGB), 0, False),
    "XGBoost, poisson": (XGBRegressor(objective="count:poisson", **XGB), 0, True),
    "XGBoost, gamma": (XGBRegressor(objective="reg:gamma", base_score=0.7, **XGB), 0, False),
    "XGBoost, tweedie": (XGBRegressor(objective="reg:tweedie", **XGB), 0, False),
    "XGBoost, shares": (XGBRegressor(objective="reg:logistic", **XGB), 0, False),
    "LightGBM, 2 classes": (LGBMClassifier(**LGBM), 2, False),
    "LightGBM, 2 classes, missing values": (LGBMClassifier(**LGBM), 2, True),
    "LightGBM, 2 classes, sigmoid": (LGBMClassifier(sigmoid=0.7, **LGBM), 2, False),
    "LightGBM, 3 classes": (LGBMClassifier(**LGBM), 3, True),
    "LightGBM, 9 classes": (LGBMClassifier(**LGBM), 9, False),
    "LightGBM, forest": (
        LGBMClassifier(boosting_type="rf", subsample=0.7, subsample_freq=1, **LGBM),
        2,
        True,
    ),
    "LightGBM, dart": (LGBMClassifier(boosting_type="dart", **LGBM), 3, True),
    "LightGBM, missing values not used": (LGBMClassifier(use_missing=False, **LGBM), 2, True),
    "LightGBM, numbers": (LGBMRegressor(**LGBM), 0, True),
    "LightGBM, absolute error": (LGBMRegressor(objective="mae", **LGBM), 0, False),
    "LightGBM, huber": (LGBMRegressor(objective="huber", **LGBM), 0, False),
    "LightGBM, quantile": (LGBMRegressor(objective="quantile", alpha=0.2, **LGBM), 0, True),
    "LightGBM, poisson": (LGBMRegressor(objective="poisson", **LGBM), 0, True),
    "LightGBM, gamma": (LGBMRegressor(objective="gamma", **LGBM), 0, False),
    "LightGBM, tweedie": (LGBMRegressor(objective="tweedie", **LGBM), 0, False),
    "LightGBM, shares": (LGBMRegressor(objective="cross_entropy", **LGBM), 0, False),
}
if tuple(map(int, xgboost.__version__.split(".")[:2])) >= (3, 4):  # before, that was another booster, "dart"
    CASES["XGBoost, dropped trees"] = (XGBClassifier(rate_drop=0.4, **XGB), 3, True)

POSITIVE = ("poisson", "gamma", "tweedie")


def outcome(table: pd.DataFrame, name: str, classes: int) -> Any:
    """What such a model predicts: classes 0, 1..., for which XGBoost asks; numbers, positive ones, or shares."""
    y = target(table, classes)
    if classes:
        return np.unique(y, return_inverse=True)[1]
    if name.endswith(POSITIVE):
        return np.exp(y)
    return 1 / (1 + np.exp(-y)) if name.endswith("shares") else y


def thresholds(estimator: Any) -> list[float]:
    """Where the estimator's trees split."""
    if hasattr(estimator, "booster_"):
        text = " ".join(re.findall(r"^threshold=(.*)$", estimator.booster_.model_to_string(), re.MULTILINE))
        return [float(value) for value in text.split()]
    table = estimator.get_booster().trees_to_dataframe()
    return [float(value) for value in table["Split"].dropna()]


@cache
def fitted(name: str) -> tuple[Pair, list[float]]:
    estimator, classes, missing = clone(CASES[name][0]), *CASES[name][1:]
    table = numbers(missing=missing)
    table.loc[::7, "x3"] = 0.0
    made = pair(estimator, table, outcome(table, name, classes), margin=None)
    return made, around([*thresholds(estimator)[:200], 0.0, 1e-35, -1e-35, 1e6, -1e6])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_booster_answers_any_row_as_its_library_does(name: str, data: st.DataObject) -> None:
    made, interesting = fitted(name)
    made.assert_same_in_a_batch(data.draw(rows_of(made.schema, interesting, count=20)))


@pytest.mark.parametrize("name", CASES)
def test_booster_answers_each_row_alone_as_in_a_batch(name: str) -> None:
    made, _ = fitted(name)
    made.assert_same(probe_rows(made.schema, np.random.default_rng(0).normal(size=(10, len(made.schema))))[:40])


@pytest.mark.parametrize("name", ["LightGBM, 2 classes", "LightGBM, missing values not used", "XGBoost, 2 classes"])
def test_zeros_and_what_is_next_to_them_are_answered_the_same(name: str) -> None:
    made, _ = fitted(name)
    tiny = around([1e-35, -1e-35, float(np.float32(1e-35)), -float(np.float32(1e-35)), 1e-45, 0.0])
    rows = np.zeros((len(tiny), len(made.schema)))
    for column in range(len(made.schema)):
        rows[:, column] = tiny
        made.assert_same_in_a_batch(rows)


def with_categories(*, missing: bool) -> pd.DataFrame:
    """Two columns of categories that the outcome depends on, and a number."""
    rng = np.random.default_rng(5)
    city = pd.Categorical(rng.choice([f"town {i}" for i in range(40)], 600))
    table = pd.DataFrame(
        {"size": rng.normal(size=600), "city": city, "fuel": pd.Categorical(rng.choice(["b", "a"], 600))}
    )
    if missing:
        table.loc[::9, "city"] = None
    return table


def by_category(table: pd.DataFrame) -> Any:
    even = (table["city"].cat.codes.to_numpy() * 7 % 3) - 1.0
    return even * (1 + (table["fuel"] == "a").to_numpy()) + 0.3 * table["size"].to_numpy()


CATEGORICAL = {
    "XGBoost": XGBRegressor(enable_categorical=True, **XGB),
    "XGBoost, one against the rest": XGBRegressor(enable_categorical=True, max_cat_to_onehot=100, **XGB),
    "LightGBM": LGBMRegressor(min_data_per_group=3, cat_smooth=1.0, **LGBM),
    "LightGBM, one against the rest": LGBMRegressor(max_cat_to_onehot=100, min_data_per_group=3, **LGBM),
}


@pytest.mark.parametrize("missing", [False, True], ids=["all there", "missing values"])
@pytest.mark.parametrize("name", CATEGORICAL)
def test_booster_of_categories_answers_the_same(name: str, missing: bool) -> None:  # noqa: FBT001
    table = with_categories(missing=missing)
    made = pair(clone(CATEGORICAL[name]), table, by_category(table), frame=True)
    splits_by_category = r"num_cat=[1-9]" if "Light" in name else r'"categories_nodes":\[[0-9]'
    booster = getattr(made.estimator, "booster_", None)
    text = booster.model_to_string() if booster else bytes(made.estimator.get_booster().save_raw("json")).decode()
    assert re.search(splits_by_category, text)
    rows = made.schema.rows(table.astype(object).where(table.notna(), None).to_dict("records")[:200])
    made.assert_same_in_a_batch(rows)
    made.assert_same(probe_rows(made.schema, rows[:5])[:60])


@pytest.mark.parametrize("estimator", [XGBClassifier(enable_categorical=True, **XGB), LGBMClassifier(**LGBM)])
def test_category_that_the_booster_has_not_seen_is_answered_the_same_or_not_compiled(estimator: Any) -> None:
    table = with_categories(missing=False)
    estimator.fit(table, (by_category(table) > 0).astype(int))
    table["city"] = table["city"].cat.add_categories(["a new town"])
    table.loc[0, "city"] = "a new town"
    schema = Schema(infer_features(table, 1.0), "frame")
    if isinstance(estimator, XGBClassifier):
        with pytest.raises(Unsupported):
            compile_estimator(estimator, schema)
        return
    compiled = compile_estimator(estimator, schema)
    rows = schema.rows(table.to_dict("records"))
    assert compiled(rows).tobytes() == estimator.predict_proba(schema.frame(rows)).tobytes()


@pytest.mark.parametrize("make", [lambda: XGBClassifier(**XGB), lambda: LGBMClassifier(**LGBM)], ids=["XGB", "LGBM"])
def test_booster_behind_transformers_answers_the_same(make: Any) -> None:
    table = mixed().drop(columns="income")
    table["city"] = table["city"].fillna("Bern")
    encoded = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["city"]),
        (OrdinalEncoder(), ["heating"]),
        (StandardScaler(), ["age"]),
        remainder="passthrough",
        sparse_threshold=0,
    )
    made = pair(make_pipeline(encoded, make()), table, (target(table) > 40).astype(int), frame=True)
    rows = made.schema.rows(table.to_dict("records")[:50])
    made.assert_same_in_a_batch(rows)
    made.assert_same(rows[:10])


@pytest.mark.parametrize("library", ["XGBoost", "LightGBM"])
def test_trees_of_a_single_node_answer_the_same(library: str) -> None:
    table = numbers()
    estimator = XGBRegressor(gamma=1e9, **XGB) if library == "XGBoost" else LGBMRegressor(min_split_gain=1e9, **LGBM)
    pair(estimator, table, target(table)).assert_same(table.to_numpy()[:10])


@pytest.mark.parametrize("library", ["XGBoost", "LightGBM"])
def test_only_the_trees_up_to_the_best_iteration_count(library: str) -> None:
    table = numbers()
    x, y = table.to_numpy(), outcome(table, "", 2)
    many = {"n_estimators": 200, "learning_rate": 0.5}
    if library == "XGBoost":
        estimator = XGBClassifier(**XGB | many, early_stopping_rounds=3)
        estimator.fit(x[:200], y[:200], eval_set=[(x[200:], y[200:])], verbose=False)
        assert estimator.best_iteration < 100
    else:
        estimator = LGBMClassifier(**LGBM | many)
        stop = lightgbm.early_stopping(3, verbose=False)
        estimator.fit(x[:200], y[:200], eval_X=x[200:], eval_y=y[200:], callbacks=[stop])
        assert 0 < estimator.best_iteration_ < 100
    schema = Schema(infer_features(table, None))
    compiled = compile_estimator(estimator, schema)
    assert compiled(x).tobytes() == estimator.predict_proba(x).astype(np.float64).tobytes()


@pytest.mark.parametrize(
    "estimator",
    [xgboost.XGBRanker(**XGB), LGBMRegressor(objective=lambda y, p: (p - y, np.ones_like(y)), **LGBM)],
    ids=["ranks", "own objective"],
)
def test_booster_whose_score_is_its_answer(estimator: Any) -> None:
    table, estimator = numbers(), clone(estimator)
    ranks = isinstance(estimator, xgboost.XGBRanker)
    estimator.fit(table.to_numpy(), outcome(table, "", 2 if ranks else 0), **({"group": [len(table)]} if ranks else {}))
    schema, rows = Schema(infer_features(table, 1.0)), np.ascontiguousarray(table)
    reference = estimator_compute(estimator, schema, layout_of(estimator, rows))
    assert verify(compile_estimator(estimator, schema), reference, probe_rows(schema, rows[:50]))


UNSUPPORTED: dict[str, Any] = {
    "XGBoost, linear": XGBRegressor(booster="gblinear", **XGB),
    "XGBoost, zero is missing": XGBRegressor(missing=0.0, **XGB),
    "XGBoost, hinge": XGBClassifier(objective="binary:hinge", **XGB),
    "LightGBM, zero is missing": LGBMRegressor(zero_as_missing=True, **LGBM),
    "LightGBM, linear trees": LGBMRegressor(linear_tree=True, **LGBM),
    "LightGBM, square root": LGBMRegressor(reg_sqrt=True, **LGBM),
    "LightGBM, one against all": LGBMClassifier(objective="multiclassova", num_class=3, **LGBM),
}


@pytest.mark.filterwarnings("ignore:.*gblinear.*", "ignore:.*deprecated.*")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_booster_without_a_compiled_form_is_left_alone(name: str) -> None:
    table, estimator = numbers(), clone(UNSUPPORTED[name])
    table.loc[::3, "x2"] = 0.0
    y = outcome(table, "", 3 if "all" in name else 2 if "hinge" in name else 0)
    estimator.fit(table.to_numpy(), y)
    with pytest.raises(Unsupported):
        compile_estimator(estimator, Schema(infer_features(table, None)))


def test_leaf_that_is_off_by_a_bit_is_found_out() -> None:
    made, _ = fitted("XGBoost, 2 classes")
    rows = np.random.default_rng(0).normal(size=(50, 5))
    assert verify(made.compiled, made.reference, rows)
    assert not verify(lambda given: np.nextafter(made.compiled(given), 2.0), made.reference, rows)
