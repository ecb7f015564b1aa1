"""Exact SHAP values of compiled tree ensembles (path-dependent) and linear models, by the features that were sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from registry.explain.shap_values import Contributions, Explainer, both_classes
from registry.kernels.compiling import Parts
from registry.kernels.ensembles import Ensemble
from registry.kernels.kernel import Unsupported
from registry.kernels.linear import linear_form
from registry.kernels.links import booster_identity
from registry.kernels.paths import lay_out
from registry.kernels.tree_shap import TREE_SHAP, quadrature
from registry.rows.features import Rows


def tree_explainer(parts: Parts) -> Explainer:
    """Explains probabilities of forests, margins of boosted classifiers, values of regressors. Raises Unsupported.

    Values of one-hot columns are summed to the feature that they were made from. Releases the GIL.
    """
    assert parts.trees is not None
    trees = parts.trees
    ensemble = trees.explained or trees.ensemble
    classifier = is_classifier(parts.last)
    if trees.are_probabilities and len(ensemble.start) == 2:
        # without the first class, whose probability follows from the second's
        forest = ensemble.forest
        ensemble = replace(ensemble, forest=replace(forest, values=forest.values[:, 1:]), start=ensemble.start[1:])
    sources = np.array(parts.head.sources(), np.int32)
    on_matrix, base_values = attribution(ensemble, sources, parts.features)
    attribute = parts.behind_matrix(on_matrix)
    margins = parts.behind_matrix((trees.explained or trees.ensemble).compute(None))
    in_double = margins(np.zeros((0, parts.features))).dtype == np.float64
    binary = classifier and len(base_values) == 1
    probabilities, boosted = trees.are_probabilities, classifier or trees.link not in (None, booster_identity)

    def explain(rows: Rows) -> Contributions:
        outputs = margins(rows).astype(np.float64, copy=False)
        found = Contributions(outputs[:, -len(base_values) :], base_values, attribute(rows))
        if not binary:
            return found
        if not probabilities:
            return both_classes(found, 0.0)
        return replace(both_classes(found, 1.0), outputs=outputs)  # what predict answers, to the last bit

    return Explainer(
        "tree-path-dependent",
        "probability" if probabilities else "margin" if boosted else "value",
        explain,
        tolerance=1e-9 if in_double else 1e-5,  # of margins that are summed in float32
    )


def attribution(ensemble: Ensemble, sources: Any, features: int) -> tuple[Callable[[Rows], Rows], Rows]:
    """A function from the matrix to values, shape (rows, features, outputs), and the base values.

    `sources` are the features that the matrix's columns were made from. Raises Unsupported.
    """
    outputs, divisor = len(ensemble.start), ensemble.divisor
    paths = lay_out(ensemble.forest, outputs)
    points = quadrature(int(paths.trees["players"].max()))
    slots = sources[paths.slots]
    kernel = TREE_SHAP.load()

    def attribute(matrix: Rows) -> Rows:
        values = np.zeros((len(matrix), features, outputs))
        kernel(matrix, paths.splits, paths.leaves, paths.values, slots, paths.trees, points, values)
        values /= divisor
        return values

    return attribute, (ensemble.start + paths.expected) / divisor


def linear_explainer(parts: Parts, background: Rows) -> Explainer:
    """Explains margins of linear classifiers and values of linear regressors. Raises Unsupported."""
    form = linear_form(parts.last)
    if form.explained is None:
        raise Unsupported("its outputs are not linear")
    weights, intercept = form.weights, form.intercept  # shape (columns, outputs), (outputs,)
    matrix = parts.behind_matrix(form.prepare or (lambda made: made))
    means = matrix(background).mean(axis=0)
    base_values = means @ weights + intercept
    sources = np.array(parts.head.sources(), np.intp)
    features = parts.features
    binary = is_classifier(parts.last) and len(intercept) == 1

    def explain(rows: Rows) -> Contributions:
        made = matrix(rows)
        values = np.zeros((len(rows), features, len(intercept)))
        by_column = (made - means)[:, :, None] * weights
        np.add.at(values.swapaxes(0, 1), sources, by_column.swapaxes(0, 1))
        # a stack of single rows, as in registry/kernels/linear.py: a row must not depend on the others
        outputs = np.matmul(made[:, None], weights)[:, 0] + intercept
        found = Contributions(outputs, base_values, values)
        return both_classes(found, 0.0) if binary else found

    return Explainer("linear", form.explained, explain)
