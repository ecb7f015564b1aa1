"""Exact SHAP values of estimators that add up what their members answer: their members' values, added up the same way.

By the linearity of Shapley values, a weighted sum of models has the weighted sum of their values. That holds for means
of probabilities or numbers (voting, bagging), for a linear estimator over the numbers of others (stacking), and, class
by class, for the margins of one-vs-rest. The members must be explained by one method, in one space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn import compose, ensemble, feature_selection, model_selection, multiclass
from sklearn.base import is_classifier, is_regressor
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from registry.estimator import steps_of
from registry.explain.compiled import linear_explainer, tree_explainer
from registry.explain.shap_values import CannotExplain, Contributions, Explainer, both_classes
from registry.kernels.answers import selected
from registry.kernels.compiling import take_apart_from
from registry.kernels.linear import LINEAR, linear_form
from registry.kernels.matrix import Matrix
from registry.kernels.transformers import follow
from registry.rows.features import Rows

SCALERS = (MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler)


@dataclass(frozen=True, slots=True)
class Sum:
    """Members, a weight and the columns of each (None for all), and what is added to their sum.

    If `by_class` there is no sum: each member is a binary classifier whose second class is one of the whole's.
    """

    members: Sequence[Any]
    weights: Sequence[float]
    columns: Sequence[Sequence[int] | None]
    shift: float = 0.0
    by_class: bool = False


def exact_explainer(estimator: Any, matrix: Matrix, background: Rows) -> Explainer:
    """Explains trees, linear models, and sums of them, which are fed a matrix. Raises Unsupported, CannotExplain."""
    steps, last = steps_of(estimator)
    split = SUMS.get(type(last))
    if split is None:
        parts = take_apart_from(estimator, matrix)
        if parts.trees is not None:
            return tree_explainer(parts)
        if type(parts.last) in LINEAR:
            return linear_explainer(parts, background)
        raise CannotExplain(f"no kernel explains {type(parts.last).__name__}")
    for step in steps:
        matrix = follow(step, matrix)
    whole = split(last)
    explainers = [
        exact_explainer(member, matrix if chosen is None else selected(matrix, chosen), background)
        for member, chosen in zip(whole.members, whole.columns, strict=True)
    ]
    return _summed(whole, explainers, classifier=is_classifier(last))


def _summed(whole: Sum, explainers: Sequence[Explainer], *, classifier: bool) -> Explainer:
    first = explainers[0]
    if len({(explainer.method, explainer.space) for explainer in explainers}) > 1:
        raise CannotExplain("its members are explained by several methods, or in several spaces")
    if list(whole.weights) == [1.0] and not (whole.shift or whole.by_class):
        return first  # in whatever space
    if first.space != ("margin" if whole.by_class else "probability" if classifier else "value"):
        raise CannotExplain(f"its members are explained as a {first.space}, which it does not add up")
    asked = [explainer.explain for explainer in explainers]

    def explain(rows: Rows) -> Contributions:
        found = [ask(rows) for ask in asked]
        if whole.by_class:
            return _by_class(found)
        outputs, base_values, values = (
            sum(getattr(one, name) * weight for one, weight in zip(found, whole.weights, strict=True))
            for name in ("outputs", "base_values", "values")
        )
        return Contributions(outputs + whole.shift, base_values + whole.shift, values)

    tolerance = max(explainer.tolerance for explainer in explainers)
    return replace(first, explain=explain, tolerance=tolerance, interact=_summed_pairs(whole, explainers))


def _summed_pairs(whole: Sum, explainers: Sequence[Explainer]) -> Callable[[Rows], Rows] | None:
    """The interactions of a weighted sum; None where a member has none, or they are put together by class."""
    asked = [explainer.interact for explainer in explainers if explainer.interact is not None]
    if whole.by_class or len(asked) < len(explainers):
        return None

    def interact(rows: Rows) -> Rows:
        parts = [ask(rows) * weight for ask, weight in zip(asked, whole.weights, strict=True)]
        return np.sum(parts, axis=0)

    return interact


def _by_class(found: Sequence[Contributions]) -> Contributions:
    """The second class of each of several binary classifiers, next to each other."""
    second = Contributions(
        np.column_stack([one.outputs[:, -1] for one in found]),
        np.array([one.base_values[-1] for one in found]),
        np.stack([one.values[:, :, -1] for one in found], axis=2),
    )
    return both_classes(second, 0.0) if len(found) == 1 else second


def _mean(members: Sequence[Any], weights: Sequence[float] | None, columns: Sequence[Any] | None = None) -> Sum:
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, np.float64)
    return Sum(members, (shares / shares.sum()).tolist(), columns or [None] * len(members))


def _voting(voting: Any) -> Sum:
    if getattr(voting, "voting", "soft") != "soft":
        raise CannotExplain("a vote by labels gives no number to explain")
    given = voting.weights or [1.0] * len(voting.estimators)
    kept = [weight for (_, member), weight in zip(voting.estimators, given, strict=True) if member != "drop"]
    return _mean(voting.estimators_, kept)


def _bagging(bagging: Any) -> Sum:
    if hasattr(bagging, "n_classes_") and any(len(one.classes_) != bagging.n_classes_ for one in bagging.estimators_):
        raise CannotExplain("a member has not seen all classes")
    return _mean(bagging.estimators_, None, bagging.estimators_features_)


def _stacking(stacking: Any) -> Sum:
    steps, last = steps_of(stacking.final_estimator_)
    adds = not steps and type(last) in LINEAR and linear_form(last).explained == "value"
    if not adds or stacking.passthrough or not all(map(is_regressor, stacking.estimators_)):
        raise CannotExplain("its last estimator is not a sum of its members")
    weights, shift = np.ravel(last.coef_).tolist(), float(np.ravel(last.intercept_)[0])
    return Sum(stacking.estimators_, weights, [None] * len(weights), shift)


def _one_vs_rest(wrapper: Any) -> Sum:
    if wrapper.multilabel_ or not all(is_classifier(member) for member in wrapper.estimators_):
        raise CannotExplain("its members have no margins")
    count = len(wrapper.estimators_)
    return Sum(wrapper.estimators_, [1.0] * count, [None] * count, by_class=True)


def _target(wrapper: Any) -> Sum:
    transformer = wrapper.transformer_
    if type(transformer) in SCALERS:
        shift, one = np.ravel(transformer.inverse_transform([[0.0], [1.0]])).tolist()
        return Sum([wrapper.regressor_], [one - shift], [None], shift)
    if getattr(transformer, "inverse_func", transformer) is not None:
        raise CannotExplain("its target is transformed")
    return _alone(wrapper.regressor_)


def _alone(member: Any, columns: Sequence[int] | None = None) -> Sum:
    return Sum([member], [1.0], [columns])


def _threshold(wrapper: Any) -> Sum:
    return _alone(getattr(wrapper, "estimator_", wrapper.estimator))


def _eliminated(selection: Any) -> Sum:
    return _alone(selection.estimator_, np.flatnonzero(selection.support_).tolist())


SUMS: dict[type, Callable[[Any], Sum]] = {
    compose.TransformedTargetRegressor: _target,
    ensemble.BaggingClassifier: _bagging,
    ensemble.BaggingRegressor: _bagging,
    ensemble.StackingRegressor: _stacking,
    ensemble.VotingClassifier: _voting,
    ensemble.VotingRegressor: _voting,
    feature_selection.RFE: _eliminated,
    feature_selection.RFECV: _eliminated,
    model_selection.FixedThresholdClassifier: _threshold,
    model_selection.TunedThresholdClassifierCV: _threshold,
    multiclass.OneVsRestClassifier: _one_vs_rest,
}
"""By class, a function from a fitted estimator to its sum; it raises CannotExplain where it is none."""
