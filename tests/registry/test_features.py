"""Features: what tables show, what instances may hold, and the way to rows and back."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import CannotAdd, Fault, InvalidRows
from registry.rows.features import Feature
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from registry.store.intake import instances_of

FEATURES = (
    Feature(name="number", kind="number", minimum=-10.0, maximum=10.0, nullable=True),
    Feature(name="integer", kind="integer", dtype="int64", minimum=-5.0, maximum=1_000.0),
    Feature(name="boolean", kind="boolean", dtype="bool"),
    Feature(name="text", kind="category", dtype="str", categories=("a", "b", "ä"), nullable=True),
    Feature(name="code", kind="category", dtype="category", categories=(7, 1, 300)),
)
SCHEMA = Schema(FEATURES)
INSTANCES = st.fixed_dictionaries(
    {
        "number": st.none() | st.floats(-10, 10),
        "integer": st.integers(-5, 1_000),
        "boolean": st.booleans(),
        "text": st.sampled_from(["a", "b", "ä", None]),
        "code": st.sampled_from([7, 1, 300]),
    }
)


@given(st.lists(INSTANCES, min_size=1, max_size=5))
def test_instances_survive_the_way_to_rows_and_back(instances: list[dict[str, Any]]) -> None:
    rows = SCHEMA.rows(instances)
    assert rows.shape == (len(instances), 5)
    assert rows.dtype == np.float64
    assert [SCHEMA.instance(row) for row in rows] == instances
    assert np.array_equal(
        SCHEMA.rows([[one[name] for name in SCHEMA.names] for one in instances]), rows, equal_nan=True
    )


@given(st.lists(INSTANCES, min_size=1, max_size=5))
def test_frame_holds_what_the_instances_said(instances: list[dict[str, Any]]) -> None:
    frame = SCHEMA.frame(SCHEMA.rows(instances))
    assert list(frame.columns) == list(SCHEMA.names)
    assert list(map(str, frame.dtypes)) == ["float64", "int64", "bool", "str", "category"]
    back = frame.astype(object).where(frame.notna(), None)
    assert back.to_dict("records") == instances


@given(st.lists(INSTANCES, min_size=1, max_size=9))
def test_a_made_up_instance_fits_whatever_it_is_made_from(instances: list[dict[str, Any]]) -> None:
    made_up = SCHEMA.usual(SCHEMA.rows(instances))
    assert SCHEMA.rows([made_up]).shape == (1, 5)
    for name, value in made_up.items():
        given = [one[name] for one in instances if one[name] is not None]
        assert value is None if not given else min(given) <= value <= max(given) or name in ("number", "integer")


MADE_UP = [
    (Feature(name="x", kind="text", max_length=9), ["Ada Lovelace"[:9], None], "an exampl"),
    (Feature(name="x", kind="datetime"), ["2024-05-06T07:08:09Z"], "2024-05-06T00:00:00Z"),
    (Feature(name="x", kind="datetime", dtype="str", format="%Y-%m-%d"), ["2024-05-06", "2024-05-08"], "2024-05-07"),
    (Feature(name="x", kind="category", dtype="str", categories=("a", "b"), open=True), ["Ada", "Ada", "b"], "b"),
    (Feature(name="x", kind="category", dtype="str", categories=("a", "b"), open=True), ["Ada"], "a"),
    (Feature(name="x", kind="category", dtype="str", categories=("a", "b"), nullable=True), [None, None], None),
    (Feature(name="x", kind="boolean", dtype="bool"), [True, False, True], True),
    (Feature(name="x", kind="number"), [1.23456, 3.45678], 2.35),
    (Feature(name="x", kind="number", seen=(98764.0, 98766.0)), [98764.0, 98766.0], 98765.0),
    (Feature(name="x", kind="number", minimum=0.12345, maximum=0.12345), [0.12345], 0.12345),
    (Feature(name="x", kind="integer", dtype="int64"), [1, 2], 2),
    (Feature(name="x", kind="integer", dtype="int64"), [123456, 123457], 123000),
]


@pytest.mark.parametrize(("feature", "values", "expected"), MADE_UP)
def test_a_made_up_value_is_like_the_values_and_nobodys(feature: Feature, values: list[Any], expected: Any) -> None:
    schema = Schema([msgspec.structs.replace(feature, nullable=feature.nullable or None in values)])
    made_up = schema.usual(schema.rows([[value] for value in values]))
    assert made_up == {"x": expected}
    assert type(made_up["x"]) is type(expected)
    assert schema.rows([made_up]).shape == (1, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(JSON | INSTANCES | st.fixed_dictionaries(dict.fromkeys(SCHEMA.names, JSON)), max_size=4))
def test_any_json_is_rows_or_refused(instances: list[Any]) -> None:
    faults: tuple[Fault, ...] = ()
    try:
        rows = SCHEMA.rows(instances)
    except InvalidRows as error:
        faults, rows = error.faults, np.zeros((len(instances), 5))
        assert faults
    assert len(faults) <= InvalidRows.LIMIT
    assert all(0 <= fault.instance < max(1, len(instances)) for fault in faults)
    assert rows.shape == (len(instances), 5)
    assert not np.isinf(rows).any()
    assert np.isfinite(rows[:, [1, 2, 4]]).all()


def one(feature: Feature, value: Any) -> Any:
    """A value's way through a schema of one feature: itself again, or the reason why not."""
    schema = Schema([feature])
    try:
        return schema.instance(schema.rows([[value]])[0])[feature.name]
    except InvalidRows as error:
        return error.faults[0].reason


NUMBER, INTEGER, BOOLEAN, TEXT, CODE = (msgspec.structs.replace(feature, nullable=False) for feature in FEATURES)
REFUSED = [
    (NUMBER, "1", "must be a number"),
    (NUMBER, True, "must be a number"),
    (NUMBER, [1], "must be a number"),
    (NUMBER, math.nan, "must be finite"),
    (NUMBER, math.inf, "must be finite"),
    (NUMBER, 10**400, "must be finite"),
    (NUMBER, 10.000001, "must be between -10 and 10"),
    (NUMBER, None, "must not be null"),
    (INTEGER, 1.5, "must be an integer"),
    (INTEGER, True, "must be a number"),
    (INTEGER, -6, "must be between -5 and 1000"),
    (INTEGER, None, "must not be null"),
    (BOOLEAN, 1, "must be true or false"),
    (BOOLEAN, "true", "must be true or false"),
    (BOOLEAN, None, "must not be null"),
    (TEXT, "A", "must be one of a, b, ä"),
    (TEXT, 0, "must be one of a, b, ä"),
    (TEXT, [], "must be one of a, b, ä"),
    (TEXT, None, "must not be null"),
    (CODE, 7.0, "must be one of 7, 1, 300"),
    (CODE, True, "must be one of 7, 1, 300"),
    (CODE, "7", "must be one of 7, 1, 300"),
]


@pytest.mark.parametrize(("feature", "value", "reason"), REFUSED)
def test_value_that_does_not_fit_is_refused_with_the_reason(feature: Feature, value: Any, reason: str) -> None:
    assert one(feature, value) == reason


@pytest.mark.parametrize(
    ("feature", "value"),
    [(NUMBER, -10), (NUMBER, 10.0), (NUMBER, -0.0), (INTEGER, 7.0), (BOOLEAN, False), (TEXT, "ä"), (CODE, 300)],
)
def test_value_that_fits_is_kept(feature: Feature, value: Any) -> None:
    assert one(feature, value) == value


def test_reason_does_not_list_hundreds_of_categories() -> None:
    many = Feature(name="many", kind="category", categories=tuple(f"category {i}" for i in range(500)))
    assert one(many, "other") == "must be one of 500 categories"


COLUMNS: list[tuple[Any, str, str, bool]] = [
    (pd.Series([1.5, 2.5]), "number", "float64", False),
    (pd.Series([1.5, None]), "number", "float64", True),
    (pd.Series([1.5, 2.5], dtype="float32"), "number", "float32", False),
    (pd.Series([1, 2]), "integer", "int64", False),
    (pd.Series([1, 2], dtype="int8"), "integer", "int8", False),
    (pd.Series([1, 2], dtype="uint8"), "integer", "uint8", False),
    (pd.Series([1, None], dtype="Int64"), "integer", "Int64", True),
    (pd.Series([True, False]), "boolean", "bool", False),
    (pd.Series([True, None], dtype="boolean"), "boolean", "boolean", True),
    (pd.Series([True, None, False], dtype=object), "boolean", "object", True),
    (pd.Series(["a", "b"]), "category", "str", False),
    (pd.Series(["a", None]), "category", "str", True),
    (pd.Series(["a", "b"], dtype=object), "category", "object", False),
    (pd.Series(["a", None], dtype=object), "category", "object", True),
    (pd.Series(["b", "a"], dtype="category"), "category", "category", False),
    (pd.Series([3, 1, None]).astype("Int64").astype("category"), "category", "category", True),
    (pd.Series([3, 1], dtype="category"), "category", "category", False),
    (pd.to_datetime(pd.Series(["2020-01-01", "2020-01-02"])), "datetime", "datetime64[us]", False),
    (pd.to_datetime(pd.Series(["2020-01-01", None])).dt.as_unit("s"), "datetime", "datetime64[s]", True),
    (pd.to_datetime(pd.Series(["2020-01-01"]), utc=True), "datetime", "datetime64[us, UTC]", False),
    (pd.Series(["2020-01-01", None]), "datetime", "str", True),
    (pd.Series(["2020-01-01 10:00:00"], dtype=object), "datetime", "object", False),
]


@pytest.mark.parametrize(("column", "kind", "dtype", "nullable"), COLUMNS)
def test_column_shows_its_feature_and_comes_back_as_it_was(column: Any, kind: str, dtype: str, nullable: bool) -> None:  # noqa: FBT001
    table = pd.DataFrame({"x": column})
    (feature,) = infer_features(table, 1.0)
    assert (feature.kind, feature.dtype, feature.nullable) == (kind, dtype, nullable)
    (plain,) = zip(*instances_of(table), strict=True)
    schema = Schema([feature])
    back = schema.frame(schema.rows([[cell] for cell in plain]))
    pd.testing.assert_frame_equal(back, table, check_categorical=False)


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_missing_value_in_a_column_that_had_none_becomes_a_float_as_pandas_reads_it(dtype: str) -> None:
    kind = "boolean" if dtype == "bool" else "integer"
    schema = Schema([Feature(name="x", kind=kind, dtype=dtype, nullable=True)])  # type: ignore[arg-type]
    frame = schema.frame(schema.rows([[None], [True if dtype == "bool" else 1]]))
    assert str(frame["x"].dtype) == "float64"
    assert frame["x"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("values", "margin", "bounds"),
    [
        ([10.0, 20.0], 0.0, (10.0, 20.0)),
        ([10.0, 20.0], 0.5, (5.0, 25.0)),
        ([10.0, 20.0], 1.0, (0.0, 30.0)),
        ([1.0, 20.0], 1.0, (0.0, 39.0)),
        ([-1.0, 1.0], 1.0, (-3.0, 3.0)),
        ([-5.0, -4.0], 1.0, (-6.0, -3.0)),
        ([7.0, 7.0], 1.0, (7.0, 7.0)),
    ],
)
def test_bounds_are_the_range_seen_and_a_margin(
    values: list[float], margin: float, bounds: tuple[float, float]
) -> None:
    (feature,) = infer_features(pd.DataFrame({"x": values}), margin)
    assert (feature.minimum, feature.maximum) == bounds
    assert feature.seen == (min(values), max(values))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize("margin", [1.0, None])
def test_bounds_are_what_the_column_can_hold(dtype: str, margin: float | None) -> None:
    limits = np.iinfo(dtype)
    table = pd.DataFrame({"x": pd.Series([limits.min, limits.max], dtype=dtype)})
    schema = Schema(infer_features(table, margin))
    assert schema.frame(schema.rows([[int(limits.max)]]))["x"].tolist() == [limits.max]
    for outside in (int(limits.max) + 1, int(limits.min) - 1):
        with pytest.raises(InvalidRows):
            schema.rows([[outside]])


@pytest.mark.parametrize("margin", [1.0, None])
def test_whole_numbers_end_where_rows_can_no_longer_tell_them_apart(margin: float | None) -> None:
    schema = Schema(infer_features(pd.DataFrame({"x": [0, 2**53 - 1]}), margin))
    assert schema.instance(schema.rows([[2**53 - 1]])[0]) == {"x": 2**53 - 1}
    with pytest.raises(InvalidRows):
        schema.rows([[2**53 + 1]])


@pytest.mark.parametrize("value", [1e39, -1e39, 1e308])
def test_numbers_without_bounds_end_where_single_precision_does(value: float) -> None:
    schema = Schema(infer_features(pd.DataFrame({"x": [0.5, 1.5]}), None))
    assert schema.rows([[3e38]]).tolist() == [[3e38]]
    with pytest.raises(InvalidRows):
        schema.rows([[value]])


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ([None, None], "has no values"),
        ([1.0, math.inf], "infinite"),
        (pd.to_timedelta([1, 2], unit="s"), "unsupported type"),
        ([1 + 2j, 3j], "unsupported type"),
        (pd.Series([{"a": 1}, [1]], dtype=object), "unsupported type"),
        (pd.Series(["a", 1], dtype=object), "unsupported type"),
        (pd.Series([1.5, 2.5], dtype="category"), "strings or integers"),
        ([f"id {i}" for i in range(1001)], "identifier"),
    ],
)
def test_column_that_is_no_feature_is_refused_by_name(column: Any, reason: str) -> None:
    with pytest.raises(CannotAdd, match=f"'odd'.*{reason}"):
        infer_features(pd.DataFrame({"odd": column}), 1.0)


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\u202e", "\x1b"])
def test_column_whose_name_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(CannotAdd, match="printable"):
        infer_features(pd.DataFrame({name: [1.0]}), 1.0)


KINDS = Schema(
    [
        Feature(name="note", kind="text", dtype="object", nullable=True, max_length=5),
        Feature(name="when", kind="datetime", dtype="datetime64[ns]", nullable=True),
        Feature(name="city", kind="category", dtype="object", categories=("Bern", "Rome"), open=True),
    ],
    "frame",
)


def test_texts_times_and_unlisted_categories_become_what_the_estimator_was_fitted_on() -> None:
    rows = KINDS.rows([["a b", "2026-01-31T13:00:00+01:00", "Bern"], [None, None, "Oslo"]])
    table = KINDS.table(rows)
    assert table["note"].tolist() == ["a b", None]
    assert table["when"].tolist() == [pd.Timestamp("2026-01-31T12:00:00"), pd.NaT]
    assert table["when"].dtype == "datetime64[ns]"
    assert table["city"].tolist()[0] == "Bern"
    assert table["city"].tolist()[1] not in ("Bern", "Rome", "Oslo")
    assert KINDS.instance(rows[0]) == {"note": "a b", "when": "2026-01-31T12:00:00Z", "city": "Bern"}


@pytest.mark.parametrize(
    ("instance", "feature"),
    [
        (["too long", None, "Bern"], "note"),
        ([1, None, "Bern"], "note"),
        ([None, "31.1.2026", "Bern"], "when"),
        ([None, "9999-12-31", "Bern"], "when"),
        ([None, None, 1], "city"),
        ([None, None, None], "city"),
    ],
)
def test_values_of_another_kind_are_named(instance: list[object], feature: str) -> None:
    with pytest.raises(InvalidRows) as caught:
        KINDS.rows([instance])
    assert [fault.feature for fault in caught.value.faults] == [feature]


@pytest.mark.parametrize("value", [0.5, 200.0, -129.0, 1e30, None])
def test_a_column_of_whole_numbers_is_given_others_as_floats(value: float | None) -> None:
    schema = Schema([Feature(name="x", kind="number", dtype="int8", nullable=True)], "frame")
    assert str(schema.table(schema.rows([[7], [-128]]))["x"].dtype) == "int8"
    found = schema.table(schema.rows([[7], [value]]))["x"]
    assert str(found.dtype) == "float64"
    assert found.isna()[1] if value is None else found[1] == value
