"""Estimators that are made of others: compiled from the answers of their compiled members.

What scikit-learn does with its members' answers is done here, with the same numpy functions in the same order, but not
with its checks of every array. Sums over members are taken as for a row alone, where numpy may add in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn import compose, ensemble, feature_selection
from sklearn.preprocessing import FunctionTransformer

from registry.kernels.answers import (
    Answer,
    Answers,
    Members,
    label_places,
    label_values,
    most_probable,
    needed,
    refusing,
    side_by_side,
    with_python,
)
from registry.kernels.calibrations import CALIBRATED
from registry.kernels.decompositions import SPLIT
from registry.kernels.kernel import Unsupported
from registry.rows.features import Rows


def _voting_classifier(voting: Any, members: Members) -> Answers:
    own, weights, count = members.all(voting.estimators_), voting._weights_not_none, len(voting.classes_)
    if any(len(member.classes_) != count for member in voting.estimators_):
        raise Unsupported("a member has not seen all classes")
    if voting.voting == "soft":
        each = [needed(member.probabilities) for member in own]

        def probabilities(rows: Rows) -> Rows:
            return np.average(np.asarray([ask(rows) for ask in each]), axis=0, weights=weights)

        return with_python(most_probable(probabilities), own)
    asked = [needed(member.labels) for member in own]
    counted = list(zip(asked, weights or [1.0] * len(asked), strict=True))

    def labels(rows: Rows) -> Any:
        votes, places, refused = np.zeros((len(rows), count)), np.arange(len(rows)), np.zeros(len(rows), bool)
        for ask, weight in counted:
            indices = ask(rows)
            votes[places, indices] += weight
            refused |= indices < 0
        return np.where(refused, -1, votes.argmax(axis=1))

    return with_python(Answers(labels=labels), own)


def _voting_regressor(voting: Any, members: Members) -> Answers:
    own, weights = members.all(voting.estimators_), voting._weights_not_none
    each = [needed(member.values) for member in own]
    return with_python(Answers(values=lambda rows: np.average(side_by_side(each, rows), axis=1, weights=weights)), own)


def _bagging_classifier(bagging: Any, members: Members) -> Answers:
    pairs = list(zip(bagging.estimators_, bagging.estimators_features_, strict=True))
    own = [members.ask(member, columns) for member, columns in pairs]
    count, divisor = bagging.n_classes_, bagging.n_estimators
    shared = [
        (member, label_places(estimator.classes_, range(count)))
        for member, (estimator, _) in zip(own, pairs, strict=True)
    ]

    def probabilities(rows: Rows) -> Any:
        total, every = np.zeros((len(rows), count)), np.arange(len(rows))
        for member, places in shared:
            if member.probabilities is not None:
                total[:, places] += member.probabilities(rows)
            else:
                indices = needed(member.labels)(rows)
                total[every, places[indices]] += np.where(indices < 0, np.nan, 1)
        return total / divisor

    margins = _mean_of([member.margins for member in own], divisor)
    return with_python(most_probable(probabilities, margins), own)


def _mean_of(answers: Sequence[Answer | None], divisor: int) -> Answer | None:
    asked = [answer for answer in answers if answer is not None]
    if len(asked) < len(answers):
        return None
    return lambda rows: sum(answer(rows) for answer in asked) / divisor


def _bagging_regressor(bagging: Any, members: Members) -> Answers:
    pairs = zip(bagging.estimators_, bagging.estimators_features_, strict=True)
    own = [members.ask(member, columns) for member, columns in pairs]
    return with_python(Answers(values=_mean_of([member.values for member in own], bagging.n_estimators)), own)


def _stacking(stacking: Any, members: Members) -> Answers:
    own = members.all(stacking.estimators_)
    drops_first = hasattr(stacking, "classes_") and len(stacking.classes_) == 2
    each = zip(own, stacking.estimators_, stacking.stack_method_, strict=True)
    asked = [_stacked(member, estimator, method, drops_first=drops_first) for member, estimator, method in each]
    beside = members.width if stacking.passthrough else 0
    last, width = stacking.final_estimator_, stacking.final_estimator_.n_features_in_
    single = all(member.single for member in own) and "predict" not in stacking.stack_method_[: len(own)]
    single = not beside and (single or all(member.single and member.values is not None for member in own))
    final = members.ask_about_single_numbers(last, width) if single else members.ask_about_numbers(last, width)
    dtype = np.float32 if single else np.float64

    def predictions(rows: Rows) -> Rows:
        made = [answer(rows).reshape(len(rows), -1) for answer in asked]
        return np.ascontiguousarray(np.hstack([*made, rows] if beside else made), dtype)

    made = refusing(final, predictions, lambda fed: np.isnan(fed[:, : width - beside]).any(axis=1))
    return with_python(made, [*own, final])


def _stacked(member: Answers, estimator: Any, method: str, *, drops_first: bool) -> Answer:
    """What a member hands on to the last estimator."""
    if method == "decision_function":
        return needed(member.margins)
    if method == "predict":
        return member.values or label_values(member, estimator)
    probabilities = needed(member.probabilities)
    return (lambda rows: probabilities(rows)[:, 1:]) if drops_first else probabilities


def _boosted_classifier(boosting: Any, members: Members) -> Answers:
    own, count = members.all(boosting.estimators_), boosting.n_classes_
    if count < 2:
        raise Unsupported("it has seen a single class")
    total = boosting.estimator_weights_.sum()
    votes = []
    for member, estimator, weight in zip(own, boosting.estimators_, boosting.estimator_weights_, strict=False):
        places = label_places(estimator.classes_, boosting.classes_)
        by_label = np.where(places[:, None] == np.arange(count), weight, -1 / (count - 1) * weight)
        votes.append((needed(member.labels), np.vstack([by_label, np.full(count, np.nan)])))  # of a refused row at -1

    def margins(rows: Rows) -> Any:
        made = sum(by_label[ask(rows)] for ask, by_label in votes)
        made /= total
        return made[:, 1] - made[:, 0] if count == 2 else made

    def shares(made: Rows) -> Rows:
        made = np.column_stack([-made, made]) / 2 if count == 2 else made / (count - 1)
        made -= made.max(axis=1, keepdims=True)
        np.exp(made, out=made)
        made /= made.sum(axis=1, keepdims=True)
        return made

    def decided(made: Rows) -> Any:
        labels = (made > 0).astype(np.intp) if count == 2 else made.argmax(axis=1)
        return np.where(np.isnan(made if count == 2 else made[:, 0]), -1, labels)

    def outputs(rows: Rows) -> Rows:
        made = margins(rows)
        labels = decided(made)
        return np.column_stack([shares(made), labels])

    answers = Answers(
        labels=lambda rows: decided(margins(rows)),
        probabilities=lambda rows: shares(margins(rows)),
        margins=margins,
        outputs=outputs,
    )
    return with_python(answers, own)


def _boosted_regressor(boosting: Any, members: Members) -> Answers:
    own, weights = members.all(boosting.estimators_), boosting.estimator_weights_
    each = [needed(member.values) for member in own]
    return with_python(Answers(values=lambda rows: weighted_median(side_by_side(each, rows), weights)), own)


def weighted_median(predictions: Rows, weights: Rows) -> Rows:
    """AdaBoost's median of predictions, shape (rows, members), as it finds that of a row alone."""
    order, rows = np.argsort(predictions, axis=1), np.arange(len(predictions))
    below = np.cumsum(weights[order], axis=1)
    found = (below >= 0.5 * below[:, -1][:, np.newaxis]).argmax(axis=1)
    return predictions[rows, order[rows, found]]


def _transformed_target(wrapper: Any, members: Members) -> Answers:
    member = members.ask(wrapper.regressor_)
    values, transformer, squeezed = needed(member.values), wrapper.transformer_, wrapper._training_dim == 1
    is_function = type(transformer) is FunctionTransformer
    if is_function and transformer.inverse_func is None:
        return Answers(values=values, python=member.python)
    function = transformer.inverse_func if is_function else transformer.inverse_transform
    arguments = (transformer.inv_kw_args or {}) if is_function else {}

    def transformed(rows: Rows) -> Any:
        made = function(values(rows).reshape(len(rows), -1), **arguments)
        return made.squeeze(axis=1) if squeezed and made.ndim == 2 and made.shape[1] == 1 else made

    own = () if isinstance(function, np.ufunc) else (type(transformer).__name__,)
    return Answers(values=transformed, python=(*member.python, *own))


def _eliminated(selection: Any, members: Members) -> Answers:
    """The answers of an estimator behind the columns that were selected for it."""
    return replace(members.ask(selection.estimator_, np.flatnonzero(selection.support_).tolist()), outputs=None)


COMPOSITES: dict[type, Callable[[Any, Members], Answers]] = {
    **CALIBRATED,
    **SPLIT,
    compose.TransformedTargetRegressor: _transformed_target,
    ensemble.AdaBoostClassifier: _boosted_classifier,
    ensemble.AdaBoostRegressor: _boosted_regressor,
    ensemble.BaggingClassifier: _bagging_classifier,
    ensemble.BaggingRegressor: _bagging_regressor,
    ensemble.StackingClassifier: _stacking,
    ensemble.StackingRegressor: _stacking,
    ensemble.VotingClassifier: _voting_classifier,
    ensemble.VotingRegressor: _voting_regressor,
    feature_selection.RFE: _eliminated,
    feature_selection.RFECV: _eliminated,
}
