"""Split-conformal prediction: intervals and sets of labels that hold the true value as often as a request asks for.

Rows that the estimator was not fitted on have a score each: how far the prediction was from the true value, or how
little the true class was believed in. The k-th smallest of n scores, k = ceil((n + 1) * coverage), bounds the score of
a fresh row of the same distribution with a probability of at least `coverage`, and of less than 1 / (n + 1) more if no
two scores are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from registry.errors import CannotAdd, InvalidSelection
from registry.outputs import Layout, both_margins
from registry.rows.features import Rows

MAX_SCORES = 5000
"""Calibration rows whose scores are kept; they allow a coverage of 99.98 %."""


def conformal_scores(outputs: Rows, truth: Rows, layout: Layout) -> tuple[float, ...]:
    """The sorted scores of rows with known true values: numbers, or indices of labels. Raises CannotAdd."""
    if layout.parts == ("value",):
        scores = np.abs(outputs[:, 0] - truth)
    elif not can_be_bounded(layout):
        raise CannotAdd("only regressors, and classifiers with probabilities or margins, can be calibrated")
    else:
        scores = -beliefs(outputs, layout)[np.arange(len(truth)), truth.astype(np.intp)]
    if not np.isfinite(scores).all():
        raise CannotAdd("the model's output for a calibration row is not finite")
    return tuple(np.sort(scores).tolist())


def can_be_bounded(layout: Layout) -> bool:
    """Return whether predictions of such outputs can have an interval or a set."""
    return not layout.is_named and bool({"value", "probabilities", "margins"} & set(layout.parts))


def beliefs(outputs: Rows, layout: Layout) -> Rows:
    """How much a classifier believes in each class, shape (rows, classes): its probability, or its margin."""
    (columns,) = layout.columns
    if "probabilities" in columns:
        return outputs[:, columns["probabilities"]]
    return both_margins(outputs[:, columns["margins"]])


def threshold(scores: Sequence[float], coverage: float) -> float:
    """The largest score that a set or interval of this coverage allows. Raises InvalidSelection."""
    if not 0.0 < coverage < 1.0:
        raise InvalidSelection("coverage must be between 0 and 1, both excluded")
    if not scores:
        raise InvalidSelection("the model was added without calibration rows, so it has no intervals and sets")
    count = len(scores)
    rank = math.ceil((count + 1) * Decimal(repr(coverage)))  # exact: 100 * 0.07 is more than 7 in floats
    if rank > count:
        raise InvalidSelection(
            f"the largest coverage that {count} calibration rows allow is {largest_coverage(count):g}"
        )
    return scores[rank - 1]


def largest_coverage(count: int) -> float:
    """The largest coverage that so many calibration rows allow, to six digits."""
    return math.floor(10**6 * count / (count + 1)) / 10**6


def add_bounds(answers: Sequence[Any], outputs: Rows, layout: Layout, bound: float) -> list[dict[str, Any]]:
    """Answers with an interval beside a number, or a set of labels beside a label; `bound` is a `threshold`."""
    if layout.parts == ("value",):
        intervals = np.stack([outputs[:, 0] - bound, outputs[:, 0] + bound], axis=1).tolist()
        return [{"prediction": value, "interval": own} for value, own in zip(answers, intervals, strict=True)]
    classes = layout.targets[0].classes
    held = beliefs(outputs, layout) >= -bound
    return [
        answer | {"set": [label for label, is_held in zip(classes, own, strict=True) if is_held]}
        for answer, own in zip(answers, held.tolist(), strict=True)
    ]
