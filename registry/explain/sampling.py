"""shap's Exact and Permutation explainers over the background: for any model, by asking it again and again.

A feature that is not known takes its values from the background rows. Up to the budget all coalitions of features are
asked for; beyond it, as many random orders of the features as the budget allows, each there and back (with that, sums
are exact, and so are values where no three features interact). The random numbers are seeded by the row, so the same
row gets the same answer. KernelExplainer is not offered: it takes hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from registry.estimator import Compute, quickest
from registry.explain.library import import_shap
from registry.explain.shap_values import Contributions, Method, Space
from registry.rows.features import Rows

MAX_REQUEST_SECONDS = 1.0
"""A model whose row takes longer to explain is explained in jobs only."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplingExplainer:
    """Explains a function of rows. Holds the GIL and numpy's global random state: one call at a time."""

    method: Method
    space: Space
    function: Compute
    library: Any
    evaluations: int
    base_values: Rows
    jobs_only: bool
    tolerance: float = field(default=1e-6, init=False)  # a row may be answered in float32, and otherwise in a batch
    in_process: bool = field(default=False, init=False)

    def explain(self, rows: Rows) -> Contributions:
        """What each feature contributes to each output, one row after the other."""
        rows = np.array(rows, np.float64, order="C")  # what shap compiles is compiled anew for any other layout
        outputs = np.vstack([self.function(row[None]) for row in rows])
        values = np.stack([self._values(row) for row in rows])
        return Contributions(outputs, self.base_values, values)

    def _values(self, row: Rows) -> Rows:
        with _seeded(row):
            explained = self.library(row[None], max_evals=self.evaluations, silent=True)
        values: Rows = np.asarray(explained.values)[0]
        return values.reshape(len(row), -1)


def sampling_explainer(function: Compute, background: Rows, space: Space, evaluations: int) -> SamplingExplainer:
    """The explainer of any function of rows; compiles what shap compiles. Raises CannotExplain.

    A row costs as many calls of the function for the whole background as it has evaluations: that decides whether it
    is too slow for a request.
    """
    shap = import_shap()
    features = background.shape[1]
    exact = 2**features <= evaluations
    evaluations = 2**features if exact else max(evaluations, 2 * features + 1)
    kind = shap.explainers.Exact if exact else shap.explainers.Permutation
    _warm(shap, kind)
    outputs = function(background)
    seconds = quickest(lambda: function(background)) * evaluations
    return SamplingExplainer(
        method="exact" if exact else "permutation",
        space=space,
        function=function,
        library=kind(function, shap.maskers.Independent(background, max_samples=len(background))),
        evaluations=evaluations,
        base_values=outputs.mean(axis=0),
        jobs_only=seconds > MAX_REQUEST_SECONDS,
    )


def _warm(shap: Any, kind: Any) -> None:
    """Explain something small: some releases of shap compile for seconds at their first call."""
    first, second = np.zeros((2, 2)), np.ones((1, 2))
    with _seeded(first):
        kind(lambda rows: rows.copy(), shap.maskers.Independent(first))(second, max_evals=5, silent=True)


@contextmanager
def _seeded(row: Rows) -> Iterator[None]:
    """The random numbers that shap uses, which are numpy's global ones, seeded by a row; then as they were."""
    state = np.random.get_state()
    np.random.seed(int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:4]))
    try:
        yield
    finally:
        np.random.set_state(state)
