"""Columns of Arrow become the same rows, and are refused with the same words, as the JSON of their values."""

from __future__ import annotations

import datetime
import io
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.errors import InvalidRows
from registry.imports import has_arrow
from registry.rows.features import Feature
from registry.rows.schema import Schema

if not has_arrow():
    pytest.skip("needs pyarrow, the extra `arrow`", allow_module_level=True)

from registry.rows.arrow import ColumnReader, Format, NotATable, TableWriter, open_file, read_batches

import pyarrow as pa  # isort: skip - hidden from pandas until the line above
import pyarrow.parquet as pq  # isort: skip

UTC = datetime.UTC
FEATURES = (
    Feature(name="size", kind="number", minimum=0.0, maximum=10.0),
    Feature(name="gap", kind="number", nullable=True),
    Feature(name="count", kind="integer", nullable=True),
    Feature(name="is new", kind="boolean", nullable=True),
    Feature(name="colour", kind="category", dtype="str", categories=("red", "blue"), nullable=True),
    Feature(name="grade", kind="category", dtype="int64", categories=(1, 2)),
    Feature(name="town", kind="category", dtype="str", categories=("Bern",), open=True),
    Feature(name="when", kind="datetime", dtype="datetime64[us]", nullable=True),
    Feature(name="day", kind="datetime", dtype="str", format="%Y-%m-%d"),
)
TEXT = Feature(name="note", kind="text", dtype="object", nullable=True, max_length=5)
GOOD: dict[str, list[Any]] = {
    "size": [1.5, 0.0, 10.0],
    "gap": [None, -2.5, 1e300],
    "count": [3, None, -4],
    "is new": [True, None, False],
    "colour": ["blue", None, "red"],
    "grade": [2, 1, 2],
    "town": ["Bern", "Rome", "a" * 100],
    "when": ["2026-01-31T12:00:00.000001Z", None, "1969-12-31T23:59:59Z"],
    "day": ["2026-01-31", "1700-02-01", "2255-12-31"],
}
TIMES = [datetime.datetime(2026, 1, 31, 12, 0, 0, 1), None, datetime.datetime(1969, 12, 31, 23, 59, 59)]
DAYS = [datetime.date(2026, 1, 31), datetime.date(1700, 2, 1), datetime.date(2255, 12, 31)]


def columns(**changes: pa.Array) -> dict[str, pa.Array]:
    plain = {name: pa.array(values) for name, values in GOOD.items()}
    return plain | {name.replace("_", " "): column for name, column in changes.items()}


def read(table: pa.Table, kind: Format, directory: Path, features: tuple[Feature, ...] = FEATURES) -> Any:
    schema = Schema(features)
    path = directory / "table"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    with path.open("rb") as file:
        found, batches = read_batches(open_file(file.fileno()), kind, len(schema))
        reader, count = ColumnReader(schema, found), 0
        rows: list[Any] = []
        for batch in batches:
            rows.append(reader.rows(batch, count))
            count += batch.num_rows
    return np.concatenate(rows)


def json_rows(features: tuple[Feature, ...], values: dict[str, list[Any]]) -> Any:
    names = list(values)
    return Schema(features).rows([dict(zip(names, row, strict=True)) for row in zip(*values.values(), strict=True)])


FORMS: list[dict[str, pa.Array]] = [
    {},
    {"size": pa.array([1.5, 0.0, 10.0], pa.float32()), "gap": pa.array([math.nan, -2.5, 1e300])},
    {"size": pa.array([Decimal("1.5"), Decimal(0), Decimal(10)]), "count": pa.array([3, None, -4], pa.int8())},
    {"count": pa.array([3.0, math.nan, -4.0]), "grade": pa.array([2.0, 1.0, 2.0])},
    {"colour": pa.array(GOOD["colour"]).dictionary_encode(), "town": pa.array(GOOD["town"], pa.large_string())},
    {"town": pa.array(GOOD["town"], pa.string_view()), "grade": pa.array([2, 1, 2], pa.uint64())},
    {"grade": pa.array([2, 1, 2]).dictionary_encode(), "size": pa.array([1.5, 0.0, 10.0]).dictionary_encode()},
    {"when": pa.array(TIMES, pa.timestamp("us")), "day": pa.array(DAYS, pa.date32())},
    {"when": pa.array(TIMES, pa.timestamp("ns", "America/New_York")), "day": pa.array(DAYS, pa.date64())},
    {"day": pa.array([datetime.datetime(day.year, day.month, day.day) for day in DAYS], pa.timestamp("s"))},
]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("changes", FORMS, ids=range(len(FORMS)))
def test_columns_of_any_type_and_order_are_the_rows_of_their_json(
    tmp_path: Path, kind: Format, changes: dict[str, pa.Array]
) -> None:
    if kind == "parquet" and any(pa.types.is_string_view(column.type) for column in changes.values()):
        pytest.skip("Parquet has one type of texts")
    table = pa.table(dict(reversed(columns(**changes).items())))
    assert np.array_equal(read(table, kind, tmp_path), json_rows(FEATURES, GOOD), equal_nan=True)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_are_kept_and_an_index_of_pandas_is_left_out(tmp_path: Path, kind: Format) -> None:
    values: dict[str, list[Any]] = {"size": [1.0, 2.0, 3.0], "note": ["\u00e9a", None, ""]}
    features = (FEATURES[0], TEXT)
    table = pa.table(values | {"__index_level_0__": [7, 8, 9]})
    found = read(table, kind, tmp_path, features)
    assert found.tolist() == json_rows(features, values).tolist()


BAD: list[tuple[str, pa.Array, Any]] = [
    ("size", pa.array([1.0, None, 2.0]), None),
    ("size", pa.array([1.0, math.nan, 2.0]), math.nan),
    ("size", pa.array([1.0, math.inf, 2.0]), math.inf),
    ("size", pa.array([1.0, -0.5, 2.0]), -0.5),
    ("size", pa.array([1, 11, 2]), 11),
    ("size", pa.array(["1", "1", "1"]), "1"),
    ("size", pa.array([True, True, True]), True),
    ("count", pa.array([3.0, 3.5, 4.0]), 3.5),
    ("is new", pa.array([1, 1, 1]), 1),
    ("is new", pa.array(["true", "true", "true"]), "true"),
    ("colour", pa.array(["red", "green", "red"]), "green"),
    ("colour", pa.array(["red", "green", "red"]).dictionary_encode(), "green"),
    ("colour", pa.array([1, 1, 1]), 1),
    ("grade", pa.array([1, 3, 1]), 3),
    ("grade", pa.array([True, True, True]), True),
    ("grade", pa.array([1, None, 1]), None),
    ("town", pa.array(["x", "a\0b", "x"]), "a\0b"),
    ("town", pa.array(["x", "a" * 10_001, "x"]), "a" * 10_001),
    ("when", pa.array([1, 1, 1]), 1),
    ("when", pa.array(["2026-01-01", "soon", None]), "soon"),
    ("when", pa.array([TIMES[0], datetime.datetime(2256, 1, 1), None], pa.timestamp("us")), "2256-01-01T00:00:00"),
    ("when", pa.array([0, -(2**62), 0], pa.int64()).cast(pa.timestamp("s")), "1600-01-01"),
    ("day", pa.array([DAYS[0], None, DAYS[0]]), None),
    ("day", pa.array([TIMES[2]] * 3, pa.timestamp("us")), "1969-12-31T23:59:59"),
]


@pytest.mark.parametrize(("name", "column", "value"), BAD, ids=range(len(BAD)))
def test_what_does_not_fit_is_refused_as_in_json(tmp_path: Path, name: str, column: pa.Array, value: Any) -> None:
    with pytest.raises(InvalidRows) as expected:
        json_rows(FEATURES, {each: [values[0]] for each, values in (GOOD | {name: [value]}).items()})
    with pytest.raises(InvalidRows) as found:
        read(pa.table(columns() | {name: column}), "arrow", tmp_path)
    (wanted,), faults = expected.value.faults, found.value.faults
    assert {(fault.feature, fault.reason) for fault in faults} == {(name, wanted.reason)}
    assert faults[0].instance == (0 if len(faults) > 1 else 1)


NESTED = [
    pa.array([[1.0], [2.0], [3.0]]),
    pa.array([{"a": 1}, {"a": 2}, {"a": 3}]),
    pa.array([b"1", b"2", b"3"]),
    pa.array([datetime.timedelta(1)] * 3),
    pa.array([datetime.time(1)] * 3),
]


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
@pytest.mark.parametrize("column", NESTED, ids=lambda column: str(column.type))
def test_column_of_a_type_that_no_feature_has_is_refused(tmp_path: Path, feature: Feature, column: pa.Array) -> None:
    with pytest.raises(InvalidRows) as refused:
        read(pa.table(columns() | {feature.name: column}), "arrow", tmp_path)
    (fault,) = refused.value.faults
    assert (fault.instance, fault.feature) == (0, feature.name)
    assert fault.reason == "has a type of columns that is not taken"


def test_faults_are_in_order_and_name_the_row_in_the_whole_table(tmp_path: Path) -> None:
    table = pa.table(columns(size=pa.array([1.0, 1.0, -1.0]), grade=pa.array([1, 9, 9])))
    with pytest.raises(InvalidRows) as refused:
        read(table, "arrow", tmp_path)  # two rows a batch
    assert [(fault.instance, fault.feature) for fault in refused.value.faults] == [(1, "grade")]
    with pytest.raises(InvalidRows) as refused:
        read(pa.table(columns(size=pa.array([-1.0, 1.0, 1.0]), grade=pa.array([9, 9, 9]))), "arrow", tmp_path)
    assert [(fault.instance, fault.feature) for fault in refused.value.faults] == [
        (0, "size"),
        (0, "grade"),
        (1, "grade"),
    ]


def test_missing_unknown_and_repeated_columns_are_named(tmp_path: Path) -> None:
    plain = columns()
    size = plain.pop("size")
    with pytest.raises(InvalidRows) as refused:
        read(pa.table(plain | {"colour\n": size}), "arrow", tmp_path)
    assert [(fault.feature, fault.reason) for fault in refused.value.faults] == [
        ("size", "is missing"),
        ("(unreadable)", "is not a feature of this model"),
    ]
    twice = pa.Table.from_arrays([*columns().values(), size], names=[*GOOD, "size"])
    with pytest.raises(InvalidRows) as refused:
        read(twice, "arrow", tmp_path)
    assert [(fault.feature, fault.reason) for fault in refused.value.faults] == [("size", "is there twice")]


def test_offsets_and_texts_that_are_not_valid_are_refused(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 1 << 20, 2], np.int32).tobytes())
    wild = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abcdef")])
    latin = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes()), pa.py_buffer(b"a\xffb")]
    )
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 99, 0], pa.int32()), pa.array(["red"]), safe=False)
    for column in (wild, latin, codes):
        with pytest.raises(NotATable):
            read(pa.table(columns(colour=column)), "arrow", tmp_path)


def test_types_of_a_result_are_those_of_its_first_answers() -> None:
    for kind in ("parquet", "arrow"):
        file = io.BytesIO()
        file.close = lambda: None  # type: ignore[method-assign]
        with TableWriter(file, kind, ["instance", "a", "b", "c", "d"], 2) as writer:
            writer.write([range(1), [1], ["x"], [True], [None]])
            writer.write([range(1, 3), [2, 3], [None, "y"], [False, None], [1.5, None]])
        content = io.BytesIO(file.getvalue())
        found = pq.read_table(content) if kind == "parquet" else pa.ipc.open_stream(content).read_all()
        assert [str(field.type) for field in found.schema] == ["int64", "int64", "string", "bool", "double"]
        assert found.to_pydict() == {
            "instance": [0, 1, 2],
            "a": [1, 2, 3],
            "b": ["x", None, "y"],
            "c": [True, False, None],
            "d": [None, 1.5, None],
        }
