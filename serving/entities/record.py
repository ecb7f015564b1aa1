"""A record of an entity, an outcome of a prediction, and what they may hold."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from serving.errors import InvalidRequest

Value = float | int | str | bool | None

ENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)

TRUTHS = {"true": True, "false": False}

MAX_COLUMNS = 200
LONGEST_NAME = 64
LONGEST_TEXT = 500
MAX_BYTES = 16 * 1024
"""Of one record's values as JSON."""

LARGEST_INTEGER = 2**53
"""Up to here a row, which is float64, holds every whole number."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was known of an entity at a time: the columns from which models take their features."""

    entity: str
    id: str
    """Of the same entity no other record has it: who sends a record twice stores it once."""
    time: datetime
    """In UTC, to the millisecond."""
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What really happened to an instance that a model was asked about, in the model's own terms."""

    model: str
    version: str
    """The one that is judged by it."""
    id: str
    time: datetime
    instance: Mapping[str, Any]
    outcome: str | float
    """A label, or a number."""
    prediction: str | float | None
    """What that version answers; None when it fails on the instance."""


class Judged(NamedTuple):
    """What really happened, and what a version of a model had answered."""

    outcome: str | float
    prediction: str | float


def make_record(entity: str, values: Any, time: str | None = None, record_id: str | None = None) -> Record:
    """A record of what somebody has sent. Without a time it is of now.

    Without an id, it gets one of its time and values, so that the same record sent twice is one; and a random one if it
    has no time either. Raises InvalidRequest, which does not quote values.
    """
    if not ENTITY.fullmatch(entity):
        raise InvalidRequest("an entity is 1 to 64 letters, digits and ._-, of which a letter or digit comes first")
    checked = check_values(values)
    moment = now() if time is None else parse_time(time)
    if record_id is None:
        record_id = (
            new_id() if time is None else digest(moment.isoformat(), msgspec.json.encode(checked, order="sorted"))
        )
    elif not ID.fullmatch(record_id):
        raise InvalidRequest("an id is 1 to 64 letters, digits and ._:-")
    return Record(entity, record_id, moment, checked)


def check_values(values: Any) -> dict[str, Value]:
    """Columns and their values as they are kept: finite numbers, no -0.0, which not every store keeps apart from 0."""
    if not isinstance(values, dict) or not 0 < len(values) <= MAX_COLUMNS:
        raise InvalidRequest(f"values must be an object of 1 to {MAX_COLUMNS} columns")
    for name in values:
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise InvalidRequest(f"a column's name is 1 to {LONGEST_NAME} printable characters")
    checked = {name: _check_value(name, value) for name, value in values.items()}
    if len(msgspec.json.encode(checked)) > MAX_BYTES:
        raise InvalidRequest(f"a record may have {MAX_BYTES} bytes")
    return checked


def _check_value(name: str, value: Any) -> Value:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT or "\0" in value:
            raise InvalidRequest(f"{name} must be at most {LONGEST_TEXT} characters, none of them NUL")
        return value
    if not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number, a text, true, false or null")
    if isinstance(value, int) and abs(value) <= LARGEST_INTEGER:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequest(f"{name} must be finite")
    return number + 0.0


def value_of(cell: str) -> Value:
    """What a cell of a CSV holds: nothing, a truth, a number, or else a text."""
    if not cell:
        return None
    if cell.lower() in TRUTHS:
        return TRUTHS[cell.lower()]
    if not cell.isascii() or "_" in cell:
        return cell  # float() takes digits of every script, and underscores between them
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def parse_time(text: str) -> datetime:
    """A date or a time as ISO 8601 writes it; in UTC if it does not say. Raises InvalidRequest."""
    try:
        moment = datetime.fromisoformat(text) if len(text) <= LONGEST_NAME else None
        if moment is not None:
            return in_utc(moment)
    except (ValueError, OverflowError):
        pass
    raise InvalidRequest("a time is written as ISO 8601 has it: 2026-05-01, 2026-05-01T12:30:00Z")


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC, to the millisecond; one without a zone is taken for UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.replace(microsecond=aware.microsecond // 1000 * 1000)


def now() -> datetime:
    """To the millisecond, in UTC."""
    return in_utc(datetime.now(UTC))


def new_id() -> str:
    """96 random bits."""
    return secrets.token_hex(12)


def digest(*parts: str | bytes) -> str:
    """An id that is equal for equal parts."""
    hashed = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        hashed.update(len(content).to_bytes(8, "big"))
        hashed.update(content)
    return hashed.hexdigest()[:24]
