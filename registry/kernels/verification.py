"""Holds a compiled model against its estimator: bit for bit, or it is not used."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from registry.model import Compute, Outputs
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema

NUDGED = 20
"""Background rows whose numbers are moved by the smallest possible steps."""

CATEGORIES = 64
"""Categories of a feature that are tried; the others are looked up in the same table."""


def verify(compute: Compute, reference: Compute, rows: Rows) -> bool:
    """Whether `compute` answers every row as `reference` does, in a batch and alone.

    The reference may answer a row in a batch otherwise than alone, where BLAS sums in another order (see
    `linear.py`); then the answer alone counts. A row that the reference refuses must be answered NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # encoders speak of unknown values
        answers = compute(rows)
        alone = np.vstack([compute(row[None]) for row in rows])
        if not _same(answers, alone).all():
            return False
        different = np.flatnonzero(~_same(answers, _refused_as_nan(reference, rows, answers)))
        return all(_same(answers[[i]], _refused_as_nan(reference, rows[[i]], answers[[i]])).all() for i in different)


def _refused_as_nan(reference: Compute, rows: Rows, like: Outputs) -> Outputs:
    try:
        return reference(rows)
    except ValueError:
        return np.full_like(like, np.nan)


def _same(answers: Outputs, expected: Outputs) -> NDArray[np.bool_]:
    """Which rows are the same bytes, or NaN in the same places."""
    if answers.shape != expected.shape or answers.dtype != expected.dtype:
        return np.zeros(len(answers), bool)
    bits = np.ascontiguousarray(answers).view(np.uint64) == np.ascontiguousarray(expected).view(np.uint64)
    same: NDArray[np.bool_] = (bits | (np.isnan(answers) & np.isnan(expected))).all(axis=1)
    return same


def probe_rows(schema: Schema, background: Rows) -> Rows:
    """Rows that a compiled model is tried on, all of which the schema accepts. `background` has at least one.

    The background; each feature at its bounds, missing, and at each of its categories; and numbers one float64 and
    one float32 step up and down.
    """
    probes = [background]
    for index, feature in enumerate(schema.features):
        values = _values_to_try(feature)
        rows = background[np.arange(len(values)) % len(background)].copy()
        rows[:, index] = values
        probes.append(rows)
    nullable = np.array([feature.nullable for feature in schema.features])
    probes.append(np.where(nullable, np.nan, background[:1]))
    probes += _nudged(schema, background[:NUDGED])
    return np.vstack(probes)


def _values_to_try(feature: Feature) -> list[float]:
    missing = [np.nan] if feature.nullable else []
    match feature.kind:
        case "category":
            return [*map(float, range(min(len(feature.categories), CATEGORIES))), *missing]
        case "boolean":
            return [0.0, 1.0, *missing]
    bounds = {feature.minimum, feature.maximum, *(feature.seen or ())} - {None}
    return [*sorted(float(bound) for bound in bounds if bound is not None), *missing]


def _nudged(schema: Schema, rows: Rows) -> list[Rows]:
    numbers = np.array([feature.kind == "number" for feature in schema.features])
    low = np.array([-np.inf if feature.minimum is None else feature.minimum for feature in schema.features])
    high = np.array([np.inf if feature.maximum is None else feature.maximum for feature in schema.features])
    single = rows.astype(np.float32)
    steps = [
        np.nextafter(rows, -np.inf),
        np.nextafter(rows, np.inf),
        single.astype(np.float64),
        np.nextafter(single, np.float32(-np.inf)).astype(np.float64),
        np.nextafter(single, np.float32(np.inf)).astype(np.float64),
    ]
    return [np.where(numbers, np.clip(step, low, high), rows) for step in steps]
