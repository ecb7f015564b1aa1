"""Boosters from their libraries' own files, native and pickled: they answer as their library does."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.errors import CannotAdd
from registry.model import LoadedModel
from registry.store.add import add_trained, add_version
from registry.store.reading import read_trained
from registry.training.script import Trained
from tests.registry.formats.files import TABLE, THREE, VALUES, WORDS, write

ONE = (WORDS == "yes").astype(int)
TARGETS = {"binary": ONE, "multi": THREE, "value": VALUES, "count": THREE}
GROUPS = [40, 40]

XGBOOST: list[tuple[str, str]] = [
    ("binary:logistic", "binary"),
    ("binary:logitraw", "binary"),
    ("multi:softprob", "multi"),
    ("multi:softmax", "multi"),
    ("reg:squarederror", "value"),
    ("count:poisson", "count"),
    ("rank:ndcg", "count"),
]
LIGHTGBM: list[tuple[str, str]] = [
    ("binary", "binary"),
    ("multiclass", "multi"),
    ("multiclassova", "multi"),
    ("regression", "value"),
    ("poisson", "count"),
    ("lambdarank", "count"),
]
CATBOOST: list[tuple[str, str]] = [
    ("Logloss", "binary"),
    ("MultiClass", "multi"),
    ("MultiClassOneVsAll", "multi"),
    ("RMSE", "value"),
    ("Poisson", "count"),
    ("Quantile:alpha=0.1", "value"),
    ("QueryRMSE", "count"),
]


def add_file(root: Path, path: Path) -> LoadedModel:
    estimator, artefact = read_trained(path)
    return add_trained(root / "models", "model", Trained(estimator=estimator, artefact=artefact, sample=TABLE))


def answers(model: LoadedModel) -> Any:
    """What a model answers for the table: numbers, or the probabilities of its classes."""
    given = model.predict(model.schema.rows(TABLE.to_numpy().tolist()))
    if not isinstance(given[0], dict):
        return np.array(given)
    if "score" in given[0]:
        return np.array([one["score"] for one in given])
    return np.array([list(one["probabilities"].values()) for one in given])


def shares(made: Any, objective: str) -> Any:
    """A library's predictions as they are answered: probabilities of each class that add up to 1."""
    made = np.asarray(made, np.float64)
    if objective in ("binary:logitraw", "multi:softmax"):
        powers = np.exp(np.column_stack([np.zeros(len(made)), made]) if made.ndim == 1 else made)
        return powers / powers.sum(axis=1, keepdims=True)
    if objective in ("binary:logistic", "binary"):
        return np.column_stack([1 - made, made])
    return made / made.sum(axis=1, keepdims=True) if objective in ("multiclassova", "MultiClassOneVsAll") else made


def explains(model: LoadedModel, table: Any = TABLE) -> bool:
    """Whether a model explains rows exactly; values that do not add up are an error."""
    assert model.explainer is not None
    model.explain(model.schema.rows(table[:2].astype(object).to_numpy().tolist()))
    return model.explainer.method in ("native", "tree-path-dependent")


def xgboost_booster(objective: str, target: str) -> Any:
    matrix = xgboost.DMatrix(TABLE, TARGETS[target])
    if objective.startswith("rank"):
        matrix.set_group(GROUPS)
    classes = {"num_class": 3} if target == "multi" else {}
    return xgboost.train({"objective": objective, "max_depth": 3, "nthread": 1, **classes}, matrix, 5)


@pytest.mark.parametrize("suffix", ["ubj", "json", "pkl"])
@pytest.mark.parametrize(("objective", "target"), XGBOOST)
def test_xgboost_file_answers_as_its_booster(tmp_path: Path, objective: str, target: str, suffix: str) -> None:
    booster = xgboost_booster(objective, target)
    path = tmp_path / f"model.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(booster))
    else:
        booster.save_model(path)
    model = add_file(tmp_path, path)
    made = booster.predict(xgboost.DMatrix(TABLE), output_margin=objective == "multi:softmax")
    assert answers(model) == pytest.approx(shares(made, objective), abs=1e-6)
    assert model.compiled == (objective != "binary:logitraw")
    assert explains(model)
    assert model.manifest.artefact_format == ("pickle" if suffix == "pkl" else "xgboost")
    assert model.manifest.fitted_with == {"xgboost": xgboost.__version__}
    assert model.schema.names == ("a", "b", "c")


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("objective", "target"), LIGHTGBM)
def test_lightgbm_file_answers_as_its_booster(tmp_path: Path, objective: str, target: str, *, pickled: bool) -> None:
    data = lightgbm.Dataset(TABLE, TARGETS[target], group=GROUPS if objective == "lambdarank" else None)
    classes = {"num_class": 3} if target == "multi" else {}
    parameters = {"objective": objective, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, **classes}
    booster = lightgbm.train(parameters, data, 5)
    path = tmp_path / "model.txt"
    path.write_bytes(pickle.dumps(booster)) if pickled else booster.save_model(path)
    model = add_file(tmp_path, path)
    assert answers(model) == pytest.approx(shares(booster.predict(TABLE), objective), abs=1e-12)
    assert model.compiled == (objective != "multiclassova")
    assert explains(model)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("loss", "target"), CATBOOST)
def test_catboost_file_answers_as_its_model(tmp_path: Path, loss: str, target: str, *, pickled: bool) -> None:
    kinds = {"binary": catboost.CatBoostClassifier, "multi": catboost.CatBoostClassifier}
    kind = catboost.CatBoostRanker if loss == "QueryRMSE" else kinds.get(target, catboost.CatBoostRegressor)
    fitted = kind(iterations=5, loss_function=loss, verbose=0, allow_writing_files=False, thread_count=1)
    fitted.fit(TABLE, TARGETS[target], **({"group_id": np.repeat([0, 1], GROUPS)} if loss == "QueryRMSE" else {}))
    path = tmp_path / "model.cbm"
    path.write_bytes(pickle.dumps(fitted)) if pickled else fitted.save_model(str(path))
    model = add_file(tmp_path, path)
    made = fitted.predict_proba(TABLE) if kind is catboost.CatBoostClassifier else fitted.predict(TABLE)
    assert answers(model) == pytest.approx(shares(made, loss), abs=1e-12)
    assert explains(model)
    assert model.manifest.fitted_with == {"catboost": catboost.__version__}


def test_lightgbm_file_keeps_its_categories(tmp_path: Path) -> None:
    texts = TABLE.assign(city=["Rome", "Oslo", "Bonn", "Rome"] * 20)
    texts.loc[5, "city"] = np.nan
    categories = texts.astype({"city": "category"})
    data = lightgbm.Dataset(categories, (texts["city"] == "Oslo").astype(int))
    parameters = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 2, "cat_smooth": 1}
    booster = lightgbm.train(parameters, data, 5)
    booster.save_model(tmp_path / "model.txt")
    estimator, artefact = read_trained(tmp_path / "model.txt")
    sample = texts[texts["city"] != "Bonn"]  # the sample does not show all that the booster knows
    model = add_trained(tmp_path / "models", "model", Trained(estimator=estimator, artefact=artefact, sample=sample))
    given = model.predict(model.schema.rows(sample.astype(object).where(sample.notna(), None).to_dict("records")))
    expected = booster.predict(categories[texts["city"] != "Bonn"])
    assert [one["probabilities"]["1"] for one in given] == pytest.approx(expected, abs=1e-12)
    assert explains(model, sample)


def test_booster_answers_with_all_trees_and_an_estimator_with_those_up_to_the_best(tmp_path: Path) -> None:
    fitted = xgboost.XGBClassifier(n_estimators=20, n_jobs=1, early_stopping_rounds=3, learning_rate=1.0)
    fitted.fit(TABLE, ONE, eval_set=[(TABLE, 1 - ONE)], verbose=False)
    fitted.save_model(tmp_path / "estimator.ubj")
    fitted.get_booster().save_model(tmp_path / "booster.ubj")
    best, every = fitted.predict_proba(TABLE)[:, 1], fitted.get_booster().predict(xgboost.DMatrix(TABLE))
    assert not np.allclose(best, every)
    assert answers(add_file(tmp_path, tmp_path / "estimator.ubj"))[:, 1] == pytest.approx(best)
    assert answers(add_file(tmp_path, tmp_path / "booster.ubj"))[:, 1] == pytest.approx(every)


ESTIMATORS: list[Callable[[], tuple[Any, Any]]] = [
    lambda: (xgboost.XGBClassifier(n_estimators=5, objective="binary:logitraw", n_jobs=1), ONE),
    lambda: (lightgbm.LGBMClassifier(n_estimators=5, objective="multiclassova", verbose=-1, n_jobs=1), THREE),
]
WRAPPERS: list[Callable[[Any], Any]] = [
    lambda estimator: estimator,
    lambda estimator: make_pipeline(StandardScaler(), estimator),
    lambda estimator: GridSearchCV(estimator, {"n_estimators": [5]}, cv=2),
    lambda estimator: GridSearchCV(make_pipeline(StandardScaler(), estimator), {}, cv=2),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("make", ESTIMATORS)
def test_estimator_without_proper_probabilities_keeps_its_labels(
    tmp_path: Path, make: Callable[[], tuple[Any, Any]], wrap: Callable[[Any], Any]
) -> None:
    estimator, target = make()
    fitted = wrap(estimator).fit(TABLE, target)
    before = type(fitted)
    model = add_version(tmp_path, "model", fitted, TABLE)
    given = model.predict(model.schema.rows(TABLE.to_numpy().tolist()))
    assert [one["label"] for one in given] == fitted.predict(TABLE).tolist()
    assert [sum(one["probabilities"].values()) for one in given] == pytest.approx([1.0] * len(TABLE))
    assert type(estimator).__name__ in model.manifest.estimator
    assert type(fitted) is before
    if wrap is WRAPPERS[0]:
        assert explains(model)


def gradient(truth: Any, margin: Any) -> Any:
    share = 1 / (1 + np.exp(-margin))
    return share - truth, share * (1 - share)


def test_own_objective_has_no_probabilities_but_its_booster_has_scores(tmp_path: Path) -> None:
    fitted = lightgbm.LGBMClassifier(n_estimators=5, objective=gradient, verbose=-1, n_jobs=1).fit(TABLE, ONE)
    with pytest.raises(CannotAdd, match=r"objective of one's own.*`booster_`"):
        add_version(tmp_path, "model", fitted, TABLE)
    model = add_version(tmp_path, "model", fitted.booster_, TABLE)
    assert answers(model) == pytest.approx(fitted.booster_.predict(TABLE), abs=1e-12)


def test_truncated_booster_files_are_refused(tmp_path: Path) -> None:
    booster = xgboost_booster("binary:logistic", "binary")
    model = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(TABLE, VALUES), 5)
    fitted = catboost.CatBoostRegressor(iterations=3, verbose=0, allow_writing_files=False, thread_count=1)
    fitted.fit(TABLE, VALUES).save_model(str(tmp_path / "whole.cbm"))
    contents = [
        bytes(booster.save_raw("ubj")),
        bytes(booster.save_raw("json")),
        model.model_to_string().encode(),
        (tmp_path / "whole.cbm").read_bytes(),
    ]
    for content in contents:
        for length in (len(content) // 2, len(content) - 200):
            with pytest.raises(CannotAdd):
                read_trained(write(tmp_path / "cut", content[:length]))
