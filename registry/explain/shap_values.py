"""What the features of rows contribute to a model's outputs, and who finds that out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from registry.rows.features import Rows

Method = Literal["tree-path-dependent", "linear", "exact", "permutation", "native"]

Space = Literal["probability", "margin", "value"]
"""What is explained: probabilities, margins (before the link: log-odds, logarithms), or a regressor's own values."""


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

    def gap(self) -> float:
        """How far sums are from outputs, at most, as a part of the largest number in such a sum (or of 1)."""
        sums = self.base_values + self.values.sum(axis=1)
        largest = np.maximum(np.abs(self.values).max(axis=1, initial=1.0), np.abs(self.outputs))
        return float((np.abs(sums - self.outputs) / largest).max(initial=0.0))


class Explainer(Protocol):
    """Explains rows of one model; built once, before the fork."""

    @property
    def method(self) -> Method: ...
    @property
    def space(self) -> Space: ...
    @property
    def tolerance(self) -> float:
        """The largest `gap` that rounding explains; more is a fault."""
        ...

    @property
    def in_process(self) -> bool:
        """Whether it holds the GIL for no longer than a prediction does, so that a worker's thread may run it.

        What does not should run in a process of its own, which can be killed.
        """
        ...

    @property
    def jobs_only(self) -> bool:
        """Whether a row takes too long for a request."""
        ...

    @property
    def evaluations(self) -> int:
        """How often the model is asked for a row: sampled values depend on it. 0 for a formula."""
        ...

    def explain(self, rows: Rows) -> Contributions:
        """What each feature contributes. A row gives the same bits alone as among others."""
        ...


def both_classes(second: Contributions, total: float) -> Contributions:
    """A binary classifier's contributions from those of its second class; the two outputs add up to `total`.

    1 for probabilities, 0 for margins.
    """
    return Contributions(
        np.hstack([total - second.outputs, second.outputs]),
        np.hstack([total - second.base_values, second.base_values]),
        np.concatenate([-second.values, second.values], axis=2),
    )
