"""How an estimator is asked: the layout of its outputs, and the function from a table to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import SGDOneClassSVM
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import LocalOutlierFactor, RadiusNeighborsClassifier
from sklearn.pipeline import Pipeline

from registry.errors import WrongOutputs
from registry.estimator import (
    MOST_PROBABLE,
    MOST_PROBABLE_BOOSTERS,
    Compute,
    Outputs,
    last_step,
    qualified_name,
    task_of,
)
from registry.outputs import Label, Layout, Part, Target, json_label
from registry.rows.schema import Schema

Ask = Callable[[Any], Outputs]
"""A function from a table, in the form that the estimator was fitted on, to columns, shape (rows, columns)."""

TOLERANCE = 1e-6
"""The largest error of a probability, and of the sum of two; of more classes in proportion, as of sums in float32."""

SCORE_DECIDES = (EllipticEnvelope, IsolationForest, LocalOutlierFactor, SGDOneClassSVM)
"""Outlier detectors whose label says exactly whether their `decision_function` is below 0, so that one call does."""

MAY_KNOW_NO_CLASS = (OneVsRestClassifier, RadiusNeighborsClassifier)
"""Classifiers whose probabilities of a row may all be 0: no class claims it."""


def estimator_compute(estimator: Any, schema: Schema, layout: Layout | None = None) -> Compute:
    """A function that calls the estimator itself, with rows in the form that it was fitted on."""
    ask = asking(estimator, layout)
    return lambda rows: ask(schema.table(rows))


def _own(table: Any) -> Any:
    """The table for one call of several: an estimator may change what it is given, as StandardScaler(copy=False)."""
    return table.copy(deep=False) if hasattr(table, "iloc") else table.copy()  # pandas copies on write


def layout_of(estimator: Any, table: Any = None, names: Sequence[str] = ()) -> Layout:
    """The layout of an estimator's outputs; it is asked for the first row of `table`, which shows several targets.

    Several targets have `names`, or are called output_0, output_1... Without a table there is one. Raises what the
    estimator raises.
    """
    count = 1 if table is None else np.size(_dense(estimator.predict(_own(table[:1]))))
    classes = [tuple(map(json_label, own)) for own in _classes(estimator, count, table)]
    row = None if table is None else table[:1]
    if count == 1:
        return Layout(_parts(estimator, classes[0], row), (Target(name="", classes=classes[0]),))
    names = names or [f"output_{index}" for index in range(count)]
    targets = tuple(Target(name=name, classes=own) for name, own in zip(names, classes, strict=True))
    if not is_classifier(estimator):
        return Layout(("value",), targets)
    has_shares = _can(estimator, "predict_proba", row) and _shares_by_target(
        estimator.predict_proba(_own(row)), targets
    )
    return Layout(("probabilities", "label") if has_shares else ("label",), targets)


def asking(estimator: Any, layout: Layout | None = None) -> Ask:
    """A function from a table to the estimator's outputs; it raises WrongOutputs, and what the estimator raises."""
    layout = layout_of(estimator) if layout is None else layout
    if layout.is_named:
        return _asking_for_targets(estimator, layout)
    classes = layout.targets[0].classes
    if layout.parts == ("label", "margins") and _predict_of(estimator) is LinearClassifierMixin.predict:
        return _label_by_margins(estimator)
    if layout.parts == ("label", "score") and type(last_step(estimator)) in SCORE_DECIDES:
        return _label_by_score(estimator)
    makers = [_maker(estimator, part, classes, layout) for part in layout.parts]
    return makers[0] if len(makers) == 1 else lambda table: np.hstack([make(_own(table)) for make in makers])


def _classes(estimator: Any, count: int, table: Any) -> list[list[Any]]:
    """The classes of each of `count` targets, as the estimator has them; none of what does not classify."""
    found: Any
    if task_of(estimator) == "clustering" and hasattr(estimator, "predict_proba"):
        found = np.arange(
            last_step(estimator).n_components if table is None else estimator.predict_proba(_own(table[:1])).shape[1]
        )
    elif is_classifier(estimator):
        found = estimator.classes_
    else:
        return [[]] * count
    by_target = isinstance(found, list | tuple) and len(found) > 0 and isinstance(found[0], np.ndarray | list)
    each = [np.asarray(own).tolist() for own in (found if by_target else [found])]
    # of several labels a row, `classes_` are the names or the numbers
    return [[0, 1]] * count if count > 1 and len(each) != count else each


def _parts(estimator: Any, classes: Sequence[Label], row: Any) -> tuple[Part, ...]:
    """The parts of the outputs of an estimator with one target; it is asked for a `row`, unless that is None."""
    match task_of(estimator):
        case "regression":
            return ("value",)
        case "ranking":
            return ("score",)
        case "outlier-detection":
            return ("label", "score") if _score_of(estimator) else ("label",)
    return _parts_of_classes(estimator, len(classes), row) if classes else ("label",)


def _parts_of_classes(estimator: Any, classes: int, row: Any) -> tuple[Part, ...]:
    if _can(estimator, "predict_proba", row):
        kind = type(last_step(estimator))
        most_probable = kind in MOST_PROBABLE or qualified_name(kind) in MOST_PROBABLE_BOOSTERS
        return ("probabilities",) if most_probable else ("probabilities", "label")
    margins = 1 if classes == 2 else classes
    if _can(estimator, "decision_function", row, margins) and (classes == 2 or not _is_by_pairs(estimator)):
        return ("label", "margins")
    return ("label",)


def _can(estimator: Any, method: str, row: Any, numbers: int | None = None) -> bool:
    """Return whether a method exists and answers the row, with so many numbers."""
    if not hasattr(estimator, method):
        return False
    if row is None:
        return True
    try:
        made = getattr(estimator, method)(_own(row))
    except (AttributeError, NotImplementedError):
        return False
    return numbers is None or np.size(made) == numbers


def _is_by_pairs(estimator: Any) -> bool:
    """Return whether the margins are those of pairs of classes, as an SVC can be told."""
    parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
    return any(name.endswith("decision_function_shape") and value == "ovo" for name, value in parameters.items())


def _score_of(estimator: Any) -> Callable[[Any], Any] | None:
    """An outlier detector's score: the lower, the more unusual; below 0 is an outlier if it has a decision function."""
    found: Callable[[Any], Any] | None = getattr(estimator, "decision_function", None)
    return found or getattr(estimator, "score_samples", None)


def _predict_of(estimator: Any) -> Any:
    """The function behind `predict` of an estimator, or of the last step of a pipeline."""
    return getattr(type(last_step(estimator)), "predict", None)


def _maker(estimator: Any, part: Part, classes: Sequence[Label], layout: Layout) -> Ask:
    width = layout.columns[0][part].stop - layout.columns[0][part].start
    match part:
        case "label" if classes:
            return _labels(estimator)
        case "probabilities":
            return _probabilities(estimator, width)
        case "margins":
            return lambda table: _columns(estimator.decision_function(table), table, width)
        case "score" if layout.parts == ("label", "score"):
            score = _score_of(estimator)
            assert score is not None
            return lambda table: _columns(score(table), table, 1)
    return lambda table: _columns(estimator.predict(table), table, 1)


def _columns(made: Any, table: Any, width: int) -> Outputs:
    """What an estimator has returned, as float64 of shape (rows, width)."""
    outputs = np.asarray(made, dtype=np.float64)
    if outputs.size != len(table) * width:
        raise WrongOutputs(f"the estimator returned {outputs.size} numbers for {len(table)} rows, not {width} a row")
    return outputs.reshape(len(table), width)


def _labels(estimator: Any) -> Ask:
    """Indices of the labels in `classes_`, in whatever order these are."""
    (classes,) = _classes(estimator, 1, None)
    places = _places(classes)
    return lambda table: _indices(np.asarray(estimator.predict(table)).reshape(len(table), 1), [places])


def _places(classes: Sequence[Any]) -> dict[Any, float]:
    return {label: float(place) for place, label in enumerate(classes)}


def _indices(predicted: Any, places: Sequence[dict[Any, float]]) -> Outputs:
    """The indices of labels, shape (rows, targets), among the classes of each target."""
    try:
        return np.array(
            [[own[label] for own, label in zip(places, row, strict=True)] for row in predicted.tolist()], np.float64
        ).reshape(predicted.shape)
    except KeyError as error:
        raise WrongOutputs(f"the estimator predicts {str(error)[:50]}, which is none of its classes") from None


def _probabilities(estimator: Any, width: int) -> Ask:
    allow_none = _may_know_no_class(estimator)

    def ask(table: Any) -> Outputs:
        made = estimator.predict_proba(table)
        made = made[0] if isinstance(made, list) else made  # of one target of a classifier for several
        return _checked(_columns(made, table, width), allow_none=allow_none)

    return ask


def _checked(shares: Outputs, *, allow_none: bool = False) -> Outputs:
    """Probabilities, if those of each row are in [0, 1] and add up to 1. Raises WrongOutputs."""
    sums, tolerance = shares.sum(axis=1), TOLERANCE * max(1.0, shares.shape[1] / 2)
    right = (shares >= -tolerance).all(axis=1) & (shares <= 1.0 + tolerance).all(axis=1)
    right &= np.abs(sums - 1.0) <= tolerance
    if allow_none:
        right |= ~shares.any(axis=1)
    if not right.all():
        row = shares[int(np.argmin(right))]
        shown = ", ".join(f"{share:.4g}" for share in row[:5].tolist()) + (", ..." if len(row) > 5 else "")
        raise WrongOutputs(
            f"the estimator's probabilities of a row are {shown}: they must be between 0 and 1 and add up to 1"
        )
    return shares


def _may_know_no_class(estimator: Any) -> bool:
    parts = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    parts += estimator.get_params().values() if hasattr(estimator, "get_params") else []
    return any(isinstance(part, MAY_KNOW_NO_CLASS) for part in parts)


def _label_by_margins(estimator: Any) -> Ask:
    """Scikit-learn's linear classifiers: the first greatest margin decides, and of two classes the sign."""

    def ask(table: Any) -> Outputs:
        margins = np.asarray(estimator.decision_function(table), np.float64).reshape(len(table), -1)
        labels = margins > 0 if margins.shape[1] == 1 else margins.argmax(axis=1)[:, None]
        return np.hstack([labels, margins])

    return ask


def _label_by_score(estimator: Any) -> Ask:
    def ask(table: Any) -> Outputs:
        scores = np.asarray(estimator.decision_function(table), np.float64).reshape(len(table), 1)
        return np.hstack([np.where(scores < 0, -1.0, 1.0), scores])

    return ask


def _asking_for_targets(estimator: Any, layout: Layout) -> Ask:
    count = len(layout.targets)
    if layout.parts == ("value",):
        return lambda table: _columns(estimator.predict(table), table, count)
    places = [_places(own) for own in _classes(estimator, count, None)]
    ask_shares = _target_probabilities(estimator, layout) if "probabilities" in layout.parts else None

    def ask(table: Any) -> Outputs:
        predicted = np.asarray(_dense(estimator.predict(_own(table)))).reshape(len(table), count)
        labels = _indices(predicted, places)
        if ask_shares is None:
            return labels
        shares = ask_shares(table)
        return np.hstack([part for index in range(count) for part in (shares[index], labels[:, [index]])])

    return ask


def _target_probabilities(estimator: Any, layout: Layout) -> Callable[[Any], list[Outputs]]:
    """A function from a table to the probabilities of each target."""
    allow_none = _may_know_no_class(estimator)

    def ask(table: Any) -> list[Outputs]:
        shares = _shares_by_target(estimator.predict_proba(table), layout.targets)
        if shares is None:
            raise WrongOutputs("the estimator's probabilities are not those of the classes of each target")
        return [_checked(own, allow_none=allow_none) for own in shares]

    return ask


def _shares_by_target(made: Any, targets: Sequence[Target]) -> list[Outputs] | None:
    """What `predict_proba` returned as one array a target; None if it does not fit their classes.

    It is a list of such arrays, or one array with the probability of 1 of each target.
    """
    widths = [len(target.classes) for target in targets]
    if not isinstance(made, list):
        ones = np.asarray(_dense(made), np.float64)
        if set(widths) != {2} or ones.ndim != 2 or ones.shape[1] != len(widths):
            return None
        return [np.column_stack([1.0 - share, share]) for share in ones.T]
    each = [np.asarray(own, np.float64) for own in made]
    return each if [own.shape[1] if own.ndim == 2 else 0 for own in each] == widths else None


def _dense(made: Any) -> Any:
    """An array, also of a sparse one, which OneVsRestClassifier may return."""
    return made.toarray() if hasattr(made, "toarray") else made
