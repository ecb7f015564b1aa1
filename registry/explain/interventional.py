"""Exact SHAP values of outputs behind a link: probabilities of boosted trees and logistic regression, and the like.

An unknown feature takes its value from a background row. Against one background row, the values are those of the
margins, multiplied with the mean of the link's derivative on the way from the background row's margins to the row's. So
they add up to the difference in outputs. With one margin that mean is the ratio of the two differences, and the values'
mean over the background rows is what shap's `TreeExplainer(model_output="probability", data=...)` computes. A feature
is one player, however many columns are made from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from registry.estimator import Compute
from registry.explain.compiled import linear_explainer
from registry.explain.shap_values import CannotExplain, Contributions, Explainer, Space
from registry.kernels.compiling import Parts
from registry.kernels.interventional import INTERVENTIONAL, credited, part_weights
from registry.rows.features import Rows

TINY = 1e-6
"""Margins that differ by less have the link's derivative for a ratio, which is more exact then."""

LINK_TOLERANCE = 1e-5
"""The largest error of outputs computed from margins in float64: XGBoost computes in float32."""

POINTS = 64
"""Points of the quadrature along the way between the margins of two rows."""

Factors = NDArray[np.float64]
"""The link's mean derivatives for each row and background row, shape (rows, background, margins, outputs)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Margins:
    """Margins of a model: a function from rows to them, shape (rows, margins), and one to their values.

    The latter takes Factors, too, and sums over the background rows: shape (rows, features, outputs).
    """

    compute: Callable[[Rows], Rows]
    attribute: Callable[[Rows, Factors], Rows]


Link = Callable[[Rows], Rows]
"""A function from margins, shape (..., margins), to outputs, shape (..., outputs)."""

Derivatives = Callable[[Rows, Rows], Rows]
"""From a row's margins and the background's, to the mean derivatives, shape (background, margins, outputs)."""


def interventional_explainer(parts: Parts, background: Rows, outputs: Compute, space: Space) -> Explainer:
    """Explains `outputs`, shape (rows, classes or 1), of an estimator. Raises CannotExplain, Unsupported."""
    margins = _tree_margins(parts, background) if parts.trees is not None else _linear_margins(parts, background)
    expected = outputs(background)
    base_values = expected.mean(axis=0)
    ends = margins.compute(background)
    derivatives = _find_derivatives(ends, expected, space)

    def values_of(row: Rows) -> Rows:
        """Of one row, shape (1, features), because a row must not depend on the others."""
        return margins.attribute(row, derivatives(margins.compute(row)[0], ends)[None])

    def explain(rows: Rows) -> Contributions:
        found = outputs(rows)
        values = np.concatenate([values_of(row[None]) for row in rows]) / len(background)
        if values.shape[2] < found.shape[1]:  # the second of two classes alone
            values = np.concatenate([-values, values], axis=2)
        return Contributions(found, base_values, _without_gap(values, found - base_values))

    return Explainer("interventional", space, explain)


def _without_gap(values: Rows, total: Rows) -> Rows:
    """Values that add up to `total`, shape (rows, outputs): what float32 rounds away is spread by their size."""
    sizes = np.abs(values)
    sums = sizes.sum(axis=1, keepdims=True)
    gap = total[:, None] - values.sum(axis=1, keepdims=True)
    if (np.abs(gap) > LINK_TOLERANCE).any():
        return values  # the sum is wrong, which must be noticed
    closed: Rows = values + gap * np.divide(sizes, sums, out=np.zeros_like(sizes), where=sums > 0)
    return closed


def _find_derivatives(margins: Rows, outputs: Rows, space: Space) -> Derivatives:
    """The mean derivatives of the link that makes these outputs of these margins. Raises CannotExplain."""
    if margins.shape[1] > 1:
        slope = _slope(np.diff(margins[:, :2])[:, 0], outputs[:, 0], outputs[:, 1])
        link: Link = lambda given: _softmax(slope * given)  # noqa: E731
        derivatives: Derivatives = lambda row, ends: slope * _softmax_derivatives(slope * row, slope * ends)  # noqa: E731
    elif space == "value":
        link = np.exp
        derivatives = lambda row, ends: _ratios(np.exp, np.exp, row, ends)  # noqa: E731
    else:
        slope = _slope(margins[:, 0], outputs[:, 0], outputs[:, 1])
        link = lambda given: 0.5 + 0.5 * np.tanh(0.5 * slope * given)  # noqa: E731
        change: Link = lambda given: 0.25 * slope * (1.0 - np.tanh(0.5 * slope * given) ** 2)  # noqa: E731
        derivatives = lambda row, ends: _ratios(link, change, row, ends)  # noqa: E731
    made = link(margins)
    if not np.allclose(made, outputs[:, -made.shape[1] :], rtol=LINK_TOLERANCE, atol=LINK_TOLERANCE):
        raise CannotExplain("its outputs do not follow from its margins by a known link")
    return derivatives


def _ratios(link: Link, change: Link, row: Rows, ends: Rows) -> Rows:
    """Differences in outputs by differences in margins, of which there is one."""
    apart = row - ends
    near = np.abs(apart) < TINY
    ratios = np.where(near, change((row + ends) / 2), (link(row) - link(ends)) / np.where(near, 1.0, apart))
    return ratios[:, :, None]


def _softmax(margins: Rows) -> Rows:
    powers = np.exp(margins - margins.max(axis=-1, keepdims=True))
    shares: Rows = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _softmax_derivatives(row: Rows, ends: Rows) -> Rows:
    points, weights = np.polynomial.legendre.leggauss(POINTS)
    way = (points[:, None] + 1) / 2
    shares = _softmax(ends[:, None] + way * (row - ends)[:, None])
    weighted = shares * (weights / 2)[:, None]
    derivatives: Rows = -np.matmul(weighted.swapaxes(1, 2), shares)
    every = np.arange(len(row))
    derivatives[:, every, every] += weighted.sum(axis=1)
    return derivatives


def _slope(margins: Rows, first: Rows, second: Rows) -> float:
    """The factor between margins and log-odds, which depends on the booster and its loss. Raises CannotExplain.

    It shows best where margins are large and both classes' probabilities are not small.
    """
    usable = (first > LINK_TOLERANCE) & (second > LINK_TOLERANCE) & (np.abs(margins) > TINY)
    if not usable.any():
        raise CannotExplain("its link cannot be told from the probabilities of the background")
    best = int(np.where(usable, np.abs(margins) * first * second, 0.0).argmax())
    slope = float(np.log(second[best] / first[best]) / margins[best])
    rounded = round(slope, 6)
    return rounded if abs(slope - rounded) < LINK_TOLERANCE else slope


def _tree_margins(parts: Parts, background: Rows) -> _Margins:
    """Margins of trees, in float64. Raises CannotExplain, Unsupported."""
    assert parts.trees is not None
    if parts.trees.are_probabilities:
        raise CannotExplain("its trees have no margins")
    if parts.head.has_entries:
        raise CannotExplain("its columns are words, of which there are too many")
    ensemble = replace(parts.trees.explained or parts.trees.ensemble, single=False)
    forest, features, margins = ensemble.forest, parts.features, len(ensemble.start)
    sources = np.array(parts.head.sources(), np.int32)
    nodes = credited(forest, sources)
    values = np.ascontiguousarray(forest.values, np.float64)
    weights = part_weights(forest, features)
    kernel = INTERVENTIONAL.load()
    matrix = parts.behind_matrix(lambda made: made)
    known = matrix(background)

    def attribute(row: Rows, factors: Factors) -> Rows:
        out = np.zeros((len(row), features, factors.shape[3]))
        kernel(matrix(row), known, np.ascontiguousarray(factors), nodes, forest.roots, values, weights, out)
        return out / ensemble.divisor

    assert margins % values.shape[1] == 0
    return _Margins(parts.behind_matrix(ensemble.compute(None)), attribute)


def _linear_margins(parts: Parts, background: Rows) -> _Margins:
    """Margins of a linear model, which are sums over its features. Raises Unsupported."""
    explain = linear_explainer(parts, background).explain
    ends = explain(background)
    first = -1 if ends.outputs.shape[1] == 2 else 0  # of two classes the second's

    def attribute(row: Rows, factors: Factors) -> Rows:
        apart = explain(row).values[:, None, :, first:] - ends.values[:, :, first:]
        values: Rows = np.einsum("rbfm,rbmo->rfo", apart, factors, optimize=True)
        return values

    return _Margins(lambda rows: explain(rows).outputs[:, first:], attribute)
