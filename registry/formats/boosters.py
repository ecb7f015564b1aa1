"""Boosters of XGBoost, LightGBM and CatBoost, from their own files or pickled: as the scikit-learn estimators they are.

A library's own estimator is made wherever it has one for the objective, so that such a model is compiled and explained
like one that was fitted through scikit-learn's interface. Libraries are imported only for their own models.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from registry.errors import CannotRead, one_line
from registry.estimator import PIPELINES, library_of, qualified_name, unwrap
from registry.formats.versions import Format
from registry.threads import parts_of

CLASSIFYING = ("binary", "multiclass", "multiclassova")
RANKING = ("lambdarank", "rank_xendcg")
"""Objectives of LightGBM."""

CATBOOST_CLASSIFYING = ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll", "MultiLogloss", "Focal")
CATBOOST_RANKING = ("QueryRMSE", "QuerySoftMax", "YetiRank", "PairLogit", "StochasticRank", "LambdaMart", "QueryCross")


class RescaledClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A booster's classifier whose library gives no probabilities that add up to 1; its labels are the library's own.

    `scale` "logistic" takes the logistic function of the margin (XGBoost's binary:logitraw), "share" divides each
    class's own probability by their sum, as scikit-learn's OneVsRestClassifier does (of multiclassova).
    With `by_sign` the label is the margin's sign, for a Booster, which has no labels.
    """

    def __init__(self, model: Any, scale: Literal["logistic", "share"], *, by_sign: bool = False) -> None:
        self.model = model
        self.scale = scale
        self.by_sign = by_sign
        self.classes_ = np.asarray(model.classes_)
        self.n_features_in_ = model.n_features_in_
        names = getattr(model, "feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = names

    @property
    def native_model(self) -> Any:
        """The library's own estimator."""
        return self.model

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, _table: Any, _target: Any) -> Any:
        """What makes it an estimator for scikit-learn; fit the model instead."""
        raise NotImplementedError

    def predict(self, table: Any) -> Any:
        if self.by_sign:
            return (np.asarray(self.decision_function(table)) > 0).astype(int)
        return np.ravel(self.model.predict(table))

    def predict_proba(self, table: Any) -> Any:
        if self.scale == "logistic":
            share = 0.5 + 0.5 * np.tanh(np.asarray(self.decision_function(table), np.float64) / 2)
            return np.column_stack([1.0 - share, share])
        shares = np.asarray(self.model.predict_proba(table), np.float64)
        return shares / shares.sum(axis=1, keepdims=True)

    def decision_function(self, table: Any) -> Any:
        """The margins, as the library has them."""
        return MARGINS[library_of(self)](self.model, table)


MARGINS: Mapping[str, Callable[[Any, Any], Any]] = {
    "xgboost": lambda model, table: model.predict(table, output_margin=True),
    "lightgbm": lambda model, table: model.predict(table, raw_score=True),
    "catboost": lambda model, table: model.predict(table, prediction_type="RawFormulaVal"),
}


def read_booster(content: bytes, kind: Format) -> Any:
    """The estimator in a file of a library's own. Raises CannotRead."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that an older release has written
            return as_estimator(READERS[kind](content))
    except ImportError as error:
        raise CannotRead(f"needs a library that is not installed: {error}; run `pip install {kind}`") from error
    except (CannotRead, MemoryError):
        raise
    except Exception as error:
        raise CannotRead(f"does not load: {type(error).__name__}: {one_line(error)}") from error


def as_estimator(model: Any) -> Any:
    """A booster as the scikit-learn estimator that it is; any other object as it is. Raises CannotRead."""
    for part in parts_of(model):
        if type(part).__module__ == "catboost.core" and hasattr(part, "get_feature_importance"):
            _complete_catboost(part)
    return _adapted(model)


def _adapted(model: Any) -> Any:
    inner = unwrap(model)
    kind = qualified_name(type(inner))
    if kind in PIPELINES:
        name, last = inner.steps[-1]
        adapted = _adapted(last)
        if adapted is last:
            return model
        inner = copy.copy(inner)  # the pipeline may be its owner's
        inner.steps = [*inner.steps[:-1], (name, adapted)]
        return inner
    adapted = ADAPTERS[kind](inner) if kind in ADAPTERS else inner
    return model if adapted is inner else adapted


def _read_xgboost(content: bytes) -> Any:
    import xgboost

    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(content))
    return booster


def _read_lightgbm(content: bytes) -> Any:
    import lightgbm

    # LightGBM reads over what is missing, and may even end the process
    text = content.decode().replace("\r\n", "\n")
    sizes = re.search(r"^tree_sizes=([\d ]*)$", text, re.MULTILINE)
    ends = "\nend of trees" in text and ("\nparameters:" not in text or "\nend of parameters" in text)
    if sizes is None or not ends or len(sizes[1].split()) != text.count("\nTree="):
        raise CannotRead("is truncated: a LightGBM model without its end; copy it again")
    return lightgbm.Booster(model_str=text)


def _read_catboost(content: bytes) -> Any:
    import catboost

    model = catboost.CatBoost()
    model.load_model(blob=content)
    return model


READERS: Mapping[Format, Callable[[bytes], Any]] = {
    "xgboost": _read_xgboost,
    "lightgbm": _read_lightgbm,
    "catboost": _read_catboost,
}


def _from_xgboost(booster: Any) -> Any:
    """XGBoost's estimator for a Booster."""
    import xgboost

    stated = booster.attr("scikit_learn")
    if stated is None:
        booster.set_attr(best_iteration=None)  # a Booster predicts with all trees, an estimator up to this one
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    stated = json.loads(stated).get("_estimator_type") if stated else None
    classifies = objective.startswith(("binary:", "multi:"))
    kind: Any = xgboost.XGBRegressor
    if stated == "classifier" or (stated is None and classifies):
        kind = xgboost.XGBClassifier
    elif stated == "ranker" or objective.startswith("rank:"):
        kind = xgboost.XGBRanker
    estimator = kind(n_jobs=1)
    estimator.load_model(booster.save_raw("ubj"))
    if objective == "multi:softmax":  # the same margins, answered as probabilities
        estimator.get_booster().set_param({"objective": "multi:softprob"})
        estimator.objective = "multi:softprob"
    return _xgboost_classifier(estimator, native=True) if kind is xgboost.XGBClassifier else estimator


def _xgboost_classifier(estimator: Any, *, native: bool = False) -> Any:
    if callable(estimator.objective):
        raise CannotRead(_own_objective("XGBoost", "get_booster()"))
    if estimator.objective != "binary:logitraw":
        return estimator
    # XGBoost's own estimator compares the margin with 0.5, which is kept
    return RescaledClassifier(estimator, "logistic", by_sign=native)


def _from_lightgbm(booster: Any) -> Any:
    """LightGBM's estimator for a Booster; it has no public way to make one."""
    import lightgbm
    from sklearn.preprocessing import LabelEncoder

    header = booster.model_to_string(num_iteration=1)
    stated = re.search(r"^objective=(\S+)", header, re.MULTILINE)
    objective = stated[1] if stated else "none"
    classes = max(booster.num_model_per_iteration(), 2) if objective in CLASSIFYING else 0
    kind = lightgbm.LGBMRanker if objective in RANKING else lightgbm.LGBMRegressor
    estimator = (lightgbm.LGBMClassifier if classes else kind)(objective=objective, n_jobs=1)
    state = {
        "_Booster": booster,
        "_n_features": booster.num_feature(),
        "_n_features_in": booster.num_feature(),
        "_objective": objective,
        "_best_iteration": booster.best_iteration,
        "_fitted_with_feature_names": booster.feature_name() != [f"Column_{i}" for i in range(booster.num_feature())],
        "fitted_": True,
    }
    if classes:
        labels = LabelEncoder().fit(np.arange(classes))
        state |= {"_classes": labels.classes_, "_n_classes": classes, "_le": labels}
    estimator.__dict__.update(state)
    return _lightgbm_classifier(estimator) if classes else estimator


def _lightgbm_classifier(estimator: Any) -> Any:
    if callable(estimator.objective_):
        raise CannotRead(_own_objective("LightGBM", "booster_"))
    separate = estimator.objective_ in ("multiclassova", "multiclass_ova", "ova", "ovr")
    return RescaledClassifier(estimator, "share") if separate else estimator


def _own_objective(library: str, booster: str) -> str:
    return (
        f"was fitted with an objective of one's own, for which {library} has raw scores and no probabilities; "
        f"add its `{booster}`, which answers the scores"
    )


def _from_catboost(model: Any) -> Any:
    """CatBoost's estimator for a model that is of none of its classes."""
    import catboost

    function = json.loads(model.get_metadata()["params"])["loss_function"]
    loss = function["type"]
    kind = catboost.CatBoostRegressor
    if loss.startswith(CATBOOST_CLASSIFYING):
        kind = catboost.CatBoostClassifier
    elif loss.startswith(CATBOOST_RANKING):
        kind = catboost.CatBoostRanker
    estimator = kind(thread_count=1)
    options = ";".join(f"{name}={value}" for name, value in function.get("params", {}).items())
    # without its objective it would answer the logarithm of a Poisson regression
    estimator.__setstate__({**model.__getstate__(), "loss_function": f"{loss}:{options}" if options else loss})
    _complete_catboost(estimator)
    return _catboost_classifier(estimator) if kind is catboost.CatBoostClassifier else estimator


def _catboost_classifier(estimator: Any) -> Any:
    separate = "MultiClassOneVsAll" in estimator.get_metadata()["params"]
    return RescaledClassifier(estimator, "share") if separate else estimator


def _complete_catboost(model: Any) -> None:
    """What CatBoost forgets when a model is saved: how many features it takes, and that their names matter."""
    names = model.feature_names_
    if names is None:
        return
    model.__dict__["_n_features_in"] = len(names)
    if names != [str(place) for place in range(len(names))]:
        model.feature_names_in_ = np.array(names, object)


ADAPTERS: Mapping[str, Callable[[Any], Any]] = {
    "xgboost.core.Booster": _from_xgboost,
    "xgboost.sklearn.XGBClassifier": _xgboost_classifier,
    "lightgbm.basic.Booster": _from_lightgbm,
    "lightgbm.sklearn.LGBMClassifier": _lightgbm_classifier,
    "catboost.core.CatBoost": _from_catboost,
    "catboost.core.CatBoostClassifier": _catboost_classifier,
}
