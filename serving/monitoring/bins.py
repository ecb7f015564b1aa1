"""The columns of a model in which drift is counted, and how far live rows are from the sample.

The measure is the population stability index: the sum over all bins of (live - expected) * ln(live / expected), their
shares. By custom 0.1 is a small change and more than 0.2 a large one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registry.kernels.counting import ABOVE, BELOW, CELLS, LINE, MEASURE
from registry.model import LoadedModel
from registry.rows.features import Feature
from registry.store.distributions import BINS, Distribution

SHARES = BINS + 2
"""Shares that are compared: of bins or listed values, then of others and of missing ones."""

MIN_SHARE = 0.0005
"""Stands for the share of a bin without rows: half of the smallest share that a manifest has."""

CHANCE = math.log(1e6)
"""What chance exceeds once in a million times is taken for chance."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Column:
    """A feature, or the output for a target, and what is usual in it."""

    name: str
    place: int
    """Among the features, or among the targets."""
    usual: Distribution
    feature: Feature | None
    """None for an output."""
    is_coded: bool
    """Whether its cells are codes of categories, booleans or labels, rather than numbers."""

    @property
    def is_binned(self) -> bool:
        """Whether its values are counted in bins, rather than one by one."""
        return bool(self.usual.shares) and not self.usual.values

    @property
    def moves_on(self) -> bool:
        """Whether it is never as it was: live dates are later than those of any sample."""
        return self.feature is not None and self.feature.kind == "datetime"

    @property
    def title(self) -> str:
        """How an alert calls it."""
        if self.feature is not None:
            return self.name
        return f"output {self.name}".strip()

    def expected(self) -> list[float]:
        """The shares in the sample: of bins or listed values, then of others and of missing ones; NaN for no bin."""
        shares, missing = list(self.usual.shares), self.usual.missing
        other = math.nan if self.is_binned else max(0, 1000 - missing - sum(shares))
        return [*shares, *[math.nan] * (SHARES - 2 - len(shares)), other, missing]

    def line(self) -> list[float]:
        """Its line in the table of the kernel that counts."""
        usual, size, scale = self.usual, len(self.usual.shares), 0.0
        values = list(usual.values)
        if self.is_binned:
            # as numpy's histogram has them, with which the sample was counted
            values = np.linspace(usual.low, usual.high, size + 1).tolist()
            scale = 1.0 / (usual.high / size - usual.low / size)
        low, high = self._range(values)
        filled = [*values, *[math.nan] * (BINS + 1 - len(values))]
        return [self.place, self.feature is None, size, scale, self._unseen_from(), low, high, *filled]

    def _range(self, values: list[float]) -> tuple[float, float]:
        """The range of the sample where it is recorded, else that of the bins or of the listed values."""
        if self.is_coded or not values:
            return -math.inf, math.inf
        recorded = None if self.feature is None else self.feature.seen
        return (min(values), max(values)) if recorded is None else recorded

    def _unseen_from(self) -> float:
        """Numbers are listed if there are few, so any other is unseen; of categories only the commonest are."""
        if not self.is_coded:
            return -math.inf if self.usual.values else math.inf
        is_open = self.feature is not None and self.feature.open
        return float(len(self.feature.categories)) if self.feature is not None and is_open else math.inf


def columns_of(model: LoadedModel) -> tuple[Column, ...]:
    """The columns of a model that its manifest describes: features, then outputs."""
    found = model.manifest.distributions
    return () if found is None else (*_features(model, found.features), *_outputs(model, found.outputs))


def _features(model: LoadedModel, usual: dict[str, Distribution]) -> Iterator[Column]:
    for place, feature in enumerate(model.manifest.features):
        if feature.name in usual:
            is_coded = feature.kind in ("category", "boolean")
            yield Column(feature.name, place, usual[feature.name], feature, is_coded)


def _outputs(model: LoadedModel, usual: dict[str, Distribution]) -> Iterator[Column]:
    is_coded = "value" not in model.layout.parts
    for place, target in enumerate(model.layout.targets):
        if target.name in usual:
            yield Column(target.name, place, usual[target.name], None, is_coded)


class Bins:
    """The columns of a model, and what is expected in them; `sample_rows` have been counted."""

    def __init__(self, columns: tuple[Column, ...], sample_rows: int) -> None:
        self.columns = columns
        self.table: Numbers = np.array([column.line() for column in columns], np.float64).reshape(-1, LINE)
        self.size = CELLS * len(columns)
        """Counts of all columns."""
        expected = np.array([column.expected() for column in columns], np.float64).reshape(-1, SHARES)
        expected /= np.nansum(expected, axis=1, keepdims=True)
        self._compared = np.maximum(expected, MIN_SHARE)
        self._measure = MEASURE.load()
        freedom = (expected > 0).sum(axis=1) - 1.0
        self._bound = freedom + 2 * np.sqrt(freedom * CHANCE) + 2 * CHANCE
        self._sample_rows = sample_rows
        self.moves_on: NDArray[np.bool_] = np.array([column.moves_on for column in columns])

    def most_rows(self, counts: Numbers) -> float:
        """How many rows were counted: in the column of a feature all that were answered."""
        return float(counts[:CELLS].sum() - counts[BELOW] - counts[ABOVE])

    def measure(self, counts: Numbers) -> tuple[Numbers, Numbers]:
        """How many rows were counted in each column, and its population stability index; 0 without rows."""
        found = np.empty((len(self.columns), 2))
        self._measure(counts[None], self._compared, MIN_SHARE, found)
        return found[:, 0], found[:, 1]

    def chance(self, rows: Numbers) -> Numbers:
        """The index that so many rows exceed once in a million times where nothing has changed.

        The index of n rows is that of a sample of m rows about (1/n + 1/m) times a chi-squared variable of as many
        degrees of freedom as there are bins but one (Yurdakul, "Statistical properties of population stability index",
        2018); the bound of its tail is that of Laurent and Massart, "Adaptive estimation of a quadratic functional by
        model selection", 2000, lemma 1.
        """
        return np.asarray(self._bound * (1 / np.maximum(rows, 1.0) + 1 / self._sample_rows))
