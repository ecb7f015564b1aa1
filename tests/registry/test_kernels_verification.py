"""A compiled model that is off by a single bit is found out, and probes go where models break."""

from __future__ import annotations

import numpy as np
import pytest

from registry.estimator import Outputs
from registry.kernels import probe_rows, verify
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema

SCHEMA = Schema(
    [
        Feature(name="size", kind="number", nullable=True, minimum=-4.0, maximum=9.0, seen=(-1.0, 3.0)),
        Feature(name="floors", kind="integer", minimum=0.0, maximum=12.0, seen=(1.0, 4.0)),
        Feature(name="city", kind="category", categories=("Basel", "Bern", "Zug"), nullable=True),
        Feature(name="lift", kind="boolean"),
    ]
)
BACKGROUND = np.array([[0.3, 2.0, 1.0, 0.0], [-0.7, 1.0, 0.0, 1.0]])
ROWS = np.array([[1.0], [2.0], [3.0]])


def halves(rows: Rows) -> Outputs:
    return rows / 2


def off_by_a_bit(rows: Rows) -> Outputs:
    return np.where(rows == 2.0, np.nextafter(rows / 2, 9), rows / 2)


def off_in_a_batch(rows: Rows) -> Outputs:
    return halves(rows) if len(rows) == 1 else np.nextafter(rows / 2, 9)


def wrong_sign_of_zero(rows: Rows) -> Outputs:
    return np.where(rows == 0.0, -0.0, rows / 2)


def refusing(rows: Rows) -> Outputs:
    if (rows == 2.0).any():
        raise ValueError("Input contains 2")
    return halves(rows)


def test_same_bytes_are_verified() -> None:
    assert verify(halves, lambda rows: rows * 0.5, ROWS)


def test_single_bit_in_a_single_row_is_refused() -> None:
    assert not verify(off_by_a_bit, halves, ROWS)


def test_sign_of_zero_is_refused() -> None:
    assert not verify(wrong_sign_of_zero, halves, np.array([[0.0], [1.0]]))


def test_answer_that_depends_on_the_batch_is_refused() -> None:
    assert not verify(off_in_a_batch, off_in_a_batch, ROWS)


def test_estimator_that_depends_on_the_batch_is_taken_at_its_word_for_single_rows() -> None:
    assert verify(halves, off_in_a_batch, ROWS)


def test_of_many_rows_that_depend_on_the_batch_some_are_asked_about_alone() -> None:
    rows = np.linspace(1.0, 2.0, 50)[:, None]
    asked = []

    def reference(rows: Rows) -> Outputs:
        asked.append(len(rows))
        return off_in_a_batch(rows)

    assert verify(halves, reference, rows, most=10)
    assert asked == [50, *[1] * 10]
    assert not verify(lambda rows: np.nextafter(rows / 2, 0), off_in_a_batch, rows, most=10)


def test_row_that_is_not_asked_about_alone_must_be_close() -> None:
    rows = np.linspace(1.0, 2.0, 50)[:, None]
    between = rows[2, 0]  # not among ten that are spread over fifty

    def wrong_at_one(rows: Rows) -> Outputs:
        return np.where(rows == between, 0.0, rows / 2)

    assert not verify(wrong_at_one, off_in_a_batch, rows, most=10)


@pytest.mark.parametrize("width", [0, 2])
def test_another_width_is_refused(width: int) -> None:
    assert not verify(lambda rows: np.zeros((len(rows), width)), lambda rows: np.zeros((len(rows), 1)), ROWS)


def test_missing_answers_are_the_same_whatever_their_bits() -> None:
    other = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0]
    assert verify(lambda rows: np.full((len(rows), 1), other), lambda rows: np.full((len(rows), 1), np.nan), ROWS)
    assert not verify(halves, lambda rows: np.full((len(rows), 1), np.nan), ROWS)


def test_row_that_the_estimator_refuses_must_be_answered_nan() -> None:
    assert not verify(halves, refusing, ROWS)
    assert verify(lambda rows: np.where(rows == 2.0, np.nan, rows / 2), refusing, ROWS)


def test_probes_are_rows_that_the_schema_accepts() -> None:
    instances = [SCHEMA.instance(row) for row in probe_rows(SCHEMA, BACKGROUND)]
    assert len(SCHEMA.rows(instances)) == len(instances)


def test_probes_hold_every_bound_category_and_missing_value() -> None:
    probes = probe_rows(SCHEMA, BACKGROUND)
    assert {-4.0, 9.0, -1.0, 3.0} <= set(probes[:, 0])
    assert {0.0, 12.0, 1.0, 4.0} <= set(probes[:, 1])
    assert {0.0, 1.0, 2.0} <= set(probes[:, 2])
    assert {0.0, 1.0} == set(probes[:, 3])
    assert np.isnan(probes[:, [0, 2]]).all(axis=1).any()
    assert not np.isnan(probes[:, [1, 3]]).any()


def test_probes_hold_the_neighbours_of_the_background() -> None:
    probes = probe_rows(SCHEMA, BACKGROUND)
    single = np.float32(0.3)
    for neighbour in (
        np.nextafter(0.3, 1),
        np.nextafter(0.3, 0),
        np.float64(single),
        np.float64(np.nextafter(single, np.float32(1))),
        np.float64(np.nextafter(single, np.float32(0))),
    ):
        assert neighbour in probes[:, 0]
