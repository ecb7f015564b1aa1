"""Which compiled form is which booster's; the libraries themselves are not needed for it."""

from __future__ import annotations

from typing import Any

from registry.boosters import qualified_name
from registry.kernels import lightgbm_trees, xgboost_trees
from registry.kernels.codes import CategoryCodes
from registry.kernels.ensembles import Ensemble
from registry.kernels.links import Link
from registry.kernels.splits import Plan
from registry.rows.schema import Schema

LIGHTGBM = {"lightgbm.sklearn.LGBMClassifier", "lightgbm.sklearn.LGBMRegressor"}
XGBOOST = {"xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRegressor"}


def is_booster(estimator: Any) -> bool:
    """Whether it is one of XGBoost's or LightGBM's; a class of somebody else that extends them is not."""
    return qualified_name(type(estimator)) in LIGHTGBM | XGBOOST


def category_codes(estimator: Any, schema: Schema) -> CategoryCodes | None:
    """What a booster does to a DataFrame's categories; None where it was fitted on none. Raises Unsupported."""
    if qualified_name(type(estimator)) in LIGHTGBM:
        return lightgbm_trees.category_codes(estimator, schema)
    return xgboost_trees.category_codes(estimator, schema)


def booster_ensemble(estimator: Any, plan: Plan) -> tuple[Ensemble, Link]:
    """Its trees; columns for splits by category are added to `plan`. Raises Unsupported."""
    if qualified_name(type(estimator)) in LIGHTGBM:
        return lightgbm_trees.lightgbm_ensemble(estimator, plan)
    return xgboost_trees.xgboost_ensemble(estimator, plan)
