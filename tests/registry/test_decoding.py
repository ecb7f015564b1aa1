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


OTHERS = (
    Feature(name="note", kind="text", dtype="str", max_length=8),
    Feature(name="remark", kind="text", dtype="object", nullable=True),
    Feature(name="when", kind="datetime", dtype="datetime64[us]", nullable=True),
    Feature(name="day", kind="datetime", dtype="str", format="%Y-%m-%d"),
    Feature(name="city", kind="category", dtype="str", categories=("Bern", "Rome"), open=True, nullable=True),
    Feature(name="step", kind="category", categories=(0.5, 1.0, 2.5)),
    Feature(name="size", kind="number", nullable=True),
    Feature(name="sold", kind="boolean", dtype="bool"),
)


def test_days_are_described_as_dates() -> None:
    formats = [feature.json_schema()["format"] for feature in OTHERS if feature.kind == "datetime"]
    assert formats == ["date-time", "date"]


STRINGS = st.text(max_size=10) | st.sampled_from(
    [
        "2024-05-01",
        "2024-05-01T12:00Z",
        "2024-122",
        "9999-01-01",
        "2016-12-31T23:59:60Z",
        "Bern",
        "Oslo",
        "a\0b",
        "\u202e",
    ]
)
MIXED = st.tuples(*[st.none() | STRINGS | st.sampled_from([0, 1, 0.5, 2.5, True, False])] * len(OTHERS))
FITTING = st.tuples(
    st.sampled_from(["", "héllo", "\u202eabc", "a\nb"]),
    st.sampled_from([None, "x" * 500, "\U0001f600"]),
    st.sampled_from([None, "2024-05-01", "2024-05-01T12:00:00.5+02:00", "2024-122"]),
    st.sampled_from(["2024-05-01", "2024-W18-3"]),
    st.sampled_from([None, "Bern", "Oslo", "", "▫unlisted▫"]),
    st.sampled_from([0.5, 1, 1.0, 2.5]),
    st.none() | st.floats(-3, 3),
    st.booleans(),
)


@pytest.mark.parametrize("features", [OTHERS, tuple(f for f in OTHERS if f.kind != "text")], ids=["texts", "numbers"])
@pytest.mark.parametrize("fitting", [True, False])
@given(data=st.data())
def test_texts_times_and_open_categories_take_the_quick_way_to_the_same_cells(
    features: tuple[Feature, ...],
    fitting: bool,  # noqa: FBT001
    data: st.DataObject,
) -> None:
    rows = data.draw(st.lists(FITTING if fitting else MIXED, min_size=1, max_size=3))
    rows = [row[len(OTHERS) - len(features) :] for row in rows]
    named = data.draw(st.booleans())
    schema, decoder = Schema(features, "frame"), InstanceDecoder(features)
    body = msgspec.json.encode([dict(zip(schema.names, row, strict=True)) if named else list(row) for row in rows])
    try:
        found = decoder.rows(msgspec.json.Decoder(list[decoder.type]).decode(body))  # type: ignore[name-defined]
    except msgspec.MsgspecError:
        found = None
    try:
        expected = schema.rows(msgspec.json.decode(body))
    except InvalidRows:
        expected = None
    assert not (fitting and expected is None)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.dtype == expected.dtype == schema.dtype
        assert list(map(repr, found.ravel().tolist())) == list(map(repr, expected.ravel().tolist()))


def test_names_that_json_has_to_escape_take_no_quick_way() -> None:
    assert not InstanceDecoder.fits([Feature(name='5" pipes', kind="number")])
    assert not InstanceDecoder.fits([Feature(name="C:\\", kind="number")])
    assert InstanceDecoder.fits(FEATURES)


def test_values_that_an_open_category_does_not_list_leave_nothing_behind() -> None:
    feature = Feature(name="city", kind="category", dtype="str", categories=("Bern",), open=True)
    decoder = InstanceDecoder([feature])
    (_, codes), *_ = decoder._codes
    rows = decoder.rows([(f"city {number}",) for number in range(10_000)])
    assert rows is not None
    assert set(rows[:, 0].tolist()) == {1.0}
    assert dict(codes) == {"Bern": 0.0}
