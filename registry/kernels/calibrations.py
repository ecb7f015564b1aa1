"""Calibrated classifiers, isotonic regression, and classifiers with a threshold: from their members' answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit  # type: ignore[import-untyped]
from sklearn import calibration, isotonic, model_selection

from registry.kernels.answers import (
    Answer,
    Answers,
    Members,
    label_places,
    most_probable,
    needed,
    positive,
    with_python,
)
from registry.kernels.kernel import Unsupported
from registry.rows.features import Rows

LOG_SHIFT = 1e-12
"""What scikit-learn adds to probabilities before it takes their logarithms."""


def _calibrated(calibrated: Any, members: Members) -> Answers:
    classes, each = calibrated.classes_, calibrated.calibrated_classifiers_
    own = members.all([one.estimator for one in each])
    shares = [_calibration(one, member) for one, member in zip(each, own, strict=True)]

    def probabilities(rows: Rows) -> Rows:
        mean = np.zeros((len(rows), len(classes)))
        for share in shares:
            mean += share(rows)
        mean /= len(shares)
        return mean

    return with_python(most_probable(probabilities), own)


def _calibration(one: Any, member: Answers) -> Answer:
    """A function from rows to the probabilities of one calibrated classifier."""
    count = len(one.classes)
    by_margin = member.margins is not None
    scores = positive(member) if count == 2 else needed(member.margins or member.probabilities)
    if one.method == "temperature":
        beta = one.calibrators[0].beta_
        return lambda rows: _at_most_one(_tempered(scores(rows), beta, both=count == 2 and not by_margin))
    places = label_places(one.estimator.classes_, one.classes)
    steps = list(zip(places + 1 if count == 2 else places, map(_calibrator, one.calibrators), strict=False))

    def share(rows: Rows) -> Rows:
        found = scores(rows).reshape(len(rows), -1)
        shares = np.zeros((len(rows), count))
        for column, (place, calibrate) in enumerate(steps):
            shares[:, place] = calibrate(found[:, column])
        if count == 2:
            shares[:, 0] = 1.0 - shares[:, 1]
        else:
            total = np.sum(shares, axis=1)[:, np.newaxis]
            shares = np.divide(shares, total, out=np.full_like(shares, 1 / count), where=total != 0)
        return _at_most_one(shares)

    return share


def _at_most_one(shares: Rows) -> Rows:
    shares[(shares > 1.0) & (shares <= 1.0 + 1e-5)] = 1.0
    return shares


def _tempered(scores: Rows, beta: float, *, both: bool) -> Rows:
    """Probabilities by temperature; scikit-learn takes scores that add up to 1 for probabilities."""
    if scores.ndim == 1:
        logits = np.column_stack([1 - scores, scores] if both else [-scores, scores])
    else:
        logits = np.array(scores)
    if scores.ndim > 1 or both:
        likely = ((logits >= 0) & (logits <= 1)).all(axis=1) & np.isclose(np.sum(logits, axis=1), 1.0)
        logits[likely] = np.log(logits[likely] + LOG_SHIFT)
    logits = beta * logits
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _calibrator(calibrator: Any) -> Answer:
    """A function of scores, shape (rows,), to probabilities."""
    if type(calibrator) is isotonic.IsotonicRegression:
        return _steps_of(calibrator)
    if type(calibrator) is not calibration._SigmoidCalibration:
        raise Unsupported(f"the calibration {type(calibrator).__name__} has no compiled form")
    slope, shift = calibrator.a_, calibrator.b_
    return lambda scores: expit(-(slope * scores + shift))


def _steps_of(regression: Any) -> Answer:
    """An isotonic regression as a function of numbers, shape (rows,)."""
    known, heights = regression.X_thresholds_, regression.y_thresholds_
    low, high = regression.X_min_, regression.X_max_
    if regression.out_of_bounds == "raise":
        raise Unsupported("its isotonic regression refuses what is out of bounds")
    if len(heights) == 1:
        steps: Answer = lambda numbers: heights.repeat(len(numbers))  # noqa: E731
    elif known.dtype == np.float64:
        steps = partial(np.interp, xp=known, fp=heights)
    else:
        steps = regression.f_  # scipy's own, which computes in float32
    if regression.out_of_bounds == "clip":
        return lambda numbers: steps(np.clip(numbers.astype(known.dtype), low, high)).astype(known.dtype)

    def inside(numbers: Rows) -> Rows:
        return np.where((numbers < low) | (numbers > high), np.nan, steps(numbers.astype(known.dtype)))

    return inside


def _isotonic(regression: Any, members: Members) -> Answers:
    if members.width != 1:
        raise Unsupported("its isotonic regression is fed several columns")
    steps = _steps_of(regression)
    return Answers(values=lambda rows: steps(rows[:, 0]))


def _threshold(wrapper: Any, members: Members) -> Answers:
    estimator = getattr(wrapper, "estimator_", wrapper.estimator)
    member = members.ask(estimator)
    tuned = isinstance(wrapper, model_selection.TunedThresholdClassifierCV)
    positive = wrapper._curve_scorer._get_pos_label() if tuned else wrapper.pos_label
    methods = wrapper._get_response_method()
    methods = [methods] if isinstance(methods, str) else methods
    method = next(name for name in methods if hasattr(estimator, name))
    threshold = wrapper.best_threshold_ if tuned else wrapper.threshold
    if threshold == "auto":
        threshold = 0.5 if method == "predict_proba" else 0.0
    (place,) = label_places([wrapper.classes_[1] if positive is None else positive], wrapper.classes_)
    asked = needed(member.probabilities if method == "predict_proba" else member.margins)

    def labels(rows: Rows) -> Any:
        scores = asked(rows)
        scores = scores[:, place] if scores.ndim > 1 else scores if place == 1 else -1 * scores
        return np.where(scores >= threshold, place, 1 - place)

    return replace(member, labels=labels, outputs=None)


CALIBRATED: dict[type, Callable[[Any, Members], Answers]] = {
    calibration.CalibratedClassifierCV: _calibrated,
    isotonic.IsotonicRegression: _isotonic,
    model_selection.FixedThresholdClassifier: _threshold,
    model_selection.TunedThresholdClassifierCV: _threshold,
}
