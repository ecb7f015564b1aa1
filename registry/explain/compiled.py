"""Exact SHAP values of compiled tree ensembles (path-dependent) and linear models, by the features that were sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import is_classifier

from registry.explain.shap_values import Contributions, Explainer, both_classes
from registry.kernels.compiling import Parts
from registry.kernels.ensembles import Ensemble
from registry.kernels.kernel import Unsupported
from registry.kernels.linear import linear_form
from registry.kernels.links import booster_identity
from registry.kernels.matrix import Block, Head, Stage
from registry.kernels.paths import lay_out
from registry.kernels.pattern_tables import pattern_tables
from registry.kernels.tree_shap import ADD_PATTERNS, ROWS_AT_ONCE, TREE_INTERACTIONS, TREE_SHAP, Scratch, quadrature
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
    attribute, base_values, pairs_on_matrix = attribution(ensemble, sources, parts.features)
    matrix, pairs = parts.head.matrix(), parts.behind_matrix(pairs_on_matrix)
    margins = (trees.explained or trees.ensemble).compute(None)
    in_double = margins(matrix(np.zeros((0, parts.features)))).dtype == np.float64
    binary = classifier and len(base_values) == 1
    probabilities, boosted = trees.are_probabilities, classifier or trees.link not in (None, booster_identity)
    total = 1.0 if probabilities else 0.0
    expected = np.append(total - base_values, base_values) if binary else base_values

    def explain(rows: Rows) -> Contributions:
        made = matrix(rows)
        outputs = margins(made).astype(np.float64, copy=False)
        values = attribute(made)
        if not binary:
            return Contributions(outputs[:, -len(base_values) :], expected, values)
        if not probabilities:  # those of a forest are what predict answers, to the last bit
            outputs = np.concatenate([total - outputs, outputs], axis=1)
        return Contributions(outputs, expected, np.concatenate([-values, values], axis=2))

    def interact(rows: Rows) -> Rows:
        found = pairs(rows)
        return np.concatenate([-found, found], axis=3) if binary else found

    return Explainer(
        "tree-path-dependent",
        "probability" if probabilities else "margin" if boosted else "value",
        explain,
        tolerance=1e-9 if in_double else 1e-5,  # of margins that are summed in float32
        interact=interact,
    )


class Attribution(NamedTuple):
    """What trees give their features, as functions from the matrix."""

    values: Callable[[Rows], Rows]
    """Shape (rows, features, outputs)."""
    base_values: Rows
    pairs: Callable[[Rows], Rows]
    """Interactions, shape (rows, features, features, outputs), with zeros on the diagonal."""


def attribution(ensemble: Ensemble, sources: Any, features: int) -> Attribution:
    """SHAP values and interactions; `sources` are the features that the matrix's columns were made from.

    Raises Unsupported.
    """
    outputs, divisor = len(ensemble.start), ensemble.divisor
    paths = lay_out(ensemble.forest, outputs, sources)
    points = quadrature(int(paths.trees["players"].max()))
    explain, interact, add_patterns = TREE_SHAP.load(), TREE_INTERACTIONS.load(), ADD_PATTERNS.load()
    tables = pattern_tables(paths, points, explain)
    model, large = (paths.splits, paths.leaves, paths.trees, points), paths.trees[~tables.chosen]
    scratch, players = Scratch(paths), len(sources)

    def values(matrix: Rows) -> Rows:
        made = np.zeros((len(matrix), features, outputs))
        if len(large):
            arrays = scratch.arrays(max(1, min(len(matrix), ROWS_AT_ONCE)) * features * outputs)
            explain(matrix, (paths.splits, paths.leaves, large, points), arrays, made)
        if len(tables.trees):
            add_patterns(matrix, tables.trees, tables.splits, tables.values, tables.entries, made)
        if divisor != 1.0:
            made /= divisor
        return made

    def pairs(matrix: Rows) -> Rows:
        made = np.zeros((len(matrix), features, features, outputs))
        arrays, seen = scratch.arrays(scratch.splits), np.zeros(players, np.int64)
        interact(matrix, model, paths.players, arrays, seen, made)
        made /= divisor
        return made

    return Attribution(values, (ensemble.start + paths.expected) / divisor, pairs)


def linear_explainer(parts: Parts, background: Rows) -> Explainer:
    """Explains margins of linear classifiers and values of linear regressors; of texts, word by word.

    Raises Unsupported.
    """
    form, head = linear_form(parts.last), parts.head
    if form.explained is None:
        raise Unsupported("its outputs are not linear")
    weights, intercept = form.weights, form.intercept  # shape (columns, outputs), (outputs,)
    if head.has_entries:
        shares = [_share(block, weights, background) for block in head.blocks()]
        products = head.products(weights)
    else:
        shares = [_column_share(head, weights, background, form.prepare)]
        # a stack of single rows, as in registry/kernels/linear.py: a row must not depend on the others
        matrix = parts.behind_matrix(form.prepare or (lambda made: made))
        products = lambda rows: np.matmul(matrix(rows)[:, None], weights)[:, 0]  # noqa: E731
    base_values = intercept + sum(share.base for share in shares)
    features, names = parts.features, head.names
    binary = is_classifier(parts.last) and len(intercept) == 1

    def explain(rows: Rows) -> Contributions:
        values = np.zeros((len(rows), features, len(intercept)))
        words: list[dict[str, dict[str, Rows]]] = [{} for _ in rows]
        for share in shares:
            for row, own in enumerate(share.add(rows, values)):
                words[row].setdefault(names[own.source], {}).update(own.words)
        made = products(rows) + intercept
        found = Contributions(made, base_values, values, words=words if any(words) else None)
        return both_classes(found, 0.0) if binary else found

    return Explainer("linear", form.explained, explain)


@dataclass(frozen=True, slots=True)
class _Words:
    """What the words of a text contribute, by word, each of shape (outputs,); `source` is the text's feature."""

    source: int
    words: dict[str, Rows]


@dataclass(frozen=True, slots=True)
class _Share:
    """What neighbouring columns contribute: `base` at their means, and `add` adds the rest to values by feature.

    Where the columns are words, `add` returns those of each row.
    """

    base: Rows
    add: Callable[[Rows, Rows], Sequence[_Words]]


def _share(block: Block, weights: Rows, background: Rows) -> _Share:
    own = weights[block.places]
    if block.head is not None:
        return _column_share(block.head, own, background, None)
    assert block.stage is not None
    return _word_share(block.stage, block.columns, own, background)


def _column_share(head: Head, weights: Rows, background: Rows, prepare: Callable[[Rows], Rows] | None) -> _Share:
    plain = head.matrix()
    matrix = plain if prepare is None else lambda rows: prepare(plain(rows))
    means = matrix(background).mean(axis=0)
    sources = np.array(head.sources(), np.intp)

    def add(rows: Rows, values: Rows) -> Sequence[_Words]:
        by_column = (matrix(rows) - means)[:, :, None] * weights
        np.add.at(values.swapaxes(0, 1), sources, by_column.swapaxes(0, 1))
        return ()

    return _Share(means @ weights, add)


def _word_share(stage: Stage, columns: Sequence[int], weights: Rows, background: Rows) -> _Share:
    assert stage.entries is not None
    (source,) = set(stage.sources)
    find, names = stage.entries, stage.words
    assert source is not None
    spread = np.zeros((stage.width, weights.shape[1]))  # 0 for words that were not selected
    spread[columns] = weights
    known = find(background)
    means = np.bincount(known.columns, known.values, stage.width) / len(background)
    base = means @ spread

    def add(rows: Rows, values: Rows) -> Sequence[_Words]:
        found = find(rows)
        by_word = (found.values - means[found.columns])[:, None] * spread[found.columns]
        words = []
        for row, (start, stop) in enumerate(itertools.pairwise(found.starts.tolist())):
            # the words that a text lacks contribute the negative of their means
            lacked = base - means[found.columns[start:stop]] @ spread[found.columns[start:stop]]
            values[row, source] += by_word[start:stop].sum(axis=0) - lacked
            places = found.columns[start:stop].tolist() if names else []
            own = {names[place]: by_word[start + index] for index, place in enumerate(places) if spread[place].any()}
            words.append(_Words(source, own))
        return words

    return _Share(base, add)
