"""Compiled text vectorizers: a dictionary from words to columns, and the few entries that a text has among them.

Words are found by scikit-learn's own analyzer, which is Python; what makes its `transform` slow is the sparse matrix
around them. Sums over a text's entries are taken one after the other, in the order of columns, as scipy takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import types
from sklearn.feature_extraction import text

from registry.kernels.kernel import NUMBERS, OUT, Kernel, Unsupported, writable
from registry.kernels.matrix import PLACES, Entries, Made, Matrix, Raw, Stage
from registry.rows.features import Rows


def _fill(starts: Any, columns: Any, values: Any, out: Any) -> None:
    for r in range(out.shape[0]):
        for e in range(starts[r], starts[r + 1]):
            out[r, columns[e]] = values[e]


def _normalize_entries(starts: Any, squares: Any, values: Any) -> None:
    """Divide each row by the root of its sum of squares, or by its sum of absolute values."""
    for r in range(starts.shape[0] - 1):
        total = 0.0
        for e in range(starts[r], starts[r + 1]):
            total += values[e] * values[e] if squares else abs(values[e])
        if total == 0.0:
            continue
        if squares:
            total = math.sqrt(total)
        for e in range(starts[r], starts[r + 1]):
            values[e] /= total


def _count(starts: Any, places: Any, binary: Any, counts: Any) -> None:
    """Sort each row's places, keep one of each, with how often it is there; `starts` become those of what is kept.

    Unknown words, whose place is negative, are left out.
    """
    kept = 0
    begin = starts[0]
    for r in range(starts.shape[0] - 1):
        end = starts[r + 1]
        row = np.sort(places[begin:end])
        first = kept
        for e in range(row.shape[0]):
            if row[e] < 0:
                continue
            if kept > first and places[kept - 1] == row[e]:
                counts[kept - 1] += 0.0 if binary else 1.0
            else:
                places[kept] = row[e]
                counts[kept] = 1.0
                kept += 1
        begin = end
        starts[r + 1] = kept


WRITABLE_PLACES = writable(types.int64, 1)
COUNT_WORDS = Kernel(_count, WRITABLE_PLACES, WRITABLE_PLACES, types.boolean, writable(types.float64, 1))
FILL_ENTRIES = Kernel(_fill, PLACES, PLACES, NUMBERS, OUT)
NORMALIZE_ENTRIES = Kernel(_normalize_entries, PLACES, types.boolean, writable(types.float64, 1))


MAX_COLUMNS = 250_000
"""Columns of texts that are followed one by one; as many take seconds to load."""


class Places(dict[str, int]):
    """The columns of words; -1 for any other word."""

    def __missing__(self, word: str) -> int:
        return -1


@dataclass(frozen=True, slots=True)
class Vectorizer:
    """The words of texts as entries of a row; `change` makes the values of the counts."""

    analyze: Callable[[str], Sequence[str]]
    places: Places
    count: Callable[..., None]
    binary: bool
    change: tuple[Callable[[Entries], Entries], ...] = ()

    def __call__(self, texts: Sequence[str]) -> Entries:
        """The entries of texts."""
        find, ends, found = self.places.__getitem__, [0], list[int]()
        for one in texts:
            found += map(find, self.analyze(one))
            ends.append(len(found))
        places = np.array(found, np.int64)
        starts, counts = np.array(ends, np.int64), np.empty(len(places))
        self.count(starts, places, self.binary, counts)
        entries = Entries(starts, places[: starts[-1]], counts[: starts[-1]])
        for change in self.change:
            entries = change(entries)
        return entries


def count_vectorizer(vectorizer: text.CountVectorizer, matrix: Matrix) -> Matrix:
    """The matrix of CountVectorizer and TfidfVectorizer. Raises Unsupported."""
    (source,) = matrix.columns if len(matrix.columns) == 1 else (None,)
    if not isinstance(source, Raw) or not matrix.vector or matrix.schema.features[source.source].kind != "text":
        raise Unsupported("a text is not given to it as a single column")
    if np.dtype(vectorizer.dtype).kind == "f" and vectorizer.dtype != np.float64:
        raise Unsupported("it computes with float32")
    places = Places((word, int(place)) for word, place in vectorizer.vocabulary_.items())
    change = (weighting(vectorizer._tfidf),) if isinstance(vectorizer, text.TfidfVectorizer) else ()
    words = Vectorizer(vectorizer.build_analyzer(), places, COUNT_WORDS.load(), vectorizer.binary, change)
    by_place = dict(zip(places.values(), places, strict=True))
    names = tuple(by_place.get(place, "") for place in range(len(places)))
    index = source.source
    return _entries_matrix(matrix, lambda rows: words(rows[:, index].tolist()), len(places), index, names)


def hashing_vectorizer(vectorizer: text.HashingVectorizer, matrix: Matrix) -> Matrix:
    """The matrix of HashingVectorizer, by its own function. Raises Unsupported."""
    (source,) = matrix.columns if len(matrix.columns) == 1 else (None,)
    if not isinstance(source, Raw) or not matrix.vector or vectorizer.dtype != np.float64:
        raise Unsupported("a text is not given to it as a single column, or it computes with float32")
    index = source.source

    def entries(rows: Rows) -> Entries:
        made = vectorizer.transform(rows[:, index].tolist())
        return Entries(made.indptr.astype(np.int64), made.indices.astype(np.int64), made.data)

    return _entries_matrix(matrix, entries, vectorizer.n_features, index, ())


def weights_of_terms(transformer: text.TfidfTransformer, matrix: Matrix) -> Matrix:
    """The matrix of a TfidfTransformer behind a CountVectorizer. Raises Unsupported."""
    stage = matrix.columns[0].stage if matrix.columns and isinstance(matrix.columns[0], Made) else None
    if stage is None or stage.entries is None or not is_whole(matrix.columns, stage):
        raise Unsupported("its counts are not those of a text")
    change, before = weighting(transformer), stage.entries
    (source,) = set(stage.sources)
    assert source is not None
    return _entries_matrix(matrix, lambda rows: change(before(rows)), stage.width, source, stage.words)


def is_whole(columns: Sequence[Any], stage: Stage) -> bool:
    """Return whether the columns are those of a stage, all in order."""
    return len(columns) == stage.width and all(
        isinstance(column, Made) and column.stage is stage and column.index == place and not column.steps
        for place, column in enumerate(columns)
    )


def weighting(transformer: text.TfidfTransformer) -> Callable[[Entries], Entries]:
    """A function from counts to weights of terms. Raises Unsupported."""
    idf = np.asarray(transformer.idf_, np.float64) if hasattr(transformer, "idf_") else None
    if idf is not None and transformer.idf_.dtype != np.float64:
        raise Unsupported("it computes with float32")
    sublinear, norm = transformer.sublinear_tf, transformer.norm
    normalize = NORMALIZE_ENTRIES.load()

    def change(entries: Entries) -> Entries:
        values = entries.values.copy()
        if sublinear:
            np.log(values, values)
            values += 1.0
        if idf is not None:
            values *= idf[entries.columns]
        if norm is not None:
            normalize(entries.starts, norm == "l2", values)
        return replace(entries, values=values)

    return change


def _entries_matrix(
    matrix: Matrix, entries: Callable[[Rows], Entries], width: int, source: int, words: Sequence[str]
) -> Matrix:
    if width > MAX_COLUMNS:
        raise Unsupported(f"its texts make more than {MAX_COLUMNS} columns")
    fill = FILL_ENTRIES.load()

    def compute(rows: Rows) -> Rows:
        found, out = entries(rows), np.zeros((len(rows), width))
        fill(found.starts, found.columns, found.values, out)
        return out

    stage = Stage(compute, width, (source,) * width, entries=entries, words=tuple(words))
    return replace(matrix, columns=tuple(Made(stage, index) for index in range(width)), sparse=True, vector=False)


TEXTS: dict[type, Callable[[Any, Matrix], Matrix]] = {
    text.CountVectorizer: count_vectorizer,
    text.HashingVectorizer: hashing_vectorizer,
    text.TfidfTransformer: weights_of_terms,
    text.TfidfVectorizer: count_vectorizer,
}
