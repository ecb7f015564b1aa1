"""Fitted transformers as functions of a whole matrix: scikit-learn's arithmetic on arrays without its checks.

Sums over columns go through `row_products`, so a row's bits never depend on its batch. Where each column is made from
one column, explanations still credit the feature; where a column mixes several, they must sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sklearn import decomposition, preprocessing, random_projection
from sklearn.utils import check_array
from sklearn.utils.extmath import row_norms

from registry.kernels.kernel import Unsupported
from registry.kernels.matrix import Made, Matrix, Stage, head_of
from registry.rows.features import Rows


def row_products(matrix: Rows, weights: Rows) -> Rows:
    """`matrix @ weights` with the bits of each row alone; shapes (rows, columns) and (columns, outputs)."""
    products: Rows = np.matmul(matrix[:, None], weights).reshape(len(matrix), weights.shape[1])
    return products


def staged(matrix: Matrix, function: Callable[[Rows], Rows], width: int, places: Sequence[int] | None = None) -> Matrix:
    """The matrix of a stage; `places` are the columns that each of its columns is made from, None for several.

    Raises Unsupported.
    """
    if matrix.sparse or matrix.single:
        raise Unsupported("a transformer follows a sparse matrix, or float32")
    head = head_of(matrix)
    before = head.matrix()
    sources = (matrix.common_source,) * width if places is None else tuple(matrix.sources[place] for place in places)
    empty = np.empty((0, width))  # which scikit-learn refuses to transform

    def compute(rows: Rows) -> Rows:
        return function(before(rows)) if len(rows) else empty

    stage = Stage(compute, width, sources, matrix.python)
    return replace(matrix, columns=tuple(Made(stage, index) for index in range(width)))


def each(count: int, times: int = 1) -> list[int]:
    """Columns that are each made `times` times."""
    return [place for place in range(count) for _ in range(times)]


def _pca(pca: Any, matrix: Matrix) -> Matrix:
    _check_double(pca.components_, pca.mean_)
    components = pca.components_.T
    offset = np.reshape(pca.mean_, (1, -1)) @ components
    scale = None
    if pca.whiten:
        scale = np.sqrt(pca.explained_variance_)
        scale[scale < np.finfo(scale.dtype).eps] = np.finfo(scale.dtype).eps

    def project(rows: Rows) -> Rows:
        made = row_products(rows, components)
        made -= offset
        if scale is not None:
            made /= scale
        return made

    return staged(matrix, project, components.shape[1])


def _fast_ica(ica: decomposition.FastICA, matrix: Matrix) -> Matrix:
    if not ica.whiten:
        return _projection(ica, matrix)
    _check_double(ica.components_, ica.mean_)
    components, mean = ica.components_.T, ica.mean_
    return staged(matrix, lambda rows: row_products(rows - mean, components), components.shape[1])


def _projection(transformer: Any, matrix: Matrix) -> Matrix:
    _check_double(transformer.components_)
    components = transformer.components_.T
    if matrix.sparse:
        head, width = head_of(matrix), components.shape[1]
        stage = Stage(head.products(components), width, (matrix.common_source,) * width, matrix.python)
        return replace(matrix, columns=tuple(Made(stage, index) for index in range(width)), sparse=False)
    return staged(matrix, lambda rows: row_products(rows, components), components.shape[1])


def _check_double(*arrays: Any) -> None:
    if any(getattr(array, "dtype", None) != np.float64 for array in arrays):
        raise Unsupported("a transformer is not float64")


def _polynomial(transformer: preprocessing.PolynomialFeatures, matrix: Matrix) -> Matrix:
    """Each product of degree d is one of degree d - 1 times the column of its lowest index, as scikit-learn has it."""
    powers = [tuple(row) for row in transformer.powers_.tolist()]
    places: dict[tuple[int, ...], int] = {}
    steps: list[tuple[int, int]] = []

    def place(power: tuple[int, ...]) -> int:
        """The place of a product among `steps`, which is added together with all that it needs."""
        if power not in places:
            lowest = next((index for index, exponent in enumerate(power) if exponent), -1)
            rest = tuple(exponent - (index == lowest) for index, exponent in enumerate(power))
            before = place(rest) if any(rest) else -1
            steps.append((before, lowest))
            places[power] = len(steps) - 1
        return places[power]

    chosen = [place(power) for power in powers]

    def multiply(rows: Rows) -> Rows:
        made = np.empty((len(steps), len(rows)))
        columns = rows.T
        for index, (before, lowest) in enumerate(steps):
            if lowest < 0:
                made[index] = 1.0
            elif before < 0:
                made[index] = columns[lowest]
            else:
                np.multiply(made[before], columns[lowest], made[index])
        return np.ascontiguousarray(made[chosen].T)

    return staged(matrix, multiply, len(powers))


def _bins(transformer: preprocessing.KBinsDiscretizer, matrix: Matrix) -> Matrix:
    edges = [edge[1:-1] for edge in transformer.bin_edges_]
    counts = transformer.n_bins_.tolist()
    if transformer.dtype not in (None, np.float64):
        raise Unsupported("its bins are not float64")

    def number(rows: Rows) -> Rows:
        made = np.empty(rows.shape)
        for index, edge in enumerate(edges):
            made[:, index] = np.searchsorted(edge, rows[:, index], side="right")
        return made

    if transformer.encode == "ordinal":
        return staged(matrix, number, len(edges), each(len(edges)))
    owner = np.repeat(np.arange(len(edges)), counts)
    code = np.concatenate([np.arange(count) for count in counts]).astype(np.float64)
    made = staged(matrix, lambda rows: (number(rows)[:, owner] == code).astype(np.float64), len(owner), owner.tolist())
    return replace(made, sparse=transformer.encode == "onehot")


def _normalizer(transformer: preprocessing.Normalizer, matrix: Matrix) -> Matrix:
    norms = {
        "l1": lambda rows: np.sum(np.abs(rows), axis=1),
        "l2": row_norms,
        "max": lambda rows: np.max(np.abs(rows), axis=1),
    }[transformer.norm]

    def normalize(rows: Rows) -> Rows:
        lengths = norms(rows)
        lengths[lengths == 0.0] = 1.0
        normalized: Rows = rows / lengths[:, None]
        return normalized

    return staged(matrix, normalize, len(matrix.columns))


def _binarizer(transformer: preprocessing.Binarizer, matrix: Matrix) -> Matrix:
    threshold = transformer.threshold
    columns = len(matrix.columns)
    return staged(matrix, lambda rows: (rows > threshold).astype(np.float64), columns, each(columns))


def _function(transformer: preprocessing.FunctionTransformer, matrix: Matrix) -> Matrix:
    """One of numpy's own functions of a number. ColumnTransformer's "passthrough" does nothing, nor does the check of
    histogram boosting for numbers beside categories.
    """
    function = transformer.func
    if function is None or (isinstance(function, partial) and function.func is check_array):
        return matrix
    if not isinstance(function, np.ufunc) or (function.nin, function.nout) != (1, 1) or transformer.kw_args:
        raise Unsupported("the step FunctionTransformer is Python code")
    columns = len(matrix.columns)

    def quietly(rows: Rows) -> Rows:
        with np.errstate(all="ignore"):
            return np.asarray(function(rows), np.float64)

    return staged(matrix, quietly, columns, each(columns))


def _own_transform(times: Callable[[Any], int]) -> Callable[[Any, Matrix], Matrix]:
    """A transformer that goes column by column, called as it is, with an array instead of a DataFrame."""

    def follow(transformer: Any, matrix: Matrix) -> Matrix:
        nameless = copy.copy(transformer)
        vars(nameless).pop("feature_names_in_", None)  # scikit-learn warns where an array has no names
        nameless.set_output(transform="default")
        columns = len(matrix.columns)
        count = times(transformer)
        return staged(matrix, nameless.transform, columns * count, each(columns, count))

    return follow


def _splines(transformer: preprocessing.SplineTransformer) -> int:
    if transformer.sparse_output:
        raise Unsupported("its splines make a sparse matrix")
    return int(transformer.n_features_out_ // transformer.n_features_in_)


STAGES: dict[type, Callable[[Any, Matrix], Matrix]] = {
    decomposition.FastICA: _fast_ica,
    decomposition.IncrementalPCA: _pca,
    decomposition.PCA: _pca,
    decomposition.TruncatedSVD: _projection,
    preprocessing.Binarizer: _binarizer,
    preprocessing.FunctionTransformer: _function,
    preprocessing.KBinsDiscretizer: _bins,
    preprocessing.Normalizer: _normalizer,
    preprocessing.PolynomialFeatures: _polynomial,
    preprocessing.PowerTransformer: _own_transform(lambda _: 1),
    preprocessing.QuantileTransformer: _own_transform(lambda _: 1),
    preprocessing.SplineTransformer: _own_transform(_splines),
    random_projection.GaussianRandomProjection: _projection,
}
