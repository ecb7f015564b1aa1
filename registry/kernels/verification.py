"""Verifies a compiled model: it must answer probe rows with the bits of its estimator, in a batch and alone.

A row alone is asked of the last step alone, about the matrix that the transformers have made of all rows: building a
DataFrame of one row with 500 columns takes longer than all the rest. Some rows are asked of the whole estimator alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from registry.asking import asking, layout_of
from registry.estimator import Compute, Outputs, last_step, qualified_name, steps_of
from registry.kernels.compiling import BOOSTERS, answers_of
from registry.kernels.composites import COMPOSITES
from registry.kernels.ensembles import HISTOGRAM
from registry.kernels.kernel import Unsupported
from registry.kernels.matrix import Made
from registry.kernels.transformers import follow, source_matrix
from registry.outputs import Layout
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema
from registry.rows.times import encode_time

NUDGED_ROWS = 20
"""Background rows whose numbers are moved by the smallest possible steps."""

MAX_CATEGORIES = 64
"""Categories of a feature that are tried; the others are looked up in the same table."""

MAX_VARIED_ROWS = 256
"""Rows in which one feature has a value to be tried; where there are more such values, several features have one."""

WHOLE_ROWS = 3
"""Rows that the whole estimator is asked about alone, where its last step is asked about the others."""

MEMBERS_ROWS = 24
"""Rows that an estimator made of others is asked about alone, which may take each member milliseconds."""

CLOSE_ENOUGH = 1e-9
"""The relative error that a sum in another order explains, of rows that are not asked about alone."""

PYTHON_ROWS = 64
"""Rows that are asked about alone where a head in Python answers a batch otherwise than its rows."""

TEXTS = (
    "",
    " ",
    "a",
    "unknown words: qwxz qwxz \N{PILE OF POO}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}cole NA\N{LATIN CAPITAL LETTER I WITH DIAERESIS}VE",
    "Stra\N{LATIN SMALL LETTER SHARP S}e",
    "e\N{COMBINING ACUTE ACCENT}cole \N{LATIN CAPITAL LETTER I WITH DOT ABOVE}",
    "\N{RIGHT-TO-LEFT MARK}\N{HEBREW LETTER ALEF} \x00 tab\ttab",
    "half of a pair: \ud83d",
    "1 22 333 4_4 5-5 don't e.g. a.b@c.de http://x.y/?z=1",
)
"""Texts to try besides those of the background."""

TIMES = ("1684-01-01", "1969-12-31T23:59:59.999999Z", "1970-01-01", "2000-02-29T12:00:00", "2024-12-31T23:59:59Z")
"""Dates and times to try besides those of the background."""

LONG_TEXT_WORDS = 3000
"""Words of the longest text to try, made of those of the background."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled estimator; `python` names the transformers and members whose own code runs beside what is compiled."""

    compute: Compute
    python: tuple[str, ...]


def compile_verified(
    estimator: Any, schema: Schema, background: Rows, reference: Compute, layout: Layout | None = None
) -> Compiled:
    """The compiled form of an estimator, if it answers probe rows as `reference`, which has `layout`, does.

    Raises Unsupported.
    """
    answers = answers_of(estimator, source_matrix(schema))
    compute, python = answers.compute(layout or layout_of(estimator)), tuple(dict.fromkeys(answers.python))
    rows = probe_rows(schema, background)
    alone = rows_alone(estimator, schema, layout)
    most = MEMBERS_ROWS if type(last_step(estimator)) in COMPOSITES else None
    if not verify(compute, reference, rows, alone=alone, by_row=not python, most=most):
        raise Unsupported("it does not answer as its estimator does")
    return Compiled(compute, python)


def rows_alone(estimator: Any, schema: Schema, layout: Layout | None = None) -> Compute:
    """A function from rows to the estimator's answers, each as for the row alone, and NaN for a row that it refuses.

    Transformers that make each column from one column run once for all rows: a DataFrame of one row and 500 columns
    takes longer than all the rest. What follows them runs for each row of their matrix.
    """
    steps, last = steps_of(estimator)
    matrix, count = source_matrix(schema), 0
    for step in steps:
        matrix = follow(step, matrix)
        if not matrix.known or any(isinstance(column, Made) for column in matrix.columns):
            break
        count += 1
    first, rest = steps[:count], steps[count:]
    ask = asking(last, layout)
    needs_names = bool(rest) or type(last) in (*HISTOGRAM, *COMPOSITES) or qualified_name(type(last)) in BOOSTERS

    def alone(rows: Rows) -> Outputs:
        made = schema.table(rows)
        for step in first:
            made = step.transform(made)
        if not needs_names and isinstance(made, pd.DataFrame):
            made = made.to_numpy(np.float64)
        answers = [answer(_row_of(made, index)) for index in range(len(rows))]
        width = max((found.shape[1] for found in answers if found is not None), default=1)
        return np.vstack([np.full((1, width), np.nan) if found is None else found for found in answers])

    def answer(one: Any) -> Outputs | None:
        try:
            for step in rest:
                one = step.transform(one)
            return ask(one)
        except ValueError:  # the row is refused
            return None

    return alone


def _row_of(made: Any, index: int) -> Any:
    return made.iloc[[index]] if hasattr(made, "iloc") else made[[index]]


def verify(
    compute: Compute,
    reference: Compute,
    rows: Rows,
    *,
    alone: Compute | None = None,
    by_row: bool = True,
    most: int | None = None,
) -> bool:
    """Return whether `compute` answers every row as `reference` does, in a batch and alone.

    Where the reference answers a row in a batch otherwise than alone, because BLAS sums in another order (see
    `linear.py`), the answer alone counts. `alone` is a quicker way to ask the reference about each row alone; some rows
    are asked about without it. A row that the reference refuses must be answered NaN. Where not `by_row`, a head in
    Python may make something else of a batch than of its rows; then so may `compute`. At most `most` rows are asked
    about alone; then the others must be close to their answer in the batch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # encoders warn of unknown values
        answers = compute(rows)
        if by_row and not _same(answers, each_alone(compute, rows)).all():
            return False
        expected = _refused_as_nan(reference, rows, answers)
        different = np.flatnonzero(~_same(answers, expected))
        if most is not None and len(different) > most:
            if not np.allclose(answers[different], expected[different], CLOSE_ENOUGH, CLOSE_ENOUGH, equal_nan=True):
                return False
            different = _spread(different, most)
        if not by_row:
            some = np.unique(
                np.concatenate([_spread(different, PYTHON_ROWS), _spread(np.arange(len(rows)), WHOLE_ROWS)])
            )
            return _is_same_alone(each_alone(compute, rows[some]), reference, rows[some])
        if alone is not None and len(different) > WHOLE_ROWS:
            try:
                expected = alone(rows[different])
            except ValueError:  # the transformers refuse a row
                return _is_same_alone(answers[different], reference, rows[different])
            if not _same(answers[different], expected).all():
                return False
            different = _spread(different, WHOLE_ROWS)
        return _is_same_alone(answers[different], reference, rows[different])


def each_alone(compute: Compute, rows: Rows) -> Outputs:
    """The answers to rows that are asked about one at a time."""
    return np.vstack([compute(row[None]) for row in rows])


def _is_same_alone(answers: Outputs, reference: Compute, rows: Rows) -> bool:
    pairs = zip(answers, rows, strict=True)
    return all(_same(answer[None], _refused_as_nan(reference, row[None], answer[None])).all() for answer, row in pairs)


def _spread(places: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """At most `count` of the places, evenly spread."""
    chosen: NDArray[np.intp] = places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(np.intp)]
    return chosen


def _refused_as_nan(reference: Compute, rows: Rows, like: Outputs) -> Outputs:
    try:
        return reference(rows)
    except ValueError:
        return np.full_like(like, np.nan)


def _same(answers: Outputs, expected: Outputs) -> NDArray[np.bool_]:
    """Which rows have equal bytes, or NaN in the same places."""
    if answers.shape != expected.shape or answers.dtype != expected.dtype:
        return np.zeros(len(answers), bool)
    bits = np.ascontiguousarray(answers).view(np.uint64) == np.ascontiguousarray(expected).view(np.uint64)
    same: NDArray[np.bool_] = (bits | (np.isnan(answers) & np.isnan(expected))).all(axis=1)
    return same


def probe_rows(schema: Schema, background: Rows) -> Rows:
    """Rows to try a compiled model on, all of which the schema accepts. `background` has at least one.

    They are the background; each feature at its bounds, missing, and at each of its categories; odd texts; and numbers
    one float64 and one float32 step up and down.
    """
    tries = [_values_to_try(feature) for feature in schema.features]
    probes = [background, _varied(background, [[v for v in values if v == v] for values in tries])]  # noqa: PLR0124
    probes.append(_varied(background, [[v for v in values if v != v] for values in tries]))  # noqa: PLR0124
    probes += _odd_texts(schema, background)
    nullable = np.array([feature.nullable for feature in schema.features])
    if nullable.any():
        missing = [None if feature.kind == "text" else np.nan for feature in schema.features]
        probes.append(np.where(nullable, np.array(missing, schema.dtype), background[:1]).astype(schema.dtype))
    numbers = [index for index, feature in enumerate(schema.features) if feature.kind == "number"]
    if numbers:
        probes += _nudged(schema, background[:NUDGED_ROWS], numbers)
    return np.vstack(probes)


def _varied(background: Rows, tries: Sequence[Sequence[float]]) -> Rows:
    """Rows of the background in which features have values to try: one of them a row, or several if there are many."""
    cells = [(feature, value) for feature, values in enumerate(tries) for value in values]
    count = min(len(cells), MAX_VARIED_ROWS)
    rows = background[np.arange(count) % len(background)].copy()
    for place, (feature, value) in enumerate(cells):
        rows[place % count, feature] = value
    return rows


def _values_to_try(feature: Feature) -> list[float]:
    missing = [np.nan] if feature.nullable and feature.kind != "text" else []
    match feature.kind:
        case "category":
            unlisted = [float(len(feature.categories))] if feature.open else []
            return [*map(float, range(min(len(feature.categories), MAX_CATEGORIES))), *unlisted, *missing]
        case "boolean":
            return [0.0, 1.0, *missing]
        case "datetime":
            return [*map(encode_time, TIMES), *missing]
    bounds = {feature.minimum, feature.maximum, *(feature.seen or ())} - {None}
    return [*sorted(float(bound) for bound in bounds if bound is not None), *missing]


def _odd_texts(schema: Schema, background: Rows) -> list[Rows]:
    probes = []
    for index, feature in enumerate(schema.features):
        if feature.kind != "text":
            continue
        known = " ".join(cell for cell in background[:, index] if cell)
        long = " ".join(known.split()[:LONG_TEXT_WORDS] * 2)
        texts = [text[: feature.max_length] for text in (*TEXTS, known.upper(), known[::-1], long)]
        rows = background[np.arange(len(texts)) % len(background)].copy()
        rows[:, index] = texts
        probes.append(rows)
    return probes


def _nudged(schema: Schema, rows: Rows, numbers: Sequence[int]) -> list[Rows]:
    features = [schema.features[index] for index in numbers]
    low = np.array([-np.inf if feature.minimum is None else feature.minimum for feature in features])
    high = np.array([np.inf if feature.maximum is None else feature.maximum for feature in features])
    cells = rows[:, numbers].astype(np.float64)
    single = cells.astype(np.float32)
    steps = [
        np.nextafter(cells, -np.inf),
        np.nextafter(cells, np.inf),
        single.astype(np.float64),
        np.nextafter(single, np.float32(-np.inf)).astype(np.float64),
        np.nextafter(single, np.float32(np.inf)).astype(np.float64),
    ]
    probes = []
    for step in steps:
        nudged = rows.copy()
        nudged[:, numbers] = np.clip(step, low, high)
        probes.append(nudged)
    return probes
