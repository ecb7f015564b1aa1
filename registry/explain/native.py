"""What XGBoost and LightGBM say themselves: exact path-dependent SHAP values, for boosters that no kernel takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from registry.explain.library import CannotExplain
from registry.explain.outputs import margins_of
from registry.explain.shap_values import Contributions, Method, Space, both_classes
from registry.rows.features import Rows
from registry.rows.schema import Schema


@dataclass(frozen=True, slots=True, eq=False)
class NativeExplainer:
    """Explains margins as the library does, which releases the GIL; XGBoost computes them in float32."""

    space: Space
    margins: Callable[[Rows], Rows]
    contributions: Callable[[Rows], Rows]
    """Shape (rows, outputs, features and base)."""
    base_values: Rows
    binary: bool
    method: Method = field(default="native", init=False)
    tolerance: float = field(default=1e-5, init=False)
    in_process: bool = field(default=True, init=False)
    jobs_only: bool = field(default=False, init=False)
    evaluations: int = field(default=0, init=False)

    def explain(self, rows: Rows) -> Contributions:
        """What each feature contributes to each margin."""
        values = self.contributions(rows)[:, :, :-1].transpose(0, 2, 1).copy()
        found = Contributions(self.margins(rows), self.base_values, values)
        return both_classes(found, 0.0) if self.binary else found


def native_explainer(estimator: Any, schema: Schema, *, frame: bool) -> NativeExplainer:
    """The explainer of an estimator of XGBoost's or LightGBM's own. Raises CannotExplain."""
    ask = margins_of(estimator)
    contribute = _contributions_of(estimator)
    if ask is None or contribute is None:
        raise CannotExplain(f"{type(estimator).__name__} does not explain itself")

    def table(rows: Rows) -> Any:
        return schema.frame(rows) if frame else rows

    def margins(rows: Rows) -> Rows:
        return np.asarray(ask(table(rows)), np.float64).reshape(len(rows), -1)

    def contributions(rows: Rows) -> Rows:
        made = np.asarray(contribute(table(rows)), np.float64)
        return made.reshape(len(rows), -1, len(schema) + 1)

    base_values = contributions(np.zeros((1, len(schema))))[0, :, -1]
    binary = len(getattr(estimator, "classes_", ())) == 2
    return NativeExplainer("margin", margins, contributions, base_values, binary)


def _contributions_of(estimator: Any) -> Callable[[Any], Any] | None:
    match type(estimator).__module__.split(".", maxsplit=1)[0]:
        case "lightgbm":
            return lambda table: estimator.predict(table, pred_contrib=True)
        case "xgboost":
            return lambda table: _of_xgboost(estimator, table)
    return None


def _of_xgboost(estimator: Any, table: Any) -> Any:
    import xgboost  # is there: the estimator is its own

    matrix = xgboost.DMatrix(table, missing=estimator.missing, nthread=1, enable_categorical=True)
    _, stop = estimator._get_iteration_range(None)
    return estimator.get_booster().predict(matrix, pred_contribs=True, iteration_range=(0, stop))
