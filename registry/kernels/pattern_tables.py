"""Tables of the SHAP values of small trees, by the sides that a row takes.

What a tree contributes depends on a row only through the side that it takes at each split. A tree of s splits has 2^s
such patterns: for a few splits, as boosting often has, all of them are explained once, before the fork, by the kernel
of larger trees (`tree_shap.py`), and rows are answered by looking up. (Nadel, Wettenstein: "WOODELF", AAAI 2026, looks
up patterns leaf by leaf.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.kernels.paths import Paths
from registry.kernels.tree_shap import SIDES, SMALL, Scratch

MAX_SPLITS = 7
"""The splits of a whole tree of depth 3."""

MAX_BYTES = 16 << 20
"""Memory for the tables of a model, shared by all processes; further trees have none."""


@dataclass(frozen=True, slots=True)
class PatternTables:
    """What the kernel takes, and `chosen`: which of the trees have a table."""

    trees: NDArray[Any]
    splits: NDArray[Any]
    values: NDArray[np.float64]
    entries: NDArray[np.int32]
    chosen: NDArray[np.bool_]


def pattern_tables(paths: Paths, points: NDArray[np.float64], explain: Callable[..., None]) -> PatternTables:
    """Explain all patterns of the small trees, as many as fit into MAX_BYTES, by the kernel TREE_SHAP."""
    width, scratch = paths.leaves.shape[1], Scratch(paths)
    splits = paths.trees["splits"]
    largest = 8 * width * np.cumsum(np.where(splits <= MAX_SPLITS, splits << np.minimum(splits, MAX_SPLITS), 0))
    chosen = (splits > 0) & (splits <= MAX_SPLITS) & (largest <= MAX_BYTES)
    small = np.zeros(int(chosen.sum()), SMALL)
    sides, values, entries = [np.zeros(0, SIDES)], [np.zeros(0)], [np.zeros(0, np.int32)]
    for tree, record in zip(paths.trees[chosen], small, strict=True):
        count = int(tree["splits"])
        own = paths.splits[tree["split"] : tree["split"] + count].copy()
        sides.append(own[list(SIDES.names or ())].astype(SIDES))
        features, slots = np.unique(own["place"], return_inverse=True)
        own["column"], own["threshold"], own["missing_right"], own["place"] = np.arange(count), 0.5, 0, slots * width
        alone = tree[None].copy()
        alone["split"] = alone["leaf"] = alone["output"] = 0
        leaves = paths.leaves[tree["leaf"] : tree["leaf"] + tree["leaves"]]
        patterns = (np.arange(1 << count)[:, None] >> np.arange(count) & 1).astype(np.float64)
        made = np.empty((len(patterns), len(features), width))
        explain(patterns, (own, leaves, alone, points), scratch.arrays(made[0].size), made)
        record["splits"], record["entries"] = count, made[0].size
        values.append(made.ravel())
        entries.append((features[:, None] + tree["output"] + np.arange(width)).ravel().astype(np.int32))
    sizes = np.array([len(table) for table in values[1:]], np.int64)
    small["split"] = np.cumsum(small["splits"]) - small["splits"]
    small["value"], small["entry"] = np.cumsum(sizes) - sizes, np.cumsum(small["entries"]) - small["entries"]
    return PatternTables(small, np.concatenate(sides), np.concatenate(values), np.concatenate(entries), chosen)
