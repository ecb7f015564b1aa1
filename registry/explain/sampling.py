"""SHAP values of any function of rows: an unknown feature takes its values from the background rows.

As long as the evaluations suffice, all coalitions of features are tried. Beyond that, each background row is turned
into the explained row feature by feature, in random orders, forwards and backwards (so sums are exact, and so are
values where no three features interact). Each background row has orders of its own: for as many calls that errs less
than orders that all of them share. The random numbers are seeded by the row, so equal rows get equal answers. Only what
changes is computed: a feature in which both rows agree contributes nothing.

The model is asked for some rows at a time, because an executor's memory is limited: 400 features make 80,000 rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from registry.estimator import Compute
from registry.explain.shap_values import Contributions, Explainer, Space
from registry.rows.features import Rows

MAX_CALL_ROWS = 1024
MAX_CALL_BYTES = 8 * 2**20
"""Rows, and their bytes, that a model is asked for at once: its own copies may be many times as large."""

Mask = NDArray[np.bool_]


def sampling_explainer(function: Compute, background: Rows, space: Space, evaluations: int) -> Explainer:
    """The explainer of any function of rows, for about `evaluations` calls with all background rows; holds the GIL."""
    features = background.shape[1]
    exact = 1 << features <= evaluations
    references = function(background)
    base_values = references.mean(axis=0)

    def explain(rows: Rows) -> Contributions:
        games = [_Game(function, row, background, function(row[None])[0], references) for row in rows]
        values = np.zeros((len(rows), features, references.shape[1]))
        errors = None if exact else np.zeros_like(values)
        for index, game in enumerate(games):
            if errors is None:
                values[index] = game.exact_values()
            else:
                values[index], errors[index] = game.sampled_values(evaluations)
        return Contributions(np.array([game.output for game in games]), base_values, values, errors)

    return Explainer(
        "exact" if exact else "permutation",
        space,
        explain,
        tolerance=1e-6,  # a model may answer a row in float32, and otherwise in a batch
        in_process=False,
        evaluations=evaluations,
    )


def rows_per_explanation(background: Rows, evaluations: int) -> int:
    """The most rows that a model is asked for to explain one row."""
    rows: int = len(background)
    features: int = background.shape[1]
    if 1 << features <= evaluations:
        return rows << features
    return rows * 2 * (features - 1) * _pairs(evaluations, features)


def _pairs(evaluations: int, features: int) -> int:
    """The number of orders, each taken forwards and backwards."""
    return max(1, evaluations // (2 * features + 1))


@dataclass(frozen=True, eq=False)
class _Game:
    """One row, shape (features,), against each background row: features are known, or have the background row's value.

    `output` has shape (outputs,), `references`, the background rows' outputs, (background, outputs).
    """

    function: Compute
    row: Rows
    background: Rows
    output: Rows
    references: Rows

    @cached_property
    def differs(self) -> Mask:
        """The features in which each background row differs, shape (background, features)."""
        both_missing = pd.isna(self.background) & pd.isna(self.row)
        differs: Mask = (self.background != self.row).astype(bool) & ~both_missing
        return differs

    def exact_values(self) -> Rows:
        """Shapley values over all coalitions, shape (features, outputs)."""
        count, features = self.background.shape
        coalitions = np.arange(2**features)
        powers = 1 << np.arange(features)
        changed = self.differs @ powers
        # by coalition and background row: the known features that matter
        known = coalitions[:, None] & changed
        asked = np.argwhere((known == coalitions[:, None]) & (known != 0) & (known != changed))
        outputs = np.empty((len(coalitions), count, len(self.output)))
        outputs[0] = self.references
        outputs[changed, np.arange(count)] = np.where((changed == 0)[:, None], self.references, self.output)
        masks = lambda part: (asked[part, :1] & powers) != 0  # noqa: E731
        outputs[asked[:, 0], asked[:, 1]] = self._ask(asked[:, 1], masks)
        worths = outputs[known, np.arange(count)].mean(axis=1)
        sizes = np.bitwise_count(coalitions)
        weights = np.array([1.0 / (features * math.comb(features - 1, size)) for size in range(features)])
        values = np.empty((features, len(self.output)))
        for feature, power in enumerate(powers):
            without = coalitions[coalitions & power == 0]
            values[feature] = weights[sizes[without]] @ (worths[without | power] - worths[without])
        return values

    def sampled_values(self, evaluations: int) -> tuple[Rows, Rows]:
        """Means over random orders, and their standard errors, both of shape (features, outputs)."""
        count, features = self.background.shape
        values, variances = np.zeros((2, features, len(self.output)))
        pairs = _pairs(evaluations, int(self.differs.any(axis=0).sum()))
        random = np.random.default_rng(_seed(self.row))
        bytes_per_row = 4 * 8 * pairs * 2 * (features + 1) * len(self.output)
        for part in _parts(count, max(1, MAX_CALL_BYTES // bytes_per_row)):
            walks = self._walk(part, pairs, random)
            means = walks.mean(axis=2)
            values += means.mean(axis=1).sum(axis=0)
            if pairs > 1:
                variances += (means.var(axis=1, ddof=1) / pairs).sum(axis=0)
            else:
                # half the difference between forwards and backwards: no less than their mean errs, because where one
                # is too large the other one tends to be too small
                variances += ((walks[:, 0, 0] - walks[:, 0, 1]) ** 2).sum(axis=0) / 4
        return values / count, np.sqrt(variances) / count

    def _walk(self, part: slice, pairs: int, random: np.random.Generator) -> Rows:
        """What each feature changes on the way from background rows to the row, by background row, order, direction.

        Shape (background, pairs, 2, features, outputs).
        """
        differs, features = self.differs[part], self.background.shape[1]
        shape = (len(differs), pairs, 2, features)
        keys = np.where(differs[:, None], random.random((len(differs), pairs, features)), 2.0)
        ranks = keys.argsort(axis=2).argsort(axis=2)
        steps = differs.sum(axis=1)
        positions = np.stack([ranks, steps[:, None, None] - 1 - ranks], axis=2).reshape(-1, features)
        steps = np.repeat(steps, 2 * pairs)
        owners = np.repeat(np.arange(part.start, part.stop), 2 * pairs)
        inner = np.maximum(steps - 1, 0)
        walks = np.repeat(np.arange(len(steps)), inner)
        places = np.arange(len(walks)) - np.repeat(inner.cumsum() - inner, inner) + 1
        outputs = np.zeros((len(steps), steps.max() + 2, len(self.output)))
        outputs[np.arange(len(steps)), steps] = self.output
        outputs[:, 0] = self.references[owners]
        known = lambda some: positions[walks[some]] < places[some, None]  # noqa: E731
        outputs[walks, places] = self._ask(owners[walks], known)
        differs = np.repeat(differs, 2 * pairs, axis=0)
        at = np.where(differs, positions, 0)[:, :, None]
        gained = np.take_along_axis(np.diff(outputs, axis=1), at, axis=1)
        return np.where(differs[:, :, None], gained, 0.0).reshape(*shape, -1)

    def _ask(self, owners: NDArray[np.intp], known: Callable[[slice], Mask]) -> Rows:
        """Outputs for mixed rows: known features are the row's, others those of background rows `owners`."""
        made = np.empty((len(owners), len(self.output)))
        for part in _parts(len(owners), call_rows(len(self.row))):
            made[part] = self.function(np.where(known(part), self.row, self.background[owners[part]]))
        return made


def call_rows(features: int) -> int:
    """The number of rows that a model is asked for at once."""
    return max(1, min(MAX_CALL_ROWS, MAX_CALL_BYTES // (8 * features)))


def _parts(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def _seed(row: Any) -> int:
    """A number that depends on a row's values alone."""
    content = row.tobytes() if row.dtype != object else repr(row.tolist()).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:16])
