"""Dates and times in ISO 8601 as microseconds since 1970 in UTC, and back.

`datetime.fromisoformat` reads most forms. What it lacks is here: ordinal dates, lower-case `t` and `z`, and 24:00. What
it reads beyond ISO 8601 (any character between date and time) is refused.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from typing import Any

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
FIRST_TIME, LAST_TIME = (
    datetime.datetime(1684, 1, 1, tzinfo=datetime.UTC),
    datetime.datetime(2256, 1, 1, tzinfo=datetime.UTC),
)
"""In between, pandas holds every nanosecond, and a float64 every microsecond (in the first and last months every second
one); the last is excluded."""

MAX_TIME_CHARACTERS = 64
MICROSECOND = datetime.timedelta(microseconds=1)

SEPARATORS = frozenset({"", "T", " "})
"""What may follow the ten characters of a date such as 2026-01-31."""

DATE = r"\d{4}(?P<w>-?)(?:W\d\d(?:(?P=w)\d)?|\d\d(?P=w)\d\d|(?P<day_of_year>\d{3}))"
FORM = re.compile(rf"(?P<date>{DATE})(?:[T ](?P<time>\d\d[\d:.,]*)(?P<zone>Z|[+-][\d:]+)?)?", re.ASCII)
LEAP_SECOND = re.compile(r"[^T ]+[T ]\d\d:?\d\d:?60", re.ASCII)
LONG_YEAR = re.compile(r"[+-]?\d{5,}-\d\d|[+-]\d{4,}", re.ASCII)
END_OF_DAY = re.compile(r"24(?::?00){0,2}(?:[.,]0+)?", re.ASCII)

NOT_ISO = "must be a date and time as in ISO 8601, such as 2026-01-31 or 2026-01-31T12:00:00Z"
OUT_OF_RANGE = "must lie between the years 1684 and 2255"


def encode_time(value: Any) -> float:
    """An ISO 8601 date or time as microseconds since 1970; without an offset it is in UTC. Raises ValueError."""
    if type(value) is not str:
        raise ValueError("must be a date and time in a string, as in ISO 8601")
    time = None
    if value[4:5] == "-" and value[10:11] in SEPARATORS:
        with suppress(ValueError):
            time = datetime.datetime.fromisoformat(value)
    time = time or _other_form(value)
    time = time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time
    if not FIRST_TIME <= time < LAST_TIME:
        raise ValueError(OUT_OF_RANGE)
    return float((time - EPOCH) // MICROSECOND)


def decode_time(cell: float) -> datetime.datetime:
    """The time, in UTC, of a cell of microseconds since 1970."""
    return EPOCH + datetime.timedelta(microseconds=int(cell))


def show_time(cell: float, form: str = "") -> str:
    """The time of a cell, as `strftime` writes it in `form`; by default in UTC as ISO 8601 has it."""
    time = decode_time(cell)
    return time.strftime(form) if form else time.isoformat().replace("+00:00", "Z")


def step_of(form: str) -> int:
    """The microseconds from one time that `form` can write to the next; 1 without a form."""
    if not form:
        return 1
    smallest = (("%f", 1), ("%S", 10**6), ("%M", 60 * 10**6), ("%H", 3600 * 10**6))
    return next((step for code, step in smallest if code in form), 24 * 3600 * 10**6)


def are_times(texts: Iterable[str]) -> bool:
    """Return whether all texts are dates or times in ISO 8601."""
    try:
        for text in texts:
            encode_time(text)
    except ValueError:
        return False
    return True


def form_of(texts: Iterable[str]) -> str | None:
    """The `strftime` format that writes all of these times exactly as they are, None if there is none."""
    texts = list(texts)
    try:
        cells = [encode_time(text) for text in texts]
    except ValueError:
        return None
    for form in FORMS:
        if all(show_time(cell, form) == text for cell, text in zip(cells, texts, strict=True)):
            return form
    return None


def _forms() -> list[str]:
    clocks = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f")
    extended = [f"%Y-%m-%d{parts}" for parts in map("".join, product("T ", clocks, ("", "Z", "%:z", "%z")))]
    basic = [f"%Y%m%d{parts}" for parts in map("".join, product("T", ("%H%M", "%H%M%S"), ("", "Z", "%z")))]
    return ["%Y-%m-%d", "%Y%m%d", *extended, *basic]


FORMS = _forms()


def _other_form(text: str) -> datetime.datetime:
    """A time in a form that `fromisoformat` lacks. Raises ValueError with the reason."""
    text = text.upper() if len(text) <= MAX_TIME_CHARACTERS and text.isascii() else ""
    if LEAP_SECOND.match(text):
        raise ValueError("must not be a leap second (:60): send the second before or after")
    if LONG_YEAR.match(text):
        raise ValueError(OUT_OF_RANGE)
    parts = FORM.fullmatch(text)
    if parts is None:
        raise ValueError(NOT_ISO)
    date, clock, zone = parts["date"], parts["time"] or "00", parts["zone"] or ""
    days = 0
    if END_OF_DAY.fullmatch(clock):
        clock, days = "00", 1
    try:
        if parts["day_of_year"]:
            date = _ordinal(int(date[:4]), int(parts["day_of_year"]))
        return datetime.datetime.fromisoformat(f"{date}T{clock}{zone}") + datetime.timedelta(days)
    except (ValueError, OverflowError):
        raise ValueError(NOT_ISO) from None


def _ordinal(year: int, number: int) -> str:
    """The date of a day of a year. Raises ValueError."""
    day = datetime.date(year, 1, 1) + datetime.timedelta(number - 1)
    if day.year != year:
        raise ValueError(NOT_ISO)
    return day.isoformat()
