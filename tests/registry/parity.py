"""Compiled models beside their estimators: tables to fit on, rows that hypothesis makes, answers compared as bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from registry.asking import estimator_compute, layout_of
from registry.estimator import Compute, Outputs
from registry.kernels import compile_estimator
from registry.rows.features import Feature, Rows
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema

ROWS = 300


def numbers(*, missing: bool = False, features: int = 5) -> pd.DataFrame:
    """A table of numbers; the second column's are float32's, one in ten of the third is missing if so wished."""
    rng = np.random.default_rng(7)
    table = pd.DataFrame(rng.normal(size=(ROWS, features)), columns=[f"x{i}" for i in range(features)])
    table["x1"] = table["x1"].astype(np.float32).astype(np.float64)
    if missing:
        table.loc[rng.random(ROWS) < 0.1, "x2"] = np.nan
    return table


def mixed() -> pd.DataFrame:
    """A table of all kinds of columns; income and city are missing here and there."""
    rng = np.random.default_rng(11)
    table = pd.DataFrame(
        {
            "age": rng.normal(40, 12, ROWS),
            "income": rng.lognormal(8, 1, ROWS),
            "rooms": rng.integers(1, 6, ROWS),
            "city": rng.choice(["Basel", "Bern", "Genf", "Zug"], ROWS, p=[0.5, 0.3, 0.17, 0.03]).astype(object),
            "heating": pd.Categorical(rng.choice(["gas", "oil", "wood"], ROWS)),
            "owner": rng.random(ROWS) < 0.5,
        }
    )
    table.loc[rng.random(ROWS) < 0.1, "income"] = np.nan
    table.loc[rng.random(ROWS) < 0.1, "city"] = None
    return table


def target(table: pd.DataFrame, classes: int = 0) -> Any:
    """What depends on the first columns and on chance: a number, or one of so many classes."""
    rng = np.random.default_rng(3)
    values = table.iloc[:, 0].to_numpy() + 0.5 * rng.normal(size=len(table)) * table.iloc[:, 0].std()
    if not classes:
        return values
    return np.array(["a", "b", "c", "d", "e", "f", "g", "h", "i"])[pd.qcut(values, classes, labels=False)]


@dataclass(frozen=True)
class Pair:
    """An estimator's own way to answer and the compiled one."""

    estimator: Any
    schema: Schema
    reference: Compute
    compiled: Compute

    def assert_same(self, rows: Rows) -> None:
        """In a batch and alone the same bytes as the estimator's for the row alone."""
        answers = self.compiled(rows)
        expected = np.vstack([self._expected(row[None]) for row in rows])
        assert answers.shape == expected.shape
        assert_same_bytes(answers, expected)
        assert_same_bytes(np.vstack([self.compiled(row[None]) for row in rows]), expected)

    def assert_same_in_a_batch(self, rows: Rows) -> None:
        """The same bytes as the estimator's for the same batch."""
        assert_same_bytes(self.compiled(rows), self._expected(rows))

    def _expected(self, rows: Rows) -> Outputs:
        # scikit-learn adds all values up to see whether one is missing, which overflows for the largest
        with np.errstate(all="ignore"):
            return self.reference(rows)


def assert_same_bytes(answers: Outputs, expected: Outputs) -> None:
    np.testing.assert_array_equal(answers, expected)
    assert np.ascontiguousarray(answers).tobytes() == np.ascontiguousarray(expected).tobytes()


def pair(estimator: Any, table: pd.DataFrame, y: Any, *, frame: bool = False, margin: float | None = 1.0) -> Pair:
    """Fit on the table and compile."""
    given = table if frame else table.to_numpy()
    estimator.fit(given, y)
    schema = Schema(infer_features(table, margin), "frame" if frame else "array")
    layout = layout_of(estimator, given)
    compiled = compile_estimator(estimator, schema, layout)
    return Pair(estimator, schema, estimator_compute(estimator, schema, layout), compiled)


def rows_of_table(schema: Schema, table: pd.DataFrame) -> Rows:
    """A table as a client would send it."""
    cells = table.astype(object).where(table.notna(), None).to_numpy(dtype=object).tolist()
    return schema.rows([[cell.item() if isinstance(cell, np.generic) else cell for cell in row] for row in cells])


def pair_and_values(make: Callable[[], Any], classes: int) -> tuple[Pair, list[float]]:
    """A pair fitted on `numbers`, of so many classes or on numbers for 0, and values to make rows of."""
    table = numbers()
    return pair(make(), table, target(table, classes)), around(table["x0"].tolist()[:20])


def around(values: Sequence[float]) -> list[float]:
    """Values, their neighbours, their float32 neighbours, and the middles where rounding to float32 turns."""
    exact = np.unique(np.asarray(values, np.float64))
    single = exact.astype(np.float32)
    below, above = np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf))
    found = np.concatenate([exact, *(part.astype(np.float64) for part in (single, below, above))])
    middles = [(part.astype(np.float64) + single) / 2 for part in (below, above)]
    pool = np.concatenate([found, *middles])
    pool = np.unique(np.concatenate([pool, np.nextafter(pool, -np.inf), np.nextafter(pool, np.inf)]))
    return [float(value) for value in pool if np.isfinite(value)]


def rows_of(schema: Schema, interesting: Sequence[float] = (0.0,), count: int = 8) -> st.SearchStrategy[Rows]:
    """Up to so many rows that the schema accepts; numbers are often interesting ones."""
    row = st.tuples(*(_cells(feature, interesting) for feature in schema.features))
    return st.lists(row, min_size=1, max_size=count).map(lambda rows: np.array(rows, np.float64))


def _cells(feature: Feature, interesting: Sequence[float]) -> st.SearchStrategy[float]:
    cells: st.SearchStrategy[float]
    if feature.kind == "category":
        cells = st.sampled_from([float(code) for code in range(len(feature.categories))])
    elif feature.kind == "boolean":
        cells = st.sampled_from([0.0, 1.0])
    else:
        low = -1e6 if feature.minimum is None else feature.minimum
        high = 1e6 if feature.maximum is None else feature.maximum
        if feature.kind == "integer":
            cells = st.integers(int(np.ceil(low)), int(np.floor(high))).map(float)
        else:
            inside = [value for value in interesting if low <= value <= high]
            cells = st.floats(low, high)
            if inside:
                cells = st.one_of(st.sampled_from(inside), cells)
    return st.one_of(cells, st.just(float("nan"))) if feature.nullable else cells
