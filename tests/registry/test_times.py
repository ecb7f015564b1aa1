"""Dates and times: every form of ISO 8601 in, one number a time, and a clear reason for everything else."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.rows.times import (
    FIRST_TIME,
    FORMS,
    LAST_TIME,
    NOT_ISO,
    OUT_OF_RANGE,
    decode_time,
    encode_time,
    form_of,
    show_time,
    step_of,
)

MOMENTS = st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2250, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=datetime.UTC)
)

READ = {
    "2024-05-01": "2024-05-01T00:00:00Z",
    "20240501": "2024-05-01T00:00:00Z",
    "2024-05-01T12": "2024-05-01T12:00:00Z",
    "2024-05-01 12:30": "2024-05-01T12:30:00Z",
    "2024-05-01t12:30:15z": "2024-05-01T12:30:15Z",
    "2024-05-01T12:30:15.5": "2024-05-01T12:30:15.500000Z",
    "2024-05-01T12:30:15,25Z": "2024-05-01T12:30:15.250000Z",
    "2024-05-01T12:30:15.123456789Z": "2024-05-01T12:30:15.123456Z",
    "2024-05-01T12:30:15+02:00": "2024-05-01T10:30:15Z",
    "2024-05-01T12:30:15-0530": "2024-05-01T18:00:15Z",
    "2024-05-01T12:30+14": "2024-04-30T22:30:00Z",
    "20240501T123015Z": "2024-05-01T12:30:15Z",
    "2024-W18-3": "2024-05-01T00:00:00Z",
    "2024W183T12": "2024-05-01T12:00:00Z",
    "2024-W18": "2024-04-29T00:00:00Z",
    "2024-122": "2024-05-01T00:00:00Z",
    "2024122T123015Z": "2024-05-01T12:30:15Z",
    "2024-366": "2024-12-31T00:00:00Z",
    "2024-05-01T24:00": "2024-05-02T00:00:00Z",
    "2024-12-31T24:00:00Z": "2025-01-01T00:00:00Z",
    "1684-01-01": "1684-01-01T00:00:00Z",
    "2255-12-31T23:59:59Z": "2255-12-31T23:59:59Z",
}
LEAP = "must not be a leap second (:60): send the second before or after"
REFUSED = {
    "2016-12-31T23:59:60Z": LEAP,
    "20161231T235960+0000": LEAP,
    "9999-12-31": OUT_OF_RANGE,
    "9999-12-31T23:59:59-14:00": OUT_OF_RANGE,
    "0001-01-01T00:00+14:00": OUT_OF_RANGE,
    "1683-12-31": OUT_OF_RANGE,
    "2256-01-01": OUT_OF_RANGE,
    "10000-01-01": OUT_OF_RANGE,
    "+012024-05-01T00:00Z": OUT_OF_RANGE,
    "-0044-03-15": OUT_OF_RANGE,
    **dict.fromkeys(
        [
            *["", " ", "now", "1714550400", "2024", "2024-05", "2024-13-01", "2024-02-30", "2023-366", "2024-000"],
            *["2024-05-01T", "2024-05-01Z", "2024-05-01x12:00", "2024-05-01T25:00", "2024-05-01T24:01", " 2024-05-01"],
            *[
                "2024-05-01\n",
                "2024-05-01T12:00 UTC",
                "2024-05-01T12:00+24:00",
                "01.05.2024",
                "05/01/2024",
                "2024-W54-1",
            ],
            *["\uff12024-05-01", "2024-05-01T12:00:00\u202e", "2024-05-01\0", "0" * 100_000, "9999-12-31T24:00"],
        ],
        NOT_ISO,
    ),
}


@pytest.mark.parametrize("text", READ)
def test_every_form_of_iso_8601_is_read(text: str) -> None:
    assert show_time(encode_time(text)) == READ[text]


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_other_texts_are_refused_with_the_reason(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(REFUSED[text])}$"):
        encode_time(text)


@pytest.mark.parametrize("value", [0, 1.5, True, [], {}])
def test_what_is_no_string_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="in a string"):
        encode_time(value)


@given(MOMENTS)
def test_no_microsecond_is_lost(moment: datetime.datetime) -> None:
    assert decode_time(encode_time(moment.isoformat())) == moment
    assert FIRST_TIME <= moment < LAST_TIME


@given(MOMENTS, st.sampled_from(FORMS))
def test_the_form_of_texts_is_found_and_writes_them_again(moment: datetime.datetime, form: str) -> None:
    cell = encode_time(moment.isoformat())
    cell -= cell % step_of(form)
    text = show_time(cell, form)
    found = form_of([text])
    assert found is not None
    assert show_time(encode_time(text), found) == text
    assert encode_time(text) == cell


@pytest.mark.parametrize(
    "texts", [["2024-05-01", "2024-05-01T12:00"], ["2024-05-01T12:00+02:00"], ["2024-W18-3"], ["x"]]
)
def test_texts_that_no_one_form_writes_have_none(texts: list[str]) -> None:
    assert form_of(texts) is None
