"""What the steps of a fitted estimator do with each column of its input.

A column is followed from step to step, for as long as steps make one column of one (imputers, scalers, selections), up
to the steps that use it: encoders know their categories, vectorizers take texts, and all others of scikit-learn take
numbers, with missing values or without. What own code does with a column is not known here; `trials` finds out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.naive_bayes import CategoricalNB
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.utils import get_tags

from registry.estimator import PIPELINES, library_of, qualified_name, unwrap
from registry.kernels import xgboost_trees
from registry.kernels.kernel import Unsupported
from registry.rows.features import python_value
from registry.rows.infer_schema import Use

ENCODERS = (OneHotEncoder, OrdinalEncoder, TargetEncoder)
VECTORIZERS = (CountVectorizer, HashingVectorizer)
SCALERS = (MaxAbsScaler, MinMaxScaler, PowerTransformer, QuantileTransformer, RobustScaler, StandardScaler)
IMPUTERS = (KNNImputer, SimpleImputer)
HISTOGRAM = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)

INNER = ("best_estimator_", "regressor_", "calibrated_classifiers_", "estimator_", "estimators_")
"""Attributes in which estimators keep those that they ask."""


CALIBRATED = "_CalibratedClassifier"
TREES = frozenset({"sklearn.ensemble._forest", "sklearn.ensemble._gb"})


@dataclass(frozen=True, slots=True)
class Path:
    """A column of a step's input that is a column of the estimator's own, and whether its gaps are filled before."""

    source: int
    filled: bool = False


Paths = list[Path | None]
"""The columns of a step's input; None for one that was computed, and at the end where their number is not known."""


def uses_of(estimator: Any, table: pd.DataFrame) -> list[tuple[Use, ...]]:
    """The uses of each column of a sample of an estimator's input; none for a column that no step uses."""
    walk = _Walk([[] for _ in table.columns])
    walk.follow(estimator, [Path(index) for index in range(table.shape[1])])
    for index, use in _lightgbm_categories(unwrap(estimator), table):
        walk.uses[index] = [use]
    return [tuple(dict.fromkeys(uses)) for uses in walk.uses]


def takes_series(estimator: Any) -> bool:
    """Return whether an estimator begins with a vectorizer, which takes one column of texts as it is."""
    estimator = unwrap(estimator)
    if isinstance(estimator, FeatureUnion):
        return all(takes_series(step) for _, step in estimator.transformer_list)
    if qualified_name(type(estimator)) in PIPELINES:
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return bool(steps) and takes_series(steps[0])
    inner = [one for one, _ in _inner_estimators(estimator)]
    return isinstance(estimator, VECTORIZERS) or (bool(inner) and all(map(takes_series, inner)))


@dataclass(frozen=True, slots=True)
class _Walk:
    uses: list[list[Use]]

    def follow(self, step: Any, paths: Paths) -> Paths:
        """The columns that a step makes of its own; what it does with those is noted."""
        step = unwrap(step)
        if step is None or isinstance(step, str):
            return [] if step == "drop" else paths
        if qualified_name(type(step)) in PIPELINES:
            for _, inner in step.steps:
                paths = self.follow(inner, paths)
            return paths
        if isinstance(step, FeatureUnion):
            return [path for _, inner in step.transformer_list for path in self.follow(inner, list(paths))]
        if isinstance(step, ColumnTransformer):
            return self._distributed(step, paths)
        return self._used(step, paths)

    def _distributed(self, step: ColumnTransformer, paths: Paths) -> Paths:
        made: Paths = []
        for name, inner, _ in step.transformers_:
            indices = step._transformer_to_input_indices[name]
            made += self.follow(inner, [paths[i] if i < len(paths) else None for i in indices])
        return made

    def _used(self, step: Any, paths: Paths) -> Paths:
        if isinstance(step, SelectorMixin):
            return [path for path, is_kept in zip(paths, step.get_support(), strict=False) if is_kept]
        if isinstance(step, ENCODERS):
            return self._encoded(step, paths)
        if isinstance(step, VECTORIZERS):
            self._note(paths, Use(type(step).__name__, "text", takes_missing=False))
            return _computed(step)
        if isinstance(step, IMPUTERS):
            return self._imputed(step, paths)
        if isinstance(step, SCALERS) or (isinstance(step, FunctionTransformer) and isinstance(step.func, np.ufunc)):
            self._note(paths, Use(type(step).__name__, "numbers"))
            return paths
        return paths if isinstance(step, FunctionTransformer) and step.func is None else self._asked(step, paths)

    def _asked(self, step: Any, paths: Paths) -> Paths:
        inner = _inner_estimators(step)
        for estimator, chosen in inner:
            self.follow(estimator, paths if chosen is None else [paths[i] for i in chosen if i < len(paths)])
        if not inner:
            self._ends(step, paths)
        return _computed(step)

    def _ends(self, step: Any, paths: Paths) -> None:
        """Note what an estimator, or a transformer that computes each column from several, takes."""
        categories = _own_categories(step) if len(paths) == getattr(step, "n_features_in_", -1) else {}
        for index, path in enumerate(paths):
            if path is not None:
                use = categories.get(index) or _numbers(step)
                self.uses[path.source].append(replace(use, takes_missing=True) if path.filled else use)

    def _note(self, paths: Paths, use: Use) -> None:
        for path in paths:
            if path is not None:
                self.uses[path.source].append(replace(use, takes_missing=True) if path.filled else use)

    def _encoded(self, step: Any, paths: Paths) -> Paths:
        is_open = isinstance(step, TargetEncoder) or step.handle_unknown != "error"
        for path, listed in zip(paths, step.categories_, strict=False):
            use = _encoder(type(step).__name__, listed, is_open=is_open)
            if path is not None:
                self.uses[path.source].append(replace(use, takes_missing=True) if path.filled else use)
        return _computed(step)

    def _imputed(self, step: Any, paths: Paths) -> Paths:
        if isinstance(step, SimpleImputer):
            if step.strategy in ("mean", "median"):
                self._note(paths, Use(type(step).__name__, "numbers", takes_missing=True))
            if not _is_gap(step.missing_values):
                return paths
            kept = [True] * len(paths) if step.keep_empty_features else [not _is_gap(one) for one in step.statistics_]
            paths = [path for path, is_kept in zip(paths, kept, strict=False) if is_kept]
        else:
            self._note(paths, Use(type(step).__name__, "numbers", takes_missing=True))
        return [None if path is None else replace(path, filled=True) for path in paths]


def _computed(step: Any) -> Paths:
    """As many columns as a transformer makes; none are known of an estimator, which makes none."""
    try:
        return [None] * len(step.get_feature_names_out())
    except Exception:  # noqa: BLE001 - own code, or one that names no columns
        return [None]


def _encoder(name: str, listed: Any, *, is_open: bool) -> Use:
    """The use of a column by an encoder that knows these categories."""
    values = [python_value(value) for value in np.asarray(listed).tolist()]
    gaps = ["none" if value is None else "nan" for value in values if _is_gap(value)]
    known = tuple(value for value in values if not _is_gap(value))
    if not all(type(value) in (str, int, float, bool) for value in known):
        return Use(name, "unknown")  # dates, for example
    if all(type(value) is float and value.is_integer() for value in known):
        known = tuple(map(int, known))  # a column with gaps
    takes_missing = True if gaps else None if is_open else False
    return Use(name, "encoder", known, is_open=is_open, takes_missing=takes_missing, missing=gaps[0] if gaps else "")


def _numbers(step: Any) -> Use:
    name = type(step).__name__
    library = library_of(step)
    if library in ("lightgbm", "xgboost"):
        return Use(name, "numbers", takes_missing=True)
    if library != "sklearn" or isinstance(step, FunctionTransformer):
        return Use(name, "unknown")
    try:
        allowed = bool(get_tags(step).input_tags.allow_nan)
    except Exception:  # noqa: BLE001 - an estimator of another release
        return Use(name, "unknown")
    return Use(name, "numbers", takes_missing=None if allowed else False)


def _own_categories(step: Any) -> dict[int, Use]:
    """The categories that an estimator itself knows, by column."""
    name = type(step).__name__
    if isinstance(step, CategoricalNB):
        return {index: _encoder(name, range(count), is_open=False) for index, count in enumerate(step.n_categories_)}
    if isinstance(step, HISTOGRAM) and step.is_categorical_ is not None:
        places = np.flatnonzero(step.is_categorical_).tolist()
        listed = step._preprocessor.named_transformers_["encoder"].categories_
        return {
            place: replace(_encoder(name, one, is_open=True), takes_missing=True)
            for place, one in zip(places, listed, strict=True)
        }
    if library_of(step) == "catboost":  # which hashes them
        native = getattr(step, "native_model", step)
        return {index: Use(name, "written") for index in native.get_cat_feature_indices()}
    if qualified_name(type(step)).startswith("xgboost.sklearn."):
        return {
            index: replace(_encoder(name, listed, is_open=False), takes_missing=True)
            for index, listed in enumerate(_xgboost_categories(step))
            if listed is not None
        }
    return {}


def _lightgbm_categories(estimator: Any, table: pd.DataFrame) -> list[tuple[int, Use]]:
    """LightGBM keeps the categories of its columns of that type, in their order; any other is a missing value."""
    if not qualified_name(type(estimator)).startswith("lightgbm.sklearn."):
        return []
    listed = estimator.booster_.pandas_categorical or []
    places = [index for index, dtype in enumerate(table.dtypes) if isinstance(dtype, pd.CategoricalDtype)]
    if len(places) != len(listed):
        return []
    uses = [replace(_encoder(type(estimator).__name__, one, is_open=True), takes_missing=True) for one in listed]
    return list(zip(places, uses, strict=True))


def _xgboost_categories(step: Any) -> Sequence[Sequence[str] | None]:
    try:
        return xgboost_trees.listed_categories(step)
    except (Unsupported, KeyError):
        return ()


def _inner_estimators(step: Any) -> list[tuple[Any, Any]]:
    """The fitted estimators that one of scikit-learn asks with its own input, each with the columns that it is given.

    Those of forests and boosting are trees: their ensemble says what it takes.
    """
    if library_of(step) != "sklearn" or type(step).__module__ in TREES:
        return []
    found = next((made for name in INNER if (made := getattr(step, name, None)) is not None), None)
    flat = [getattr(one, "estimator", one) if type(one).__name__ == CALIBRATED else one for one in _flat(found)]
    columns = getattr(step, "estimators_features_", None)
    if columns is None or len(columns) != len(flat):
        columns = [None] * len(flat)
    return list(zip(flat, columns, strict=True))


def _flat(found: Any) -> Iterator[Any]:
    if isinstance(found, list | tuple | np.ndarray):
        for one in found:
            yield from _flat(one)
    elif isinstance(found, BaseEstimator) or type(found).__name__ == CALIBRATED:
        yield found


def _is_gap(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"
