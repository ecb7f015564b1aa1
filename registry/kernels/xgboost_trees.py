"""Compiled forms of XGBoost's trees, from the JSON that the booster writes.

XGBoost rounds inputs to float32, goes left where a value is less than the threshold, and adds float32 leaves to a
float32 margin, tree after tree, starting from the base score. The compiled form does the same, so the bits are equal.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry.kernels import links
from registry.kernels.columns import Plan, Splits
from registry.kernels.ensembles import Ensemble, Trees
from registry.kernels.forest import Tree, flatten, widen_thresholds
from registry.kernels.kernel import Unsupported
from registry.kernels.links import Link
from registry.kernels.preprocessing import CategoryCodes
from registry.rows.schema import Schema

IDENTITY = {
    *(
        f"reg:{loss}"
        for loss in ("absoluteerror", "pseudohubererror", "quantileerror", "squarederror", "squaredlogerror")
    ),
    *(f"rank:{loss}" for loss in ("map", "ndcg", "pairwise")),
}
EXPONENTIAL = {"count:poisson", "reg:gamma", "reg:tweedie"}
LOGISTIC = {"binary:logistic", "reg:logistic"}


def category_codes(estimator: Any, schema: Schema) -> list[CategoryCodes]:
    """The booster's encoding of a DataFrame's categories; [] if it was fitted on none. Raises Unsupported."""
    listed = listed_categories(estimator)
    if not any(listed):
        return []
    if len(listed) != len(schema):
        raise Unsupported("its categories belong to other columns")
    return [CategoryCodes(tuple(listed), refuses_unknown=True)]


def listed_categories(estimator: Any) -> list[list[str] | None]:
    """The categories that a booster knows for each column, None for a column of numbers. Raises Unsupported."""
    encoders = _parts(estimator)["model"]["cats"]["enc"]
    return [_texts(encoder) if encoder.get("values") else None for encoder in encoders]


def booster_ensemble(estimator: Any, plan: Plan) -> Trees:
    """XGBoost's trees; splits by category add columns to `plan`. Raises Unsupported."""
    parts = _parts(estimator)
    trees, groups = _members(estimator, parts["model"])
    start = _base_margins(parts["base_score"], parts["objective"], outputs=int(groups.max()) + 1)
    splits = Splits(plan)
    # groups alternate here; XGBoost may have several trees of one group in a row, but the order within a group is kept
    order = np.lexsort((groups, _turns(groups)))
    weights = np.array(parts["model"].get("weight_drop") or [1.0] * len(trees), np.float32)
    forest = flatten([_tree(trees[index], weights[index], splits) for index in order])
    return Trees(Ensemble(forest, start, single=True), _link(estimator, parts["objective"], len(start)))


def _parts(estimator: Any) -> dict[str, Any]:
    """The model, its objective's name and its base score, as text. Raises Unsupported."""
    if not (isinstance(estimator.missing, float) and math.isnan(estimator.missing)):
        raise Unsupported("its missing value is not NaN")
    learner = msgspec.json.decode(bytes(estimator.get_booster().save_raw("json")))["learner"]
    if learner["gradient_booster"]["name"] != "gbtree":
        raise Unsupported(f"its booster is {learner['gradient_booster']['name']}, not gbtree")
    return {
        "model": learner["gradient_booster"]["model"],
        "objective": learner["objective"]["name"],
        "base_score": learner["learner_model_param"]["base_score"],
    }


def _texts(encoder: dict[str, Any]) -> list[str]:
    if not encoder.get("offsets"):
        raise Unsupported("its categories are numbers")
    text, offsets = bytes(encoder["values"]), encoder["offsets"]
    return [text[start:stop].decode() for start, stop in pairwise(offsets)]


def _members(estimator: Any, model: dict[str, Any]) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The trees up to the best iteration, and the index of the margin that each adds to."""
    _, iterations = estimator._get_iteration_range(None)
    count = model["iteration_indptr"][iterations] if iterations else len(model["trees"])
    return model["trees"][:count], np.array(model["tree_info"][:count])


def _turns(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the trees of its group before each tree. Raises Unsupported if groups differ in their numbers of trees."""
    turns = np.zeros(len(groups), np.int64)
    for group in range(groups.max() + 1):
        turns[groups == group] = np.arange((groups == group).sum())
    if len(groups) != (groups.max() + 1) * (turns.max() + 1):
        raise Unsupported("its classes have different numbers of trees")
    return turns


def _base_margins(base_score: str, objective: str, outputs: int) -> NDArray[np.float64]:
    """The margins before the first tree; XGBoost records them as the objective's answer."""
    scores = np.array([float(score) for score in base_score.strip("[]").split(",")], np.float32)
    one = np.float32(1.0)
    if objective in LOGISTIC:
        margins = [-math.log(one / score - one) for score in scores]
    elif objective in EXPONENTIAL:
        margins = [math.log(score) for score in scores]
    else:
        margins = [float(score) for score in scores]
    return np.broadcast_to(np.array(margins, np.float32).astype(np.float64), (outputs,)).copy()


def _tree(tree: dict[str, Any], weight: np.float32, splits: Splits) -> Tree:
    """A tree whose leaves are multiplied by `weight`, which is not 1 for dropped-out trees."""
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        raise Unsupported("its trees have several outputs")
    left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
    inner = left >= 0
    feature = np.where(inner, tree["split_indices"], 0)
    stated = np.array(tree["split_conditions"]).astype(np.float32)
    threshold = widen_thresholds(np.nextafter(stated, np.float32(-np.inf)).astype(np.float64))
    missing_left = np.array(tree["default_left"]).astype(bool)
    player = feature.copy()
    for index, members in _sets(tree):
        feature[index] = splits.add(int(feature[index]), _goes_left(members, missing_left=bool(missing_left[index])))
        threshold[index] = Splits.THRESHOLD
    # pruned nodes stay in the arrays, but are not children of any node
    kept = np.unique(np.concatenate([[0], left[inner], right[inner]]))
    places = np.full(len(left), -1)
    places[kept] = np.arange(len(kept))
    return Tree(
        left=np.where(inner, places[left], -1)[kept],
        right=np.where(inner, places[right], -1)[kept],
        feature=feature[kept],
        threshold=threshold[kept],
        missing_left=missing_left[kept],
        values=(stated * weight).astype(np.float64)[kept, None],
        cover=np.array(tree["sum_hessian"], np.float64)[kept],
        player=player[kept],
    )


def _sets(tree: dict[str, Any]) -> list[tuple[int, frozenset[int]]]:
    """The nodes that split by category, and the categories that each sends right."""
    segments = zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
    return [(node, frozenset(tree["categories"][start : start + size])) for node, start, size in segments]


def _goes_left(members: frozenset[int], *, missing_left: bool) -> Any:
    return lambda code: missing_left if math.isnan(code) else int(code) not in members


def _link(estimator: Any, objective: str, outputs: int) -> Link:
    classifies = type(estimator).__name__ == "XGBClassifier"
    if objective in LOGISTIC and outputs == 1:
        return links.booster_logistic(np.float32, outputs=2 if classifies else 1, largest=links.LARGEST_POWER)
    if objective == "multi:softprob" and classifies:
        return links.booster_softmax(np.float32)
    if objective in EXPONENTIAL and outputs == 1 and not classifies:
        return links.booster_exponential(np.float32)
    if objective in IDENTITY and outputs == 1 and not classifies:
        return links.booster_identity
    raise Unsupported(f"the objective {objective} has no compiled form")
