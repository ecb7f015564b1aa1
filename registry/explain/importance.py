"""How much each feature matters over all: the mean of |SHAP|."""

from __future__ import annotations

import time

import numpy as np

from registry.explain.shap_values import Explainer
from registry.rows.features import Rows


def mean_contributions(explainer: Explainer, background: Rows, seconds: float) -> tuple[list[float], int]:
    """The mean of |SHAP| over background rows and outputs, by feature, and the number of rows.

    A slow explainer explains only as many rows as it can begin in so many seconds, at least one.
    """
    sums, count, started = np.zeros(background.shape[1]), 0, time.monotonic()
    for row in background:
        if count and time.monotonic() - started > seconds:
            break
        sums += np.abs(explainer.explain(row[None]).values[0]).mean(axis=1)
        count += 1
    return (sums / count).tolist(), count
