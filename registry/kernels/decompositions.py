"""Estimators that split a task into several, by classes or by targets: from their members' answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn import multiclass, multioutput
from sklearn.base import is_regressor
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.multiclass import _ovr_decision_function

from registry.kernels.answers import Answer, Answers, Members, label_values, needed, positive, side_by_side, with_python
from registry.kernels.kernel import Unsupported
from registry.rows.features import Rows


def _constant(predictor: Any, _members: Members) -> Answers:
    """The answers of a member of OneVsRestClassifier that has seen a single class, as of a binary classifier."""
    (value,) = predictor.y_.astype(np.float64)
    return Answers(
        labels=lambda rows: np.full(len(rows), int(value)),
        probabilities=lambda rows: np.tile([1 - value, value], (len(rows), 1)),
        margins=lambda rows: np.full(len(rows), value),
    )


def _one_vs_rest(wrapper: Any, members: Members) -> Answers:
    own = members.all(wrapper.estimators_)
    first, single = wrapper.estimators_[0], len(own) == 1
    regresses = is_regressor(first)
    scores = [needed(member.values) if regresses else positive(member) for member in own]
    threshold = multiclass._threshold_for_binary_predict(first)
    multiclass_ = wrapper.label_binarizer_.y_type_ == "multiclass"

    def labels(rows: Rows) -> Any:
        found = side_by_side(scores, rows)
        if multiclass_:
            return np.where(np.isnan(found).any(axis=1), -1, found.argmax(axis=1))
        above = np.where(np.isnan(found), -1, found > threshold)
        return above[:, 0] if single else above

    each = [member.probabilities for member in own if member.probabilities is not None]
    margins = [member.margins for member in own if member.margins is not None]
    normalized = not wrapper.multilabel_

    def probabilities(rows: Rows) -> Any:
        made = side_by_side([_second(ask) for ask in each], rows)
        if single:
            made = np.concatenate(((1 - made), made), axis=1)
        if not normalized:
            return [np.column_stack([1.0 - column, column]) for column in made.T]
        sums = np.sum(made, axis=1)[:, np.newaxis]
        return np.divide(made, sums, out=made, where=sums != 0)

    def decision(rows: Rows) -> Any:
        return margins[0](rows) if single else side_by_side([_ravelled(ask) for ask in margins], rows)

    answers = Answers(
        labels=labels,
        probabilities=probabilities if len(each) == len(own) else None,
        margins=decision if len(margins) == len(own) else None,
    )
    return with_python(answers, own)


def _second(ask: Answer) -> Answer:
    return lambda rows: ask(rows)[:, 1]


def _ravelled(ask: Answer) -> Answer:
    return lambda rows: np.ravel(ask(rows))


def _one_vs_one(wrapper: Any, members: Members) -> Answers:
    if wrapper.pairwise_indices_ is not None or is_regressor(wrapper.estimators_[0]):
        raise Unsupported("its members are fed distances, or are regressors")
    own, count = members.all(wrapper.estimators_), len(wrapper.classes_)
    scores, voted = [positive(member) for member in own], [needed(member.labels) for member in own]
    threshold = multiclass._threshold_for_binary_predict(wrapper.estimators_[0])

    def margins(rows: Rows) -> Any:
        made = _ovr_decision_function(side_by_side(voted, rows), side_by_side(scores, rows), count)
        return made[:, 1] if count == 2 else made

    def labels(rows: Rows) -> Any:
        made = margins(rows)
        return (made > threshold).astype(np.intp) if count == 2 else made.argmax(axis=1)

    return with_python(Answers(labels=labels, margins=margins), own)


def _output_code(wrapper: Any, members: Members) -> Answers:
    own, book = members.all(wrapper.estimators_), wrapper.code_book_
    regresses = is_regressor(wrapper.estimators_[0])
    scores = [needed(member.values) if regresses else positive(member) for member in own]

    def labels(rows: Rows) -> Any:
        return pairwise_distances_argmin(np.asarray(side_by_side(scores, rows), np.float64), book, metric="euclidean")

    return with_python(Answers(labels=labels), own)


def _multi_output(wrapper: Any, members: Members) -> Answers:
    own = members.all(wrapper.estimators_)
    values, labels, shares = (
        [answer for member in own if (answer := getattr(member, name)) is not None]
        for name in ("values", "labels", "probabilities")
    )
    answers = Answers(
        values=partial(side_by_side, values) if len(values) == len(own) else None,
        labels=partial(side_by_side, labels) if len(labels) == len(own) else None,
        probabilities=(lambda rows: [ask(rows) for ask in shares]) if len(shares) == len(own) else None,
    )
    return with_python(answers, own)


def _chain(chain: Any, members: Members) -> Answers:
    width, method = members.width, getattr(chain, "chain_method_", "predict")
    own = [members.ask_about_numbers(member, width + index) for index, member in enumerate(chain.estimators_)]
    links = [_chained(member, estimator, method) for member, estimator in zip(own, chain.estimators_, strict=True)]
    places = np.argsort(chain.order_)

    def inputs(rows: Rows) -> list[Rows]:
        """What each member is fed: the rows, and what the members before it answer."""
        made = [rows]
        for link in links[:-1]:
            made.append(np.column_stack([made[-1], link(made[-1])]))
        return made

    def each(name: str) -> list[Answer] | None:
        answers = [getattr(member, name) for member in own]
        return None if None in answers else [answers[place] for place in places]

    values, labels, shares = each("values"), each("labels"), each("probabilities")

    def ask(answers: list[Answer]) -> Answer:
        def asked(rows: Rows) -> list[Any]:
            fed = inputs(rows)
            return [answer(fed[place]) for answer, place in zip(answers, places, strict=True)]

        return asked

    def stacked(answers: list[Answer] | None) -> Answer | None:
        if answers is None:
            return None
        asked = ask(answers)
        return lambda rows: np.column_stack(asked(rows))

    asked = None if shares is None else ask([_second(share) for share in shares])
    both = None if asked is None else lambda rows: [np.column_stack([1.0 - one, one]) for one in asked(rows)]
    return with_python(Answers(stacked(values), stacked(labels), both), own)


def _chained(member: Answers, estimator: Any, method: str) -> Answer:
    """What a member of a chain hands on to the next ones."""
    match method:
        case "predict":
            return member.values or label_values(member, estimator)
        case "predict_proba":
            return _second(needed(member.probabilities))
        case "decision_function":
            return needed(member.margins)
    raise Unsupported(f"its chain hands on {method}")


SPLIT: dict[type, Callable[[Any, Members], Answers]] = {
    multiclass.OneVsOneClassifier: _one_vs_one,
    multiclass.OneVsRestClassifier: _one_vs_rest,
    multiclass.OutputCodeClassifier: _output_code,
    multiclass._ConstantPredictor: _constant,
    multioutput.ClassifierChain: _chain,
    multioutput.MultiOutputClassifier: _multi_output,
    multioutput.MultiOutputRegressor: _multi_output,
    multioutput.RegressorChain: _chain,
}
