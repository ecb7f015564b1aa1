"""How right predictions were, as sums that can be added up: of an hour's outcomes a day's follow, of these a year's.

Context: metrics of a day cannot be computed from the metrics of its hours, and predictions are not kept for a year.
Decision: sums of decimal numbers, which are exact in whatever order they are added; for what needs the order of all
scores, counts of probabilities in BINS. Consequence: accuracy, log loss, mean absolute error, R2 and the points of the
calibration curve are exact; in the area under the ROC curve, scores of one bin count as equal: it is wrong by at most
half of the pairs, one of the class and one of the others, that lie in one bin.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote

import numpy as np

from registry.estimator import Task
from registry.outputs import Labels, Layout, Target

Sums = Mapping[str, Decimal]
"""The sums of some outcomes by name, such as `outcomes`, `right` or `log_loss`; those of targets and classes have
paths: `value/TARGET`, `bin/TARGET/CLASS/0 or 1/BIN`."""

MAX_CLASSES = 32
"""Of a target with more classes the probabilities are not counted: accuracy and log loss are all that is known."""

STEPS = 200
CURVE_BINS = 10
"""The points of a calibration curve."""

TAIL_STEPS = 8
TAIL = tuple(10 ** (exponent / 20) for exponent in range(-120, -28))
"""Edges below TAIL_STEPS / STEPS, twenty a decade: rare classes have small probabilities only."""

CURVE_EDGES: tuple[float, ...] = tuple(np.linspace(0.0, 1.0, CURVE_BINS + 1).tolist())
EDGES = (
    *TAIL,
    *(
        CURVE_EDGES[step * CURVE_BINS // STEPS] if step * CURVE_BINS % STEPS == 0 else step / STEPS
        for step in range(TAIL_STEPS, STEPS - TAIL_STEPS + 1)
    ),
    *(1.0 - edge for edge in reversed(TAIL)),
)
BINS = len(EDGES) + 1
"""Bins of probabilities; each holds its upper edge, as in scikit-learn."""

POINT_OF = tuple(bisect_left(CURVE_EDGES[1:-1], edge) for edge in (*EDGES, 1.0))
"""The point of the calibration curve that each bin belongs to."""

DIGITS = 12
"""Digits after the point to which probabilities and their logarithms are rounded."""
SMALLEST = float(np.finfo(np.float64).eps)
"""A smaller probability of what happened counts as this one, as in scikit-learn."""

BETTER: Mapping[str, Literal[1, -1]] = {
    "accuracy": 1,
    "log_loss": -1,
    "roc_auc": 1,
    "mean_absolute_error": -1,
    "r2": 1,
}
"""The metrics, and whether higher (1) or lower (-1) values are better."""

ONE = Decimal(1)
EXACT = Context(prec=100, Emin=-5000, Emax=5000)
"""Squares of numbers have twice their digits, and sums some more."""


class Point(NamedTuple):
    """A point of a calibration curve: predictions with a probability above `low`, up to `high`."""

    low: float
    high: float
    outcomes: int
    predicted: float
    """The mean of the probabilities."""
    observed: float
    """The share of outcomes that were of the class."""


def add_up(all_sums: Iterable[Sums]) -> dict[str, Decimal]:
    """The sums of all of them together."""
    total: dict[str, Decimal] = {}
    for sums in all_sums:
        for name, value in sums.items():
            total[name] = EXACT.add(total[name], value) if name in total else value
    return total


class Scorer:
    """Compares outcomes with the predictions of one version."""

    def __init__(self, task: Task, layout: Layout) -> None:
        self._task = task
        self._is_named = layout.is_named
        self._targets = [_ScorerOfTarget(target) for target in layout.targets]

    def sums(self, outcome: Any, prediction: Any, probabilities: Any = None) -> dict[str, Decimal]:
        """The sums of one outcome; of one that fits the version's targets no more, only that there was one.

        Of several targets all are objects by name. `probabilities` are by the text of a label, or None.
        """
        sums = {"outcomes": ONE}
        if self._task == "ranking":  # a score is right only beside others
            return sums
        try:
            if self._task == "regression":
                for target, true, predicted in self._by_target(outcome, prediction):
                    sums |= target.of_number(true, predicted)
                return sums
            sums["right"] = Decimal(int(outcome == prediction))
            if probabilities is not None:
                losses = []
                for target, true, shares in self._by_target(outcome, probabilities):
                    loss, counted = target.of_shares(true, shares)
                    losses.append(loss)
                    sums |= counted
                sums |= {"scored": ONE, "log_loss": _decimal(round(_mean(losses), DIGITS))}
        except (TypeError, ValueError, KeyError):
            return {"outcomes": ONE}
        return sums

    def _by_target(self, *values: Any) -> Iterable[tuple[_ScorerOfTarget, Any, Any]]:
        for target in self._targets:
            one, other = (value[target.name] for value in values) if self._is_named else values
            yield target, one, other


class _ScorerOfTarget:
    def __init__(self, target: Target) -> None:
        self.name = target.name
        self._path = quote(target.name, safe="")
        self._labels = Labels(target.classes)
        count = len(target.classes)
        # of two classes only the second is counted: the first is its mirror image
        counted = range(count == 2, count) if 1 < count <= MAX_CLASSES else ()
        self._counted = [(place, f"{self._path}/{quote(self._labels.texts[place], safe='')}") for place in counted]

    def of_number(self, true: Any, predicted: Any) -> dict[str, Decimal]:
        value = _decimal(true)
        error = EXACT.subtract(value, _decimal(predicted))
        return {
            f"value/{self._path}": value,
            f"squared_value/{self._path}": EXACT.multiply(value, value),
            f"absolute_error/{self._path}": abs(error),
            f"squared_error/{self._path}": EXACT.multiply(error, error),
        }

    def of_shares(self, true: Any, probabilities: Mapping[str, float]) -> tuple[float, dict[str, Decimal]]:
        """The log loss, and what is counted of each class."""
        truth, sums = self._labels.place(true), {}
        shares = _shares([probabilities[text] for text in self._labels.texts])
        for place, path in self._counted:
            share = shares[place]
            bin_ = bisect_left(EDGES, share)
            sums[f"bin/{path}/{int(place == truth)}/{bin_}"] = ONE
            sums[f"probability/{path}/{POINT_OF[bin_]}"] = _decimal(round(share, DIGITS))
        return -math.log(max(shares[truth], SMALLEST)), sums


def _shares(probabilities: list[float]) -> list[float]:
    """Probabilities that add up to 1, which they do not where an estimator computes in float32."""
    clipped = [min(max(float(one), 0.0), 1.0) for one in probabilities]
    total = sum(clipped)
    if not total:  # a row that no class claims
        return [1.0 / len(clipped)] * len(clipped)
    return clipped if abs(total - 1.0) < 1e-9 else [one / total for one in clipped]


def _decimal(number: float) -> Decimal:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise TypeError
    return Decimal(repr(number))


def metrics_of(sums: Sums) -> dict[str, float]:
    """The metrics that follow from sums, by the names of `registry.training.metrics`; none that they do not tell.

    The area under the ROC curve is that of the second of two classes, or the mean of all classes, each against the
    others, if each of them has occurred; of several targets the mean.
    """
    metrics: dict[str, float] = {}
    if "right" in sums:
        metrics["accuracy"] = float(sums["right"] / sums["outcomes"])
    if scored := sums.get("scored"):
        metrics["log_loss"] = float(sums["log_loss"] / scored)
        areas = [_area(falls, hits) for falls, hits in _bins(sums).values()]
        if areas and None not in areas:
            metrics["roc_auc"] = _mean([area for area in areas if area is not None])
    if targets := [name.partition("/")[2] for name in sums if name.startswith("value/")]:
        metrics |= _errors(sums, targets)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _errors(sums: Sums, targets: Sequence[str]) -> dict[str, float]:
    """Mean absolute error and R2, averaged over the targets. Values that are all equal have an R2 of 1 or 0."""
    count, scores = sums["outcomes"], []
    metrics = {"mean_absolute_error": _mean([float(sums[f"absolute_error/{one}"] / count) for one in targets])}
    if count < 2:
        return metrics
    for target in targets:
        value, residual = sums[f"value/{target}"], sums[f"squared_error/{target}"]
        spread = EXACT.subtract(sums[f"squared_value/{target}"], EXACT.divide(EXACT.multiply(value, value), count))
        if spread > 0:
            scores.append(1.0 - float(EXACT.divide(residual, spread)))
        else:
            scores.append(0.0 if residual else 1.0)
    return metrics | {"r2": _mean(scores)}


def find_shortfall(live: Mapping[str, float], expected: Mapping[str, float], tolerance: float) -> list[str]:
    """In which metrics a version is worse by more than `tolerance` than it was expected to be, in words.

    The mean absolute error may be larger by that share; all others have no unit: they may be worse by so much.
    """
    reasons = []
    for name, value in live.items():
        if name in BETTER and name in expected:
            worse = (expected[name] - value) * BETTER[name]
            allowed = tolerance * expected[name] if name == "mean_absolute_error" else tolerance
            if worse > allowed:
                reasons.append(f"{name} is {value:.4g}, it was {expected[name]:.4g}")
    return reasons


def calibration_of(sums: Sums) -> dict[tuple[str, str], list[Point]]:
    """The calibration curves by target ("" if there is one) and class; of two classes that of the second."""
    curves = {}
    for (target, label), (falls, hits) in _bins(sums).items():
        counts, observed = [0] * CURVE_BINS, [0] * CURVE_BINS
        for bin_ in range(BINS):
            counts[POINT_OF[bin_]] += falls[bin_] + hits[bin_]
            observed[POINT_OF[bin_]] += hits[bin_]
        path = f"probability/{quote(target, safe='')}/{quote(label, safe='')}"
        curves[target, label] = [
            Point(
                place / CURVE_BINS, (place + 1) / CURVE_BINS, count, float(sums[f"{path}/{place}"]) / count, hit / count
            )
            for place, (count, hit) in enumerate(zip(counts, observed, strict=True))
            if count
        ]
    return curves


def _bins(sums: Sums) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    """By target and class how many outcomes had a probability in each of BINS: of other classes, and of this one."""
    found: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for name, count in sums.items():
        if name.startswith("bin/"):
            _, target, label, is_hit, bin_ = name.split("/")
            pair = found.setdefault((unquote(target), unquote(label)), ([0] * BINS, [0] * BINS))
            pair[int(is_hit)][int(bin_)] += int(count)
    return found


def _area(falls: list[int], hits: list[int]) -> float | None:
    """The share of pairs whose hit has the larger probability; equal ones count half. None without any pair."""
    below = twice = 0
    for fall, hit in zip(falls, hits, strict=True):
        twice += hit * (2 * below + fall)
        below += fall
    pairs = below * sum(hits)
    return twice / (2 * pairs) if pairs else None


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
