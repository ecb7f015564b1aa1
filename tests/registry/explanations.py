"""Explainers beside what they are held against: shap's own, and the definition itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from registry.explain.compiled import tree_explainer
from registry.explain.library import import_shap
from registry.explain.shap_values import Contributions, Explainer
from registry.kernels.compiling import take_apart
from registry.rows.features import Rows
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema

CLOSE = 1e-9

shap: Any = import_shap()
"""Imported as the service does: on Python 3.11 its import warns."""


def explain_trees(estimator: Any, table: pd.DataFrame, y: Any, *, frame: bool = False) -> Explainer:
    """Fit on the table; the explainer that the kernel stands behind."""
    estimator.fit(table if frame else table.to_numpy(), y)
    return tree_explainer(take_apart(estimator, Schema(infer_features(table, None), "frame" if frame else "array")))


def assert_additive(found: Contributions) -> None:
    sums = found.base_values + found.values.sum(axis=1)
    np.testing.assert_allclose(sums, found.outputs, rtol=0, atol=CLOSE * max(1.0, np.abs(found.values).max(initial=0)))
    assert found.gap() <= CLOSE


def assert_same_alone(explainer: Explainer, rows: Rows) -> None:
    """Each row alone gives the bits that it gives among the others."""
    together = explainer.explain(rows)
    alone = [explainer.explain(row[None]) for row in rows]
    for name in ("outputs", "values"):
        assert np.concatenate([getattr(one, name) for one in alone]).tobytes() == getattr(together, name).tobytes()


def path_values(tree: Any, row: Any) -> Rows:
    """SHAP values of a tree with scikit-learn's names by their formula over leaves, to a hundred digits, by feature."""
    values = [Decimal(0)] * len(row)
    paths: list[tuple[int, dict[int, tuple[int, Decimal]]]] = [(0, {})]
    while paths:
        node, path = paths.pop()
        if tree.children_left[node] < 0:
            for feature, value in _leaf_values(path).items():
                values[feature] += value * Decimal(float(tree.value[node, 0, 0]))
            continue
        feature = int(tree.feature[node])
        one, zero = path.get(feature, (1, Decimal(1)))
        goes_left = float(np.float32(row[feature])) <= tree.threshold[node]
        for child, goes in ((tree.children_left[node], goes_left), (tree.children_right[node], not goes_left)):
            share = Decimal(float(tree.weighted_n_node_samples[child])) / Decimal(
                float(tree.weighted_n_node_samples[node])
            )
            paths.append((child, {**path, feature: (one * goes, zero * share)}))
    return np.array([float(value) for value in values])


def _leaf_values(path: dict[int, tuple[int, Decimal]]) -> dict[int, Decimal]:
    """(one - zero) times the integral of the product of the other features' t one + (1 - t) zero."""
    product = [Decimal(1)]  # coefficients of powers of t, the constant first
    for one, zero in path.values():
        same, lower = [*product, Decimal(0)], [Decimal(0), *product]
        product = [zero * a + (one - zero) * b for a, b in zip(same, lower, strict=True)]
    found = {}
    for feature, (one, zero) in path.items():
        others: list[Decimal] = []
        rest = product[:]  # the product divided by the feature's own factor, from the lowest power up
        for power in range(len(path)):
            others.append(rest[power] / zero)
            rest[power + 1] -= (one - zero) * others[-1]
        found[feature] = (one - zero) * sum(number / (power + 1) for power, number in enumerate(others))
    return found


def shapley_values(game: Callable[[Sequence[int]], float], players: int) -> list[float]:
    """By the definition: a sum over all coalitions."""
    everyone = range(players)
    worth = {known: game(known) for size in range(players + 1) for known in combinations(everyone, size)}
    values = [0.0] * players
    for player in everyone:
        for known, without in worth.items():
            if player not in known:
                weight = math.factorial(len(known)) * math.factorial(players - len(known) - 1)
                values[player] += weight * (worth[tuple(sorted((*known, player)))] - without)
    return [value / math.factorial(players) for value in values]
