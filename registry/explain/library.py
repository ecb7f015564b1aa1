"""Explainers of libraries, for models that no kernel explains: those of shap, XGBoost, LightGBM and CatBoost.

These boosters compute exact path-dependent SHAP values themselves. For tree ensembles that no kernel takes,
shap's TreeExplainer is exact and path-dependent as ours is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from registry.estimator import Compute, last_step, library_of
from registry.explain.shap_values import CannotExplain, Contributions, Explainer, Space, both_classes
from registry.formats.boosters import RescaledClassifier
from registry.rows.features import Rows
from registry.rows.schema import Schema


def import_shap() -> Any:
    """The library. Importing it takes 100 MB and a second, once, before the fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        import shap
        import tqdm
    # a call of more than ten seconds shows a progress bar, whose thread must not exist at the fork
    tqdm.tqdm.monitor_interval = 0
    return shap


def ensemble_explainer(estimator: Any, function: Compute, space: Space) -> Explainer:
    """The explainer of a tree ensemble that takes the rows as they are; holds the GIL. Raises CannotExplain."""
    shap = import_shap()
    try:
        library = shap.TreeExplainer(estimator)
    except Exception as error:
        raise CannotExplain(f"shap does not support it: {type(error).__name__}: {error}") from error
    base_values = np.ravel(np.asarray(library.expected_value, np.float64))

    def explain(rows: Rows) -> Contributions:
        # row by row: shap sums trees in another order for several rows
        values = np.stack([np.asarray(library.shap_values(row[None], check_additivity=False))[0] for row in rows])
        values = values.reshape(*rows.shape, -1)
        outputs = function(rows)
        if outputs.shape[1] == 2 and values.shape[2] == 1:  # margins of a binary classifier
            return both_classes(Contributions(outputs[:, 1:], base_values, values), 0.0)
        return Contributions(outputs, base_values, values)

    return Explainer("tree-path-dependent", space, explain, tolerance=1e-6, in_process=False)


def native_explainer(estimator: Any, schema: Schema) -> Explainer:
    """The explainer of margins that XGBoost, LightGBM and CatBoost have; releases the GIL. Raises CannotExplain."""
    ask_margins = margins_of(estimator)
    ask_contributions = _contributions_of(estimator)
    if ask_margins is None or ask_contributions is None:
        raise CannotExplain(f"{type(estimator).__name__} does not explain itself")

    def ask(function: Callable[[Any], Any], rows: Rows) -> Rows:
        return np.asarray(function(schema.table(rows)), np.float64).reshape(len(rows), -1)

    def contributions(rows: Rows) -> Rows:
        """Shape (rows, outputs, features and base)."""
        return ask(ask_contributions, rows).reshape(len(rows), -1, len(schema) + 1)

    base_values = contributions(np.zeros((1, len(schema))))[0, :, -1]
    binary = len(getattr(estimator, "classes_", ())) == 2

    def explain(rows: Rows) -> Contributions:
        values = contributions(rows)[:, :, :-1].transpose(0, 2, 1).copy()
        found = Contributions(ask(ask_margins, rows), base_values, values)
        return both_classes(found, 0.0) if binary else found

    return Explainer("native", "margin", explain, tolerance=1e-5)  # XGBoost computes in float32


def margins_of(estimator: Any) -> Callable[[Any], Any] | None:
    """A function from a table to margins, as the estimator's library calls it; None where there is none."""
    if hasattr(estimator, "decision_function"):
        ask: Callable[[Any], Any] = estimator.decision_function
        return ask
    match library_of(last_step(estimator)):
        case "catboost":
            ranks = type(last_step(estimator)).__name__ == "CatBoostRanker"
            raw = {} if ranks else {"prediction_type": "RawFormulaVal"}
            return partial(estimator.predict, **raw)
        case "lightgbm":
            return partial(estimator.predict, raw_score=True)
        case "xgboost":
            return partial(estimator.predict, output_margin=True)
    return None


def _contributions_of(estimator: Any) -> Callable[[Any], Any] | None:
    if isinstance(estimator, RescaledClassifier):
        return _contributions_of(estimator.model)
    match library_of(estimator):
        case "catboost":
            return partial(_catboost_contributions, estimator)
        case "lightgbm":
            return partial(estimator.predict, pred_contrib=True)
        case "xgboost":
            return partial(_xgboost_contributions, estimator)
    return None


def _catboost_contributions(estimator: Any, table: Any) -> Any:
    import catboost

    pool = catboost.Pool(table, cat_features=estimator.get_cat_feature_indices() or None, thread_count=1)
    return estimator.get_feature_importance(pool, type="ShapValues")


def _xgboost_contributions(estimator: Any, table: Any) -> Any:
    import xgboost  # installed: the estimator is its own

    matrix = xgboost.DMatrix(table, missing=estimator.missing, nthread=1, enable_categorical=True)
    _, stop = estimator._get_iteration_range(None)
    return estimator.get_booster().predict(matrix, pred_contribs=True, iteration_range=(0, stop))
