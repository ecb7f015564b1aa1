"""What people have in hand becomes the instances of a request, or is refused by its place."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.client.request import job_request
from serving.client.rows import csv_of, instances_of, of_requests, values_of

NAMED: list[dict[str, Any]] = [{"a": 1.0, "b": "x"}, {"a": None, "b": "y"}]
TIMES = pd.to_datetime(["2026-01-31T12:00:00Z", None])


class Elsewhere:
    """A table of another library."""

    def to_dicts(self) -> list[dict[str, Any]]:
        return NAMED


@pytest.mark.parametrize(
    ("rows", "instances"),
    [
        (NAMED, NAMED),
        ({"a": np.float32(0.5)}, [{"a": 0.5}]),
        (pd.DataFrame(NAMED), NAMED),
        (pd.DataFrame(NAMED, index=[7, 7]), NAMED),
        (pd.DataFrame({0: [1]}), [{"0": 1}]),
        (pd.DataFrame({"a": pd.Series([1, None], dtype="Int64")}), [{"a": 1}, {"a": None}]),
        (pd.DataFrame({"a": pd.Series(["x", None], dtype="category")}), [{"a": "x"}, {"a": None}]),
        (pd.DataFrame({"a": pd.Series([True, None], dtype="boolean")}), [{"a": True}, {"a": None}]),
        (pd.DataFrame({"a": TIMES}), [{"a": "2026-01-31T12:00:00+00:00"}, {"a": None}]),
        (np.array([[1.5, np.nan]]), [[1.5, None]]),
        (np.ma.masked_array([[1, 2]], mask=[[False, True]]), [[1, None]]),
        (np.array([(1, "x")], dtype=[("a", int), ("b", "U1")]), [{"a": 1, "b": "x"}]),
        ([np.array([1, 2])], [[1, 2]]),
        ([(1, np.bool_(1))], [[1, True]]),
        ([[np.datetime64("2026-01-31"), np.datetime64("NaT", "s"), pd.NaT, pd.NA]], [["2026-01-31", None, None, None]]),
        ([[datetime.date(2026, 1, 31), decimal.Decimal("0.5"), np.str_("x")]], [["2026-01-31", 0.5, "x"]]),
        ([["NaN", "nan", ""]], [["NaN", "nan", ""]]),
        (Elsewhere(), NAMED),
        ((row for row in [[1]]), [[1]]),
    ],
)
def test_tables_become_instances(rows: Any, instances: list[Any]) -> None:
    found: list[Any] = instances_of(rows)
    assert found == instances
    assert {type(cell) for row in found for cell in (row.values() if isinstance(row, dict) else row)} <= {
        int,
        float,
        str,
        bool,
        type(None),
        np.str_,
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1.0}, {"a": float("inf")}], "row 1: a is infinite"),
        (np.array([[0.0], [-np.inf]]), "row 1: column 0 is infinite"),
        ([[decimal.Decimal("Infinity")]], "row 0: column 0 is infinite"),
        (pd.DataFrame({"a": [pd.Timedelta("1s")]}), "row 0: a is a Timedelta"),
        ([{"a": [1]}], "row 0: a is a list"),
        ([{"a": object()}], "row 0: a is a object"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "the same name"),
        (pd.DataFrame(index=[1]), "no columns"),
        ([1.0, 2.0], "row 0 is a float"),
        (["text"], "row 0 is a str"),
        (np.array([1.0]), "two dimensions"),
        (pd.Series([1.0]), "to_frame"),
        ("rows", "not a str"),
        (5, "not a int"),
    ],
)
def test_what_no_model_can_take_is_refused_by_its_place(rows: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        instances_of(rows)


def test_outcomes_without_rows_name_their_requests() -> None:
    assert of_requests("r", ["a", "b"]) == [
        {"request_id": "r", "instance": 0, "outcome": "a"},
        {"request_id": "r", "instance": 1, "outcome": "b"},
    ]
    assert of_requests(["r", "s"], [1, 2]) == [{"request_id": "r", "outcome": 1}, {"request_id": "s", "outcome": 2}]
    for wrong in (None, ["r"]):
        with pytest.raises(TypeError, match="need the request_id of their predictions"):
            of_requests(wrong, [1, 2])


def test_outcomes_are_labels_numbers_or_objects() -> None:
    assert values_of(pd.Series(["x", "y"])) == ["x", "y"]
    assert values_of(np.array([1, 2])) == [1, 2]
    assert values_of([{"up": np.int64(1)}]) == [{"up": 1}]
    assert values_of(pd.DataFrame({"up": [1.5]})) == [{"up": 1.5}]
    for wrong in ("x", {"up": 1}, 5):
        with pytest.raises(TypeError, match="one for each row"):
            values_of(wrong)


def test_a_table_as_csv_is_read_back() -> None:
    rows = [{"a": index / 7, "b": 'quo"te,\n', "c": None, "d": True} for index in range(2500)]
    text = b"".join(csv_of(rows)).decode()
    back = list(csv.DictReader(io.StringIO(text, newline="")))
    assert back == [{"a": repr(row["a"]), "b": 'quo"te,\n', "c": "", "d": "true"} for row in rows]


@pytest.mark.parametrize(
    ("row", "count", "media_type"),
    [
        ({"a": 1.5}, 10, "application/json"),
        ({"a": 1.5, "b": "x" * 100}, 100_000, "text/csv"),
        ({"a": 1.5, "b": "", "c": "x" * 100}, 50_000, "application/json"),
        ([1.5, "x" * 100], 50_000, "application/json"),
    ],
)
def test_jobs_of_many_rows_are_csv_if_that_loses_nothing(row: Any, count: int, media_type: str) -> None:
    about = {"operation": "explain", "model": "m", "version": None}
    request = job_request([row] * count, about, {"classes": ["x", 1], "top": 2, "space": None}, "key")
    assert request.headers == {"content-type": media_type, "idempotency-key": "key"}
    wished = {"classes": ["x", "1"], "top": 2}
    assert request.query == ({**about, **wished} if media_type == "text/csv" else {})
