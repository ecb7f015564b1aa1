"""The matrix that a model's transformers make, column by column, and the function that makes it of rows.

A column depends on one feature (arithmetic on its number, or a table over its few values), or a stage makes it: a
function of several columns at once, or a transformer that stays Python. Stages come first: their outputs stand beside
the features, and one kernel makes the matrix of both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from registry.kernels.columns import ROUND_TO_SINGLE, Computed, Plan, Step, Tabled, builder
from registry.kernels.kernel import MATRIX, NUMBERS, OUT, Kernel, Unsupported, read_only
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema


@dataclass(frozen=True, slots=True)
class Listed:
    """A column that depends on a feature of few values; `searched` are a number's, None where codes are used."""

    source: int
    searched: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """A feature that is no number: a text, or a date and time. Only stages read it."""

    source: int


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """A sparse matrix: row r has `values` in `columns`, ascending, from starts[r] to starts[r + 1]."""

    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A function from rows, shape (rows, features), to columns, shape (rows, width).

    `sources` are the features that the columns are made from, None for a column that is made from several. `python`
    names the transformers whose own code runs, which may take any time and answer a batch otherwise than its rows.
    `entries` gives the columns of a text as a sparse matrix, and `words` are their names: see `text.py`.
    """

    compute: Callable[[Rows], Rows]
    width: int
    sources: tuple[int | None, ...]
    python: tuple[str, ...] = ()
    entries: Callable[[Rows], Entries] | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A column of a stage, and arithmetic on it."""

    stage: Stage
    index: int
    steps: tuple[Step, ...] = ()


Followed = Computed | Listed | Made | Raw

IN_SINGLE: tuple[Step, ...] = ((ROUND_TO_SINGLE, 0.0),)
"""The steps of a column of float32, as the estimator's DataFrame holds it."""


def are_single(columns: Iterable[Followed]) -> bool:
    """Return whether all columns are float32, so that scikit-learn computes with them in that precision."""
    return all(isinstance(column, Computed) and column.steps == IN_SINGLE for column in columns)


@dataclass(frozen=True, slots=True)
class Matrix:
    """The columns that transformers make of the schema's features.

    `made` is scikit-learn's own way from the estimator's table to the matrix. `sparse` tells whether it is a sparse
    matrix there, `single` whether it holds float32. A matrix that is not `known` holds something else than numbers;
    only transformers in Python can follow. `python` names the transformers in front whose own code runs. `vector` is
    True for a single column that is handed on as a vector, without a second dimension.
    """

    schema: Schema
    columns: tuple[Followed, ...]
    made: Callable[[Any], Any]
    sparse: bool = False
    single: bool = False
    known: bool = True
    python: tuple[str, ...] = ()
    vector: bool = False

    @property
    def sources(self) -> tuple[int | None, ...]:
        """The feature that each column is made from, None for several."""
        return tuple(
            column.stage.sources[column.index] if isinstance(column, Made) else column.source for column in self.columns
        )

    @property
    def common_source(self) -> int | None:
        """The one feature that all columns are made from; None for several."""
        sources = set(self.sources)
        return sources.pop() if len(sources) == 1 else None

    def transformed(self, rows: Rows) -> Any:
        """What scikit-learn makes of rows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # encoders warn of unknown values
            return self.made(self.schema.table(rows))


WIDE = 2048
"""Columns of a matrix that is made in parts, because a batch of texts would fill gigabytes with zeros."""

MAX_CELLS = 8_000_000
"""Cells of such a part, of 8 bytes each."""


@dataclass(frozen=True, slots=True)
class Head:
    """All that comes before the last step: `plan` are the columns, from features and, after those, from stages."""

    names: tuple[str, ...]
    plan: Plan
    stages: tuple[Stage, ...]
    sparse: bool

    @property
    def features(self) -> int:
        """The number of features in a row."""
        return len(self.names)

    @property
    def python(self) -> tuple[str, ...]:
        """The names of the transformers whose own code runs."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.python))

    @property
    def rows_at_once(self) -> int | None:
        """Rows whose matrix has MAX_CELLS cells; None for a narrow matrix."""
        return max(1, MAX_CELLS // len(self.plan)) if len(self.plan) > WIDE else None

    @property
    def has_entries(self) -> bool:
        """True if texts are among the columns of a sparse matrix."""
        return self.sparse and any(stage.entries is not None for stage in self.stages)

    def sources(self) -> list[int]:
        """The feature that each column is made from. Raises Unsupported where a column is made from several."""
        beside = [source for stage in self.stages for source in stage.sources]
        found = [
            column.source if column.source < self.features else beside[column.source - self.features]
            for column in self.plan
        ]
        if any(source is None for source in found):
            raise Unsupported("a column is made from several features")
        return [source for source in found if source is not None]

    def matrix(self) -> Callable[[Rows], Rows]:
        """A function from rows, shape (rows, features), to the matrix, float64, shape (rows, columns)."""
        features, stages = self.features, self.stages
        if not stages:
            build = None if self.plan == [*map(Computed, range(features))] else builder(self.plan)
            return lambda rows: _checked(rows, features) if build is None else build(_checked(_numbers(rows), features))
        only = stages[0].compute
        if len(stages) == 1 and self.plan == [Computed(features + index) for index in range(stages[0].width)]:
            return lambda rows: np.ascontiguousarray(only(rows), np.float64)
        build = builder(self.plan)
        width = features + sum(stage.width for stage in stages)

        def matrix(rows: Rows) -> Rows:
            beside = np.empty((len(rows), width))
            beside[:, :features] = _numbers(rows)
            start = features
            for stage in stages:
                beside[:, start : start + stage.width] = stage.compute(rows)
                start += stage.width
            return build(beside)

        return matrix

    def blocks(self) -> list[Block]:
        """The columns in their order: the entries of texts apart from the others."""
        owners = [(stage, place) for stage in self.stages for place in range(stage.width)]
        found: list[tuple[Stage | None, list[int]]] = []
        for index, column in enumerate(self.plan):
            stage = owners[column.source - self.features][0] if column.source >= self.features else None
            if stage is not None and (stage.entries is None or not isinstance(column, Computed) or column.steps):
                stage = None
            if not found or found[-1][0] is not stage:
                found.append((stage, []))
            found[-1][1].append(index)
        return [self._block(stage, places, owners) for stage, places in found]

    def _block(self, stage: Stage | None, places: list[int], owners: list[tuple[Stage, int]]) -> Block:
        if stage is None:
            return Block(self._narrowed(places, owners), None, places, [])
        return Block(None, stage, places, [owners[self.plan[place].source - self.features][1] for place in places])

    def _narrowed(self, places: list[int], owners: list[tuple[Stage, int]]) -> Head:
        """The head of some columns, with the stages that these need."""
        stages: dict[int, Stage] = {}
        starts: dict[int, int] = {}
        plan: Plan = []
        for column in (self.plan[place] for place in places):
            if column.source < self.features or not isinstance(column, Computed):
                plan.append(column)
                continue
            stage, index = owners[column.source - self.features]
            if id(stage) not in stages:
                starts[id(stage)] = self.features + sum(before.width for before in stages.values())
                stages[id(stage)] = stage
            plan.append(replace(column, source=starts[id(stage)] + index))
        return Head(self.names, plan, tuple(stages.values()), self.sparse)

    def products(self, weights: Rows, prepare: Callable[[Rows], Rows] | None = None) -> Callable[[Rows], Rows]:
        """A function from rows to `matrix @ weights` of a sparse matrix, entry by entry as scipy multiplies.

        `prepare` changes each value for itself, and not 0.
        """
        adders = [_adder(block, weights, prepare) for block in self.blocks()]
        outputs = weights.shape[1]

        def products(rows: Rows) -> Rows:
            out = np.zeros((len(rows), outputs))
            for add in adders:
                add(rows, out)
            return out

        return products


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Neighbouring columns: those that a head makes, or those of a stage with entries, `columns` among the stage's.

    `places` are their places in the whole.
    """

    head: Head | None
    stage: Stage | None
    places: list[int]
    columns: list[int]


def _add_entries(starts: Any, columns: Any, values: Any, weights: Any, out: Any) -> None:
    for r in range(out.shape[0]):
        for e in range(starts[r], starts[r + 1]):
            for k in range(out.shape[1]):
                out[r, k] += values[e] * weights[columns[e], k]


def _add_matrix(matrix: Any, weights: Any, out: Any) -> None:
    for r in range(out.shape[0]):
        for c in range(matrix.shape[1]):
            value = matrix[r, c]
            if value != 0.0:
                for k in range(out.shape[1]):
                    out[r, k] += value * weights[c, k]


PLACES = read_only(types.int64, 1)
ADD_ENTRIES = Kernel(_add_entries, PLACES, PLACES, NUMBERS, MATRIX, OUT)
ADD_MATRIX = Kernel(_add_matrix, MATRIX, MATRIX, OUT)


def _adder(block: Block, weights: Rows, prepare: Callable[[Rows], Rows] | None) -> Callable[[Rows, Rows], None]:
    """A function that adds a block's products to the sums, which are its second argument."""
    own = np.ascontiguousarray(weights[block.places])
    if block.head is not None:
        matrix, add_matrix = block.head.matrix(), ADD_MATRIX.load()

        def add_columns(rows: Rows, out: Rows) -> None:
            made = matrix(rows)
            add_matrix(made if prepare is None else prepare(made), own, out)

        return add_columns
    assert block.stage is not None
    assert block.stage.entries is not None
    find, add_entries = block.stage.entries, ADD_ENTRIES.load()
    spread = np.zeros((block.stage.width, weights.shape[1]))  # 0 for columns that were not selected
    spread[block.columns] = own

    def add(rows: Rows, out: Rows) -> None:
        found = find(rows)
        values = found.values if prepare is None else prepare(found.values)
        add_entries(found.starts, found.columns, values, spread, out)

    return add


def _checked(rows: Rows, features: int) -> Rows:
    rows = np.ascontiguousarray(rows, np.float64)
    if rows.ndim != 2 or rows.shape[1] != features:
        raise ValueError(f"rows of shape {rows.shape}, not (rows, {features})")  # a kernel would read beyond
    return rows


def _numbers(rows: Rows) -> Rows:
    """Rows without their texts, which only stages read."""
    if rows.dtype != object:
        return rows
    return np.array([[math.nan if cell is None or type(cell) is str else cell for cell in row] for row in rows])


def head_of(matrix: Matrix) -> Head:
    """The head that makes a matrix. Raises Unsupported."""
    stages = tuple({id(column.stage): column.stage for column in matrix.columns if isinstance(column, Made)}.values())
    if not matrix.known:
        raise Unsupported("its transformers make a matrix that does not hold numbers")
    features = len(matrix.schema)
    starts: dict[int, int] = {}
    for stage in stages:
        starts[id(stage)] = features + sum(before.width for before in stages[: len(starts)])
    tables = _tables(matrix)

    def column(index: int, followed: Followed) -> Computed | Tabled:
        if isinstance(followed, Listed):
            return tables[index]
        if isinstance(followed, Raw):
            raise Unsupported("a text, or a date and time, reaches the estimator")
        if isinstance(followed, Made):
            return Computed(starts[id(followed.stage)] + followed.index, followed.steps)
        return followed

    plan = [column(index, followed) for index, followed in enumerate(matrix.columns)]
    return Head(matrix.schema.names, plan, stages, matrix.sparse)


def _tables(matrix: Matrix) -> dict[int, Tabled]:
    """The tables of listed columns by index, as scikit-learn's transformers fill them. Raises Unsupported.

    That includes values which the schema accepts and the transformers refuse: a model that can fail on a row is left to
    the estimator, which says why.
    """
    listed = {index: column for index, column in enumerate(matrix.columns) if isinstance(column, Listed)}
    if not listed:
        return {}
    schema = matrix.schema
    values = _listed_values(matrix)
    usual = usual_row(schema)
    for source, of_source in values.items():
        usual[source] = of_source[0]
    known = np.tile(usual, (max(map(len, values.values()), default=1), 1))
    for source, of_source in values.items():
        known[: len(of_source), source] = of_source
    missing, unlisted = usual.copy(), usual.copy()
    for source in values:
        if schema.features[source].nullable:
            missing[source] = math.nan
        if schema.features[source].kind in ("number", "integer"):
            unlisted[source] = max(values[source]) + 1.0
    chosen = list(listed)
    of_known = _filled(matrix, known, chosen)
    # calls apart: a missing value changes the dtype of a pandas column, and must not do so for the others
    takes_missing = any(schema.features[source].nullable for source in values)
    of_missing = _filled(matrix, missing[None], chosen)[0] if takes_missing else np.full(len(chosen), math.nan)
    takes_unlisted = any(column.searched is not None for column in listed.values())
    of_unlisted = _filled(matrix, unlisted[None], chosen)[0] if takes_unlisted else np.full(len(chosen), math.nan)

    def table(place: int, followed: Listed) -> Tabled:
        source = followed.source
        count = len(values[source])
        for_missing = of_missing[place] if schema.features[source].nullable else math.nan
        for_unlisted = of_unlisted[place] if followed.searched is not None else math.nan
        cells = (*of_known[:count, place].tolist(), float(for_missing), float(for_unlisted))
        return Tabled(source, cells, None if followed.searched is None else tuple(values[source]))

    return {index: table(place, followed) for place, (index, followed) in enumerate(listed.items())}


def _listed_values(matrix: Matrix) -> dict[int, list[float]]:
    """By the index of a feature with few values, all values to try."""
    values: dict[int, set[float]] = {}
    for column in matrix.columns:
        if isinstance(column, Listed):
            feature = matrix.schema.features[column.source]
            codes = range(2 if feature.kind == "boolean" else len(feature.categories) + feature.open)
            values.setdefault(column.source, set()).update(codes if column.searched is None else column.searched)
    return {source: sorted(map(float, listed)) for source, listed in values.items()}


def usual_row(schema: Schema) -> Rows:
    """A row of ordinary values."""
    return np.array([_usual_value(feature) for feature in schema.features], schema.dtype)


def _usual_value(feature: Feature) -> Any:
    if feature.kind == "text":
        return "text"
    return feature.seen[0] if feature.seen else feature.minimum or 0.0


def _filled(matrix: Matrix, rows: Rows, chosen: list[int]) -> Rows:
    """The chosen columns of the matrix that scikit-learn makes of rows. Raises Unsupported."""
    try:
        made = matrix.transformed(rows)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"its transformers refuse values that the features accept: {error}") from error
    if made.shape != (len(rows), len(matrix.columns)):
        raise Unsupported("its transformers make another matrix than expected")
    if getattr(made, "dtype", None) == np.float32 and not matrix.single:
        raise Unsupported("its transformers make float32")
    return dense(made[:, chosen] if hasattr(made, "toarray") else np.asarray(made)[:, chosen])


def dense(made: Any) -> Rows:
    """A transformer's output as float64. Raises Unsupported where it holds no numbers."""
    plain = np.asarray(made.toarray() if hasattr(made, "toarray") else made)
    try:
        numbers: Rows = plain.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise Unsupported("its transformers make a matrix that does not hold numbers") from error
    return numbers
