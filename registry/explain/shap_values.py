"""SHAP values: what each feature of a row contributes to a model's outputs, and explainers, which compute them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from registry.rows.features import Rows

Method = Literal["tree-path-dependent", "linear", "exact", "permutation", "native", "interventional"]

Space = Literal["probability", "margin", "value"]
"""Outputs that are explained: probabilities, margins (before the link: log-odds, logarithms), or regressors' values."""


class CannotExplain(Exception):
    """An explainer does not fit a model; the message says why. Never leaves this package."""


@dataclass(frozen=True, slots=True, eq=False)
class Contributions:
    """SHAP values: `base_values + values.sum(axis=1)` is `outputs`.

    A classifier has an output a class, in the order of its classes; any other model has one.
    """

    outputs: NDArray[np.float64]
    """Shape (rows, outputs)."""
    base_values: NDArray[np.float64]
    """Shape (outputs,): the mean output, over the training rows for trees, else over the background."""
    values: NDArray[np.float64]
    """Shape (rows, features, outputs)."""
    standard_error: NDArray[np.float64] | None = None
    """The standard errors of sampled values, in their shape; None for exact ones."""
    words: Sequence[Mapping[str, Mapping[str, NDArray[np.float64]]]] | None = None
    """One mapping a row: what each word that occurs in a text contributes to the outputs, by feature and word.

    An array has shape (outputs,). A text's words and the words that it lacks make its value together.
    """

    interactions: NDArray[np.float64] | None = None
    """Shape (rows, features, features, outputs): the effects of pairs, each half in either order; None if not asked.

    Their sums over one of the features are `values`; the diagonal is what a feature does by itself.
    """

    def with_interactions(self, pairs: NDArray[np.float64]) -> Contributions:
        """The same values with their interactions, from the effects of pairs with zeros on the diagonal."""
        own = np.arange(pairs.shape[1])
        found = pairs.copy()
        found[:, own, own] = self.values - pairs.sum(axis=2)
        return replace(self, interactions=found)

    def gap(self) -> float:
        """The largest difference between a sum and its output, relative to the largest number in the sum (or 1)."""
        sums = self.base_values + self.values.sum(axis=1)
        largest = np.maximum(np.abs(self.values).max(axis=1, initial=1.0), np.abs(self.outputs))
        return float((np.abs(sums - self.outputs) / largest).max(initial=0.0))


@dataclass(frozen=True, slots=True)
class Budget:
    """A decision: of `asked` evaluations a row gets `evaluations`; it is `jobs_only` if even these are too slow."""

    asked: int
    evaluations: int
    jobs_only: bool


@dataclass(frozen=True, slots=True, eq=False)
class Explainer:
    """Explains rows of one model; built once, before the fork."""

    method: Method
    space: Space
    explain: Callable[[Rows], Contributions]
    """Explains rows, shape (rows, features). A row gives the same bits alone as in a batch."""
    tolerance: float = 1e-9
    """The largest `gap` that rounding explains; more is an error."""
    in_process: bool = True
    """True if it holds the GIL no longer than a prediction does, so that a worker's thread may run it.

    Any other explainer runs in a process of its own, which can be killed.
    """
    jobs_only: bool = False
    """True if a row takes too long for a request."""
    evaluations: int = 0
    """The number of calls of the model per row, which sampled values depend on; 0 for a formula."""
    interact: Callable[[Rows], NDArray[np.float64]] | None = None
    """The effects of pairs of features, for `Contributions.with_interactions`; None where they are not known."""
    budget: Budget | None = None
    """The decision on the number of evaluations; None for an explainer that does not sample."""


def both_classes(second: Contributions, total: float) -> Contributions:
    """A binary classifier's contributions from those of its second class; the two outputs add up to `total`.

    `total` is 1 for probabilities, 0 for margins.
    """
    return Contributions(
        np.concatenate([total - second.outputs, second.outputs], axis=1),
        np.concatenate([total - second.base_values, second.base_values]),
        np.concatenate([-second.values, second.values], axis=2),
        None if second.standard_error is None else np.repeat(second.standard_error, 2, axis=2),
        None if second.words is None else [_both_signs(words) for words in second.words],
    )


def _both_signs(words: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> dict[str, dict[str, NDArray[np.float64]]]:
    return {
        feature: {word: np.concatenate([-value, value]) for word, value in of_feature.items()}
        for feature, of_feature in words.items()
    }


def mean_contributions(
    explainer: Explainer, background: Rows, groups: Sequence[Sequence[int]], max_seconds: float
) -> tuple[list[float], int]:
    """The mean of |SHAP| over background rows and outputs, by group, and the number of rows.

    The values of each of the `groups` of features (their indices) are summed first. A slow explainer explains only as
    many rows as it can begin within `max_seconds`, at least one.
    """
    sums, count, started = np.zeros(len(groups)), 0, time.monotonic()
    order, firsts = [index for group in groups for index in group], np.cumsum([0, *map(len, groups)])[:-1]
    for row in background:
        if count and time.monotonic() - started > max_seconds:
            break
        values = explainer.explain(row[None]).values[0]
        sums += np.abs(np.add.reduceat(values[order], firsts, axis=0)).mean(axis=1)
        count += 1
    return (sums / count).tolist(), count
