"""Compiled forms of LightGBM's trees, from the text that the booster writes.

LightGBM computes in float64 and writes its numbers with 17 digits, so none is lost. It treats values up to its "zero"
as zero, and a missing value as zero at a split that has seen no missing value.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.kernels import links
from registry.kernels.columns import Plan, Splits, bits_of
from registry.kernels.ensembles import Ensemble, Trees, decision_of
from registry.kernels.forest import Tree, flatten
from registry.kernels.kernel import Unsupported
from registry.kernels.links import Link
from registry.kernels.preprocessing import CategoryCodes
from registry.rows.schema import Schema

ZERO = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold: values no further from zero are zero."""

CATEGORICAL, DEFAULT_LEFT = 1, 2
MISSING_SHIFT, NO_MISSING, MISSING_IS_ZERO = 2, 0, 1
"""Bits of a node's `decision_type`."""

IDENTITY = {"fair", "huber", "lambdarank", "mape", "none", "quantile", "rank_xendcg", "regression", "regression_l1"}
"""Objectives that answer the margin; "none" stands for one of the user's own."""

EXPONENTIAL = {"gamma", "poisson", "tweedie"}

Text = dict[str, str]


def category_codes(estimator: Any, schema: Schema) -> list[CategoryCodes]:
    """The booster's encoding of a DataFrame's categories; [] if it was fitted on none. Raises Unsupported."""
    lists = estimator.booster_.pandas_categorical
    if not lists:
        return []
    places = [index for index, feature in enumerate(schema.features) if feature.dtype == "category"]
    if len(places) != len(lists):
        raise Unsupported("its categories belong to other columns")
    by_place = dict(zip(places, lists, strict=True))
    return [CategoryCodes(tuple(by_place.get(index) for index in range(len(schema))), refuses_unknown=False)]


def booster_ensemble(estimator: Any, plan: Plan) -> Trees:
    """LightGBM's trees; splits by category add columns to `plan`. Raises Unsupported."""
    header, members = _read(estimator.booster_.model_to_string())
    outputs = int(header["num_tree_per_iteration"])
    splits = Splits(plan)
    forest = flatten([_tree(member, splits) for member in members])
    divisor = len(members) / outputs if "average_output" in header else 1.0
    link = _link(estimator, header.get("objective", "none"), outputs)
    start = np.zeros(outputs)
    decision = decision_of(start) if hasattr(estimator, "decision_function") else None  # since 4.7
    return Trees(Ensemble(forest, start, divisor), link, decision)


def _read(text: str) -> tuple[Text, list[Text]]:
    """The model's header and its trees, by keyword."""
    header, *trees = text.partition("\nend of trees")[0].split("\nTree=")
    return _keywords(header), [_keywords(tree) for tree in trees]


def _keywords(block: str) -> Text:
    parts = (line.partition("=") for line in block.splitlines())
    return {keyword: value for keyword, _, value in parts}


def _tree(tree: Text, splits: Splits) -> Tree:
    if tree.get("is_linear", "0") != "0":
        raise Unsupported("its trees have linear leaves")
    leaves = _numbers(tree, "leaf_value", np.float64)
    inner = len(leaves) - 1
    decisions = _numbers(tree, "decision_type", np.int64)
    feature = _numbers(tree, "split_feature", np.int64)
    threshold = _numbers(tree, "threshold", np.float64)
    missing_left = _missing_left(decisions, threshold)
    player = feature.copy()
    sets = _sets(tree)
    for index in np.flatnonzero(decisions & CATEGORICAL):
        feature[index] = splits.add(int(feature[index]), _goes_left(sets[int(threshold[index])]))
        threshold[index], missing_left[index] = Splits.THRESHOLD, False
    threshold = np.where(threshold >= 0, np.maximum(threshold, ZERO), np.minimum(threshold, np.nextafter(-ZERO, -1.0)))
    counts = [_numbers(tree, f"{kind}_count", np.float64) for kind in ("internal", "leaf")]
    no_children, nothing = np.full(len(leaves), -1), np.zeros(len(leaves))
    return Tree(
        left=np.concatenate([_children(tree, "left_child", inner), no_children]),
        right=np.concatenate([_children(tree, "right_child", inner), no_children]),
        feature=np.concatenate([feature, nothing.astype(np.int64)]),
        threshold=np.concatenate([threshold, nothing]),
        missing_left=np.concatenate([missing_left, nothing.astype(bool)]),
        values=np.concatenate([np.zeros(inner), leaves])[:, None],
        cover=np.concatenate(counts) if inner else None,  # a tree of one leaf does not record it
        player=np.concatenate([player, nothing.astype(np.int64)]),
    )


def _numbers(tree: Text, keyword: str, dtype: Any) -> NDArray[Any]:
    return np.array(tree.get(keyword, "").split(), dtype)


def _children(tree: Text, keyword: str, inner: int) -> NDArray[np.int64]:
    """Indices of children; leaf n is written as -1 - n, and follows the inner nodes here."""
    children = _numbers(tree, keyword, np.int64)
    return np.where(children >= 0, children, inner - 1 - children)


def _missing_left(decisions: NDArray[np.int64], threshold: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which nodes send a missing value left: as recorded, or, if the node has seen none, as it sends zero."""
    kind = decisions >> MISSING_SHIFT & 3
    if (kind == MISSING_IS_ZERO).any():
        raise Unsupported("it treats zeros as missing values")
    return np.where(kind == NO_MISSING, threshold >= 0.0, (decisions & DEFAULT_LEFT) != 0)


def _sets(tree: Text) -> list[frozenset[int]]:
    """The sets of categories that go left, written as words of 32 bits one after the other."""
    bounds = _numbers(tree, "cat_boundaries", np.int64)
    words = _numbers(tree, "cat_threshold", np.uint32)
    return [frozenset(np.flatnonzero(bits_of(words[start:stop])).tolist()) for start, stop in pairwise(bounds)]


def _goes_left(members: frozenset[int]) -> Any:
    return lambda code: not math.isnan(code) and int(code) in members


def _link(estimator: Any, objective: str, outputs: int) -> Link:
    name, *parameters = objective.split()
    classifies = type(estimator).__name__ == "LGBMClassifier"
    if name == "binary" and classifies:
        slope = float(dict(part.split(":") for part in parameters)["sigmoid"])
        return links.booster_logistic(np.float64, outputs=2, slope=slope)
    if name == "multiclass" and classifies:
        return links.booster_softmax(np.float64)
    if name == "cross_entropy" and not classifies:
        return links.booster_logistic(np.float64, outputs=1)
    if name in EXPONENTIAL and not classifies:
        return links.booster_exponential(np.float64)
    if name in IDENTITY and "sqrt" not in parameters and outputs == 1 and not classifies:
        return links.booster_identity
    raise Unsupported(f"the objective {objective} has no compiled form")
