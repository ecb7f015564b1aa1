"""The quick way to rows gives what the slow way gives, or leaves it to the slow way."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidRows
from registry.rows.decoding import InstanceDecoder
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema

FEATURES = (
    Feature(name="size", kind="number", minimum=-2.0, maximum=2.0),
    Feature(name="lot (m²)", kind="number", nullable=True),
    Feature(name="rooms", kind="integer", minimum=0, maximum=9, nullable=True),
    Feature(name="sold", kind="boolean"),
    Feature(name="colour", kind="category", categories=("red", "blue", 3), nullable=True),
)
SCHEMA = Schema(FEATURES)
DECODER = InstanceDecoder(FEATURES)
decode = msgspec.json.Decoder(list[DECODER.type]).decode  # type: ignore[name-defined]

ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.floats(-3, 3),
    st.sampled_from(["red", "blue", "green", "3", 3, 3.0]),
)
GOOD = st.tuples(
    st.floats(-2, 2),
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70),
    st.none() | st.integers(0, 9) | st.integers(0, 9).map(float),
    st.booleans(),
    st.sampled_from([None, "red", "blue", 3]),
)


def quick(body: bytes) -> Rows | None:
    try:
        instances = decode(body)
    except msgspec.MsgspecError:
        return None
    return DECODER.rows(instances)


def slow(body: bytes) -> Rows | None:
    try:
        return SCHEMA.rows(msgspec.json.decode(body))
    except InvalidRows:
        return None


def body_of(rows: list[tuple[Any, ...]], *, named: bool) -> bytes:
    names = SCHEMA.names
    return json.dumps([dict(zip(names, row, strict=True)) if named else list(row) for row in rows]).encode()


@given(rows=st.lists(GOOD, min_size=1, max_size=4), named=st.booleans())
def test_good_instances_take_the_quick_way_to_the_same_bits(rows: list[tuple[Any, ...]], named: bool) -> None:  # noqa: FBT001
    body = body_of(rows, named=named)
    found, expected = quick(body), slow(body)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found, expected)


@given(rows=st.lists(st.tuples(*[ANYTHING] * 5), min_size=1, max_size=3), named=st.booleans())
def test_whatever_the_quick_way_accepts_the_slow_way_accepts(rows: list[tuple[Any, ...]], named: bool) -> None:  # noqa: FBT001
    body = body_of(rows, named=named)
    found = quick(body)
    if found is not None:
        np.testing.assert_array_equal(found, slow(body))


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"[[1, null, 1, true, null], {}]",
        b'[{"size": 1}]',
        b"[[1, null, 1, true, null, 5]]",
        b"[[1, null, 1.5, true, null]]",
        b"[[5, null, 1, true, null]]",
        b'[[1, null, 1, true, "green"]]',
        b"[[1, null, 1, true, true]]",
        b"[[true, null, 1, true, null]]",
        b'[["1", null, 1, true, null]]',
        b"[[1, null, 1, 1, null]]",
    ],
)
def test_instances_that_are_not_good_are_left_to_the_slow_way(body: bytes) -> None:
    assert quick(body) is None


def test_names_that_json_has_to_escape_take_no_quick_way() -> None:
    assert not InstanceDecoder.fits([Feature(name='5" pipes', kind="number")])
    assert not InstanceDecoder.fits([Feature(name="C:\\", kind="number")])
    assert InstanceDecoder.fits(FEATURES)
