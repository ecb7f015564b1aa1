"""shap's own explainers, for models that no kernel explains.

For tree ensembles shap's TreeExplainer is exact and path-dependent as ours is. For any other model its Exact and
Permutation explainers call the model again and again: an unknown feature takes its values from the background rows. As
long as the evaluations suffice, all coalitions of features are tried; beyond that, random orders of the features, each
forwards and backwards (so sums are exact, and so are values where no three features interact). The random numbers are
seeded by the row, so equal rows get equal answers. KernelExplainer is not offered: it takes hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from registry.estimator import Compute, quickest
from registry.explain.shap_values import CannotExplain, Contributions, Explainer, Space, both_classes
from registry.rows.features import Rows

MAX_REQUEST_SECONDS = 1.0
"""A model whose row takes longer to explain is explained in jobs only."""


def import_shap() -> Any:
    """The library. Importing it takes 100 MB and a second, once, before the fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        import shap
        import tqdm
    # a call of more than ten seconds shows a progress bar, whose thread must not exist at the fork
    tqdm.tqdm.monitor_interval = 0
    return shap


def ensemble_explainer(estimator: Any, function: Compute, space: Space) -> Explainer:
    """The explainer of a tree ensemble that takes the rows as they are; holds the GIL. Raises CannotExplain."""
    shap = import_shap()
    try:
        library = shap.TreeExplainer(estimator)
    except Exception as error:
        raise CannotExplain(f"shap does not support it: {type(error).__name__}: {error}") from error
    base_values = np.ravel(np.asarray(library.expected_value, np.float64))

    def explain(rows: Rows) -> Contributions:
        # row by row: shap sums trees in another order for several rows
        values = np.stack([np.asarray(library.shap_values(row[None], check_additivity=False))[0] for row in rows])
        values = values.reshape(*rows.shape, -1)
        outputs = function(rows)
        if outputs.shape[1] == 2 and values.shape[2] == 1:  # margins of a binary classifier
            return both_classes(Contributions(outputs[:, 1:], base_values, values), 0.0)
        return Contributions(outputs, base_values, values)

    return Explainer("tree-path-dependent", space, explain, tolerance=1e-6, in_process=False)


def sampling_explainer(function: Compute, background: Rows, space: Space, evaluations: int) -> Explainer:
    """The explainer of any function of rows; compiles what shap compiles.

    It holds the GIL and numpy's global random state: one call at a time. A row costs as many calls of the function for
    the whole background as it has evaluations; that decides whether the explainer is too slow for a request.
    """
    shap = import_shap()
    features = background.shape[1]
    exact = 2**features <= evaluations
    evaluations = 2**features if exact else max(evaluations, 2 * features + 1)
    kind = shap.explainers.Exact if exact else shap.explainers.Permutation
    _warm(shap, kind)
    library = kind(function, shap.maskers.Independent(background, max_samples=len(background)))
    base_values = function(background).mean(axis=0)

    def values_of(row: Rows) -> Rows:
        with _seeded(row):
            explained = library(row[None], max_evals=evaluations, silent=True)
        values: Rows = np.asarray(explained.values)[0]
        return values.reshape(len(row), -1)

    def explain(rows: Rows) -> Contributions:
        rows = np.array(rows, np.float64, order="C")  # shap compiles anew for any other layout
        outputs = np.vstack([function(row[None]) for row in rows])
        return Contributions(outputs, base_values, np.stack([values_of(row) for row in rows]))

    return Explainer(
        "exact" if exact else "permutation",
        space,
        explain,
        tolerance=1e-6,  # a model may answer a row in float32, and otherwise in a batch
        in_process=False,
        jobs_only=quickest(lambda: function(background)) * evaluations > MAX_REQUEST_SECONDS,
        evaluations=evaluations,
    )


def _warm(shap: Any, kind: Any) -> None:
    """Explain something small: some releases of shap compile for seconds at their first call."""
    first, second = np.zeros((2, 2)), np.ones((1, 2))
    with _seeded(first):
        kind(lambda rows: rows.copy(), shap.maskers.Independent(first))(second, max_evals=5, silent=True)


@contextmanager
def _seeded(row: Rows) -> Iterator[None]:
    """Numpy's global random numbers, which shap uses, are seeded by a row and restored afterwards."""
    state = np.random.get_state()
    np.random.seed(int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:4]))
    try:
        yield
    finally:
        np.random.set_state(state)
