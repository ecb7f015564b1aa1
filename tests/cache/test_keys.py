"""Keys: equal where the answers must be, different everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cache.keys import KEY_BYTES, Rows, canonical_bytes, key_prefix, row_keys

ANY_ROWS = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats())


def keys_of(*values: float, merge_zeros: bool = False) -> bytes:
    (key,) = row_keys(b"prefix", np.array([values]), merge_zeros=merge_zeros)
    return key


def other_nan() -> float:
    bits = np.array([0xFFF8_0000_0000_0BAD], dtype=np.uint64)
    nan: float = bits.view(np.float64)[0]
    return nan


@given(rows=ANY_ROWS, merge_zeros=st.booleans())
def test_canonical_rows_are_equal_to_the_rows(rows: Rows, *, merge_zeros: bool) -> None:
    canonical = np.frombuffer(canonical_bytes(rows, merge_zeros=merge_zeros), dtype="<f8")
    np.testing.assert_array_equal(canonical, rows.ravel())


@given(rows=ANY_ROWS, merge_zeros=st.booleans())
def test_row_has_the_same_key_alone_and_in_any_layout(rows: Rows, *, merge_zeros: bool) -> None:
    keys = row_keys(b"prefix", rows, merge_zeros=merge_zeros)
    assert keys == row_keys(b"prefix", np.asfortranarray(rows), merge_zeros=merge_zeros)
    assert keys == [row_keys(b"prefix", row[np.newaxis], merge_zeros=merge_zeros)[0] for row in rows]
    assert {len(key) for key in keys} == {KEY_BYTES}


@given(st.lists(st.floats(allow_nan=False).map(lambda value: value + 0.0), min_size=2, max_size=50, unique=True))
def test_different_rows_have_different_keys(values: list[float]) -> None:
    keys = row_keys(b"prefix", np.array(values)[:, np.newaxis], merge_zeros=True)
    assert len(set(keys)) == len(values)


def test_neighbouring_numbers_have_different_keys() -> None:
    assert keys_of(0.1) != keys_of(float(np.nextafter(0.1, 1)))


def test_an_integer_and_its_float_have_one_key() -> None:
    assert keys_of(1) == keys_of(1.0)


def test_zeros_are_one_only_where_the_model_cannot_tell_them_apart() -> None:
    assert keys_of(-0.0, 1.0, merge_zeros=True) == keys_of(0.0, 1.0, merge_zeros=True)
    assert keys_of(-0.0, 1.0) != keys_of(0.0, 1.0)


@pytest.mark.parametrize("merge_zeros", [True, False])
def test_every_nan_is_the_same_nan(*, merge_zeros: bool) -> None:
    assert keys_of(np.nan, merge_zeros=merge_zeros) == keys_of(other_nan(), merge_zeros=merge_zeros)
    assert keys_of(np.nan, merge_zeros=merge_zeros) == keys_of(-np.nan, merge_zeros=merge_zeros)


def test_rows_of_the_caller_are_left_alone() -> None:
    rows = np.array([[-0.0, other_nan()]])
    before = rows.tobytes()
    canonical_bytes(rows, merge_zeros=True)
    assert rows.tobytes() == before


def test_no_rows_have_no_keys() -> None:
    assert row_keys(b"prefix", np.empty((0, 3)), merge_zeros=True) == []


def test_prefix_tells_operation_model_and_parameters_apart() -> None:
    prefixes = {
        key_prefix("predict", "m1"),
        key_prefix("explain", "m1"),
        key_prefix("predict", "m2"),
        key_prefix("predict", "m1", b"{}"),
        key_prefix("predict", "m1", b""),
        key_prefix("predictm1"),
        key_prefix("predict", "m", "1"),
    }
    assert len(prefixes) == 7


def test_same_row_under_another_prefix_has_another_key() -> None:
    rows = np.ones((1, 3))
    assert row_keys(b"a", rows, merge_zeros=True) != row_keys(b"b", rows, merge_zeros=True)


OBJECTS = st.lists(
    st.tuples(st.none() | st.text(max_size=4), st.floats(allow_nan=False) | st.just(np.nan)), min_size=2, max_size=4
)


@given(OBJECTS)
def test_rows_with_texts_have_equal_keys_only_where_they_are_equal(cells: list[tuple[str | None, float]]) -> None:
    keys = row_keys(b"prefix", np.array(cells, dtype=object), merge_zeros=False)
    shown = [repr((text, float(number))) for text, number in cells]
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert len(set(keys)) == len(set(shown))
    assert dict(zip(shown, keys, strict=True)) == {text: keys[shown.index(text)] for text in shown}


def test_the_boundaries_of_texts_count() -> None:
    rows = np.array([["a", "bc"], ["ab", "c"], ["", "abc"], [None, "abc"]], dtype=object)
    assert len(set(row_keys(b"prefix", rows, merge_zeros=False))) == 4
