"""From margins to outputs as XGBoost and LightGBM compute: with the C library's `exp`, in the type of the margins.

XGBoost's are float32, LightGBM's float64. Both are C++ without reordered sums, so one kernel states the arithmetic of
both and is compiled for each. A sum or quotient of float32 that is computed in float64 and rounded is the float32 one:
53 bits are more than twice 24 and two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from registry.kernels.kernel import Kernel, read_only, writable
from registry.kernels.links import Link

LARGEST_POWER = float(np.float32(88.7))
"""XGBoost raises e to no more, LightGBM to anything."""


def _logistic(margins: Any, slope: Any, largest: Any, out: Any) -> None:
    """Fill `out`, shape (rows, 2), with two probabilities, or, shape (rows, 1), with the second."""
    rounded = margins.dtype.type
    last = out.shape[1] - 1
    for r in range(margins.shape[0]):
        power = rounded(min(-slope * margins[r, 0], largest))
        positive = rounded(1.0 / rounded(1.0 + math.exp(power)))
        out[r, 0] = rounded(1.0 - positive)
        out[r, last] = positive


def _softmax(margins: Any, out: Any) -> None:
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


def _exponential(margins: Any, out: Any) -> None:
    for r in range(margins.shape[0]):
        out[r, 0] = math.exp(margins[r, 0])


NUMBERS = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}

LOGISTIC = {
    dtype: Kernel(_logistic, read_only(number, 2), types.float64, types.float64, writable(types.float64, 2))
    for dtype, number in NUMBERS.items()
}
SOFTMAX = {
    dtype: Kernel(_softmax, writable(number, 2), writable(types.float64, 2)) for dtype, number in NUMBERS.items()
}
EXPONENTIAL = {
    dtype: Kernel(_exponential, read_only(number, 2), writable(types.float64, 2)) for dtype, number in NUMBERS.items()
}


def logistic(dtype: Any, *, outputs: int, slope: float = 1.0, largest: float = math.inf) -> Link:
    """Margins of shape (rows, 1) to two probabilities, or to one for a regressor."""
    finish = LOGISTIC[np.dtype(dtype)].load()

    def link(margins: Any) -> Any:
        out = np.empty((len(margins), outputs))
        finish(margins, slope, largest, out)
        return out

    return link


def softmax(dtype: Any) -> Link:
    """Margins of shape (rows, classes) to a probability a class."""
    finish = SOFTMAX[np.dtype(dtype)].load()

    def link(margins: Any) -> Any:
        out = np.empty(margins.shape)
        finish(margins, out)
        return out

    return link


def exponential(dtype: Any) -> Link:
    """Margins of shape (rows, 1) that are logarithms of the answer."""
    finish = EXPONENTIAL[np.dtype(dtype)].load()

    def link(margins: Any) -> Any:
        out = np.empty(margins.shape)
        finish(margins, out)
        return out

    return link


def identity(margins: Any) -> Any:
    """Margins that are the answer, as float64."""
    return margins.astype(np.float64, copy=False)
