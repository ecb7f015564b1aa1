"""From margins to outputs: probabilities, and where scikit-learn's `predict` decides otherwise than by them, the label.

scikit-learn's logistic function is 1 / (1 + exp(-x)) with the C library's `exp`, which is scipy's `expit` bit for bit
(15 million values compared). numpy's vectorised `exp`, which softmax uses, differs from the C library's in the last
bit, so softmax stays with numpy and only the steps around it are a kernel.

XGBoost computes in float32, LightGBM in float64, both with the C library's `exp` and without reordered sums. So one
kernel states the arithmetic of both and is compiled for each type. A sum or quotient of float32 that is computed in
float64 and rounded equals the float32 one: 53 bits are more than twice 24 and two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import types
from scipy.special import expit  # type: ignore[import-untyped]
from sklearn.mixture._base import _logsumexp

from registry.estimator import Outputs
from registry.kernels.kernel import MATRIX, NUMBERS, OUT, Kernel, read_only, writable
from registry.rows.features import Rows

Link = Callable[[Rows], Outputs]
"""A function from margins, shape (rows, outputs), to the model's outputs. It may overwrite the margins."""


def _binary(margins: Any, intercept: Any, slope: Any, tie_is_positive: Any, out: Any) -> None:
    for r in range(margins.shape[0]):
        margin = margins[r, 0] + intercept[0]
        positive = 1.0 / (1.0 + math.exp(-(slope * margin)))
        out[r, 0] = 1.0 - positive
        out[r, 1] = positive
        if math.isnan(margin):  # the row is refused, and has no label
            out[r, 2] = math.nan
        else:
            out[r, 2] = 1.0 if margin > 0.0 or (tie_is_positive and margin == 0.0) else 0.0


def _before_softmax(margins: Any, intercept: Any, out: Any) -> None:
    """Add the intercept and subtract each row's greatest margin; the first greatest one is the label."""
    classes = margins.shape[1]
    for r in range(margins.shape[0]):
        label = 0
        for k in range(classes):
            margins[r, k] += intercept[k]
            if margins[r, k] > margins[r, label]:
                label = k
        greatest = margins[r, label]
        for k in range(classes):
            margins[r, k] -= greatest
        out[r, classes] = math.nan if math.isnan(greatest) else label


BINARY = Kernel(_binary, MATRIX, NUMBERS, types.float64, types.boolean, OUT)
BEFORE_SOFTMAX = Kernel(_before_softmax, OUT, NUMBERS, OUT)


def _filled(kernel: Kernel, *arguments: Any, width: int | None = None) -> Link:
    """A link whose outputs a kernel fills, `width` a row, or as many as there are margins."""
    finish = kernel.load()

    def link(margins: Rows) -> Outputs:
        out = np.empty((len(margins), width or margins.shape[1]))
        finish(margins, *arguments, out)
        return out

    return link


def binary(intercept: Rows, *, slope: float = 1.0, tie_is_positive: bool = False) -> Link:
    """Margins of shape (rows, 1) to two probabilities and the label; the intercept has shape (1,)."""
    return _filled(BINARY, intercept, slope, tie_is_positive, width=3)


def softmax(intercept: Rows) -> Link:
    """Margins of shape (rows, classes) to a probability a class and the label; the intercept has shape (classes,)."""
    prepare = BEFORE_SOFTMAX.load()
    classes = len(intercept)

    def link(margins: Rows) -> Outputs:
        out = np.empty((len(margins), classes + 1))
        prepare(margins, intercept, out)
        np.exp(margins, margins)
        np.divide(margins, np.add.reduce(margins, 1, keepdims=True), out[:, :classes])
        return out

    return link


def softmax_of_votes(votes: Rows) -> Outputs:
    """AdaBoost's margins, shape (rows, classes), to a probability a class and the label."""
    classes = votes.shape[1]
    if classes == 2:
        margins = votes[:, 1] - votes[:, 0]
        labels = (margins > 0.0).astype(np.intp)
        margins = np.column_stack([-margins, margins]) / 2
    else:
        labels, margins = votes.argmax(axis=1), votes / (classes - 1)
    margins -= margins.max(axis=1, keepdims=True)
    np.exp(margins, margins)
    margins /= margins.sum(axis=1, keepdims=True)
    return np.column_stack([margins, labels])


def with_most_probable(classes: Sequence[int]) -> Link:
    """Probabilities of so many classes of one target after the other; each target's first greatest one is its label."""
    stops = np.cumsum(classes).tolist()
    places = [slice(stop - count, stop) for stop, count in zip(stops, classes, strict=True)]

    def link(probabilities: Rows) -> Outputs:
        parts = [probabilities[:, place] for place in places]
        return np.column_stack([column for part in parts for column in (part, part.argmax(axis=1))])

    return link


def identity(intercept: Rows) -> Link:
    """Margins that are the answer once the intercept is added."""
    return lambda margins: np.add(margins, intercept, margins)


def exponential(margins: Rows) -> Outputs:
    """Margins that are logarithms of the answer: the log link of a Poisson or gamma loss."""
    return np.exp(margins, margins)


def label_by_sign(intercept: Rows) -> Link:
    """Margins of shape (rows, 1) to the label's index and the margin."""

    def link(margins: Rows) -> Outputs:
        np.add(margins, intercept, margins)
        return np.hstack([margins > 0.0, margins])

    return link


def label_by_argmax(intercept: Rows) -> Link:
    """Margins of shape (rows, classes) to the label's index and the margins."""

    def link(margins: Rows) -> Outputs:
        np.add(margins, intercept, margins)
        return np.hstack([margins.argmax(axis=1, keepdims=True), margins])

    return link


def exponential_of(intercept: Rows) -> Link:
    """Margins that are logarithms of the answer once the intercept is added."""
    return lambda margins: exponential(np.add(margins, intercept, margins))


def label_by_score(intercept: Rows) -> Link:
    """An outlier detector's score, shape (rows, 1), to the label, -1 or 1, and the score."""

    def link(margins: Rows) -> Outputs:
        np.add(margins, intercept, margins)
        return np.hstack([np.where(margins < 0.0, -1.0, 1.0), margins])

    return link


def _normalized(shares: Rows) -> Rows:
    """Shares of several classes, divided by their sum; equal ones where all are 0, as scikit-learn has it."""
    sums = shares.sum(axis=1)
    none = sums == 0.0
    shares[none], sums[none] = 1.0, shares.shape[1]
    shares /= sums[:, None]
    return shares


def one_against_rest(intercept: Rows) -> Link:
    """Margins of shape (rows, classes), each against all others, to a probability a class and the label."""

    def link(margins: Rows) -> Outputs:
        np.add(margins, intercept, margins)
        labels = margins.argmax(axis=1)
        return np.column_stack([_normalized(expit(margins, out=margins)), labels])

    return link


def modified_huber(intercept: Rows) -> Link:
    """Margins of the modified Huber loss to a probability a class and the label."""

    def link(margins: Rows) -> Outputs:
        np.add(margins, intercept, margins)
        shares = (np.clip(margins, -1.0, 1.0) + 1.0) / 2.0
        if margins.shape[1] == 1:
            return np.hstack([1.0 - shares, shares, margins > 0.0])
        return np.column_stack([_normalized(shares), margins.argmax(axis=1)])

    return link


def of_joint_logarithms(constant: Rows | None) -> Link:
    """Logarithms of joint likelihoods, shape (rows, classes), to a probability a class and the label."""

    def link(logarithms: Rows) -> Outputs:
        if constant is not None:
            np.add(logarithms, constant, logarithms)
        shares = np.exp(logarithms - _logsumexp(logarithms, axis=1, xp=np)[:, None])
        return np.column_stack([shares, logarithms.argmax(axis=1)])

    return link


LARGEST_POWER = float(np.float32(88.7))
"""XGBoost raises e to no more, LightGBM to anything."""


def _booster_logistic(margins: Any, slope: Any, largest: Any, out: Any) -> None:
    """Fill `out`, shape (rows, 2), with two probabilities, or, shape (rows, 1), with the second."""
    rounded = margins.dtype.type
    last = out.shape[1] - 1
    for r in range(margins.shape[0]):
        power = rounded(min(-slope * margins[r, 0], largest))
        positive = rounded(1.0 / rounded(1.0 + math.exp(power)))
        out[r, 0] = rounded(1.0 - positive)
        out[r, last] = positive


def _booster_softmax(margins: Any, out: Any) -> None:
    """Fill `out`, shape (rows, classes); the sum is float64 whatever the margins are."""
    rounded = margins.dtype.type
    classes = margins.shape[1]
    for r in range(margins.shape[0]):
        greatest = margins[r, 0]
        for k in range(1, classes):
            greatest = max(greatest, margins[r, k])
        total = 0.0
        for k in range(classes):
            margins[r, k] = math.exp(rounded(margins[r, k] - greatest))
            total += margins[r, k]
        for k in range(classes):
            out[r, k] = rounded(margins[r, k] / rounded(total))


def _booster_exponential(margins: Any, out: Any) -> None:
    for r in range(margins.shape[0]):
        out[r, 0] = math.exp(margins[r, 0])


def _in_both_precisions(function: Callable[..., None], margins: Callable[..., Any], *others: Any) -> dict[Any, Kernel]:
    return {
        np.dtype(str(number)): Kernel(function, margins(number, 2), *others, OUT)
        for number in (types.float32, types.float64)
    }


LOGISTIC = _in_both_precisions(_booster_logistic, read_only, types.float64, types.float64)
SOFTMAX = _in_both_precisions(_booster_softmax, writable)
EXPONENTIAL = _in_both_precisions(_booster_exponential, read_only)


def booster_logistic(dtype: Any, *, outputs: int, slope: float = 1.0, largest: float = math.inf) -> Link:
    """Margins of shape (rows, 1) to two probabilities, or to one for a regressor."""
    return _filled(LOGISTIC[np.dtype(dtype)], slope, largest, width=outputs)


def booster_softmax(dtype: Any) -> Link:
    """Margins of shape (rows, classes) to a probability a class."""
    return _filled(SOFTMAX[np.dtype(dtype)])


def booster_exponential(dtype: Any) -> Link:
    """Margins of shape (rows, 1) that are logarithms of the answer."""
    return _filled(EXPONENTIAL[np.dtype(dtype)])


def booster_identity(margins: Any) -> Any:
    """Margins that are the answer, as float64."""
    return margins.astype(np.float64, copy=False)
