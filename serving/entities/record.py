"""A record of an entity and an outcome of a prediction, with the values that they may hold."""

from __future__ import annotations

import dataclasses
import math
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec

from cache.keys import key_prefix
from registry.outputs import Label
from registry.quality import Sums
from serving.errors import InvalidRecord, InvalidRequest

Value = float | int | str | bool | None

TrueValue = Label | Mapping[str, Label]
"""A label or a number; of a model with several targets one for each, by name."""

Probabilities = Mapping[str, Any]
"""By the text of a label; of a model with several targets one of these for each, by name."""

Span = Literal["hour", "day"]

ENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
KIND = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)

BOOLEANS = {"true": True, "false": False}

MAX_COLUMNS = 200
MAX_NAME_CHARACTERS = 64
MAX_STRING_CHARACTERS = 10_000
MAX_RECORD_BYTES = 64 * 1024
"""The limit of a record's values as JSON."""
MAX_TIME_CHARACTERS = 64

MAX_AHEAD = timedelta(days=1)
"""How far ahead of our clock a time may be: a record of a later time would stay the newest one until then."""

MAX_INTEGER = 2**53
"""Up to here a row, which is float64, represents every integer."""


@dataclass(frozen=True, slots=True)
class Record:
    """The columns known about an entity at a time; models take their features from them."""

    entity: str
    id: str
    """Unique within the entity: a record that is sent twice is stored once. In a store it begins with the name of the
    key that has sent it, and a slash, so that no key learns or takes the ids of another."""
    time: datetime
    """In UTC, to the millisecond."""
    values: Mapping[str, Value]
    kind: str = field(default="", compare=False)
    """The kind of its entity, when it is read from a store."""

    @property
    def shown_id(self) -> str:
        """The id as its sender knows it."""
        return self.id.rpartition("/")[2]

    def of(self, writer: str) -> Record:
        """The same record, stored by the key of that name; empty for none."""
        return dataclasses.replace(self, id=f"{writer}/{self.id}") if writer else self


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity that has records."""

    entity: str
    kind: str
    """Only models that are bound to this kind predict for it; empty for those that are bound to no kind."""
    records: int
    newest: datetime | None
    """The time of its newest record; None if somebody else has stored one that has no valid time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The true value for an instance that a model was asked about."""

    model: str
    version: str
    """The version whose quality it measures."""
    id: str
    time: datetime
    instance: Mapping[str, Any]
    outcome: TrueValue
    prediction: TrueValue | None
    """The prediction of that version; None when it failed on the instance."""
    entity: str | None = None
    """The entity that it is about; deleted together with it."""
    probabilities: Probabilities | None = None
    """Those that the prediction came with; None if it had none, or was stored before they were kept."""
    sums: Mapping[str, Decimal] = field(default_factory=dict, compare=False)
    """What it adds to the quality of its hour and day; not read back."""


class Judged(NamedTuple):
    """An outcome, and the prediction that a version had made."""

    outcome: TrueValue
    prediction: TrueValue
    probabilities: Probabilities | None = None


@dataclass(frozen=True, slots=True)
class Period:
    """The quality of one version in an hour or a day of UTC; outcomes count where their times are."""

    version: str
    start: datetime
    sums: Sums


def make_record(entity: str, values: Any, time: str | None = None, record_id: str | None = None) -> Record:
    """A record from what a client sent; its time is now unless given.

    A record without an id gets one derived from its time and values, so that sending it twice stores it once; without a
    time either, the id is random. Raises InvalidRequest, which does not quote values.
    """
    check_name(entity)
    checked = check_values(values)
    moment = now() if time is None else parse_past_time(time)
    if record_id is None:
        record_id = (
            new_id() if time is None else digest(moment.isoformat(), msgspec.json.encode(checked, order="sorted"))
        )
    elif not ID.fullmatch(record_id):
        raise InvalidRequest("an id is 1 to 64 letters, digits and ._:-")
    return Record(entity, record_id, moment, checked)


def check_name(entity: str) -> None:
    """Raises InvalidRequest for a name that no entity can have."""
    if not ENTITY.fullmatch(entity):
        raise InvalidRequest("an entity is 1 to 64 letters, digits and ._-, beginning with a letter or digit")


def check_kind(text: str) -> str:
    """A kind of entities. Raises InvalidRequest."""
    if not KIND.fullmatch(text):
        raise InvalidRequest("a kind is 1 to 64 lower-case letters, digits and ._-, beginning with a letter or digit")
    return text


def stored_record(entity: str, record_id: str, time: str, values: Any, kind: str = "") -> Record:
    """A record as a store keeps it, which somebody else may have written. Raises InvalidRecord naming it."""
    with suppress(ValueError, OverflowError):
        if isinstance(values, dict) and all(isinstance(value, Value) for value in values.values()):
            return Record(entity, record_id, in_utc(datetime.fromisoformat(time)), values, kind)
    raise InvalidRecord(record_id.rpartition("/")[2])


def check_values(values: Any) -> dict[str, Value]:
    """The values to store: finite numbers only, and -0.0 as 0.0, because some stores do not distinguish them."""
    if not isinstance(values, dict) or not 0 < len(values) <= MAX_COLUMNS:
        raise InvalidRequest(f"values must be an object of 1 to {MAX_COLUMNS} columns")
    for name in values:
        if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            raise InvalidRequest(f"a column's name is 1 to {MAX_NAME_CHARACTERS} printable characters")
    checked = {name: _check_value(name, value) for name, value in values.items()}
    if len(msgspec.json.encode(checked)) > MAX_RECORD_BYTES:
        raise InvalidRequest(f"a record may have {MAX_RECORD_BYTES} bytes")
    return checked


def _check_value(name: str, value: Any) -> Value:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > MAX_STRING_CHARACTERS or "\0" in value:
            raise InvalidRequest(f"{name} must be at most {MAX_STRING_CHARACTERS} characters, none of them NUL")
        return value
    if not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number, a string, true, false or null")
    if isinstance(value, int) and abs(value) <= MAX_INTEGER:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequest(f"{name} must be finite")
    return number + 0.0


def value_of(cell: str) -> Value:
    """The value of a CSV cell: null if it is empty, a boolean, a number, or else a string.

    Digits after a leading zero are a code, such as a postcode, and no number.
    """
    if not cell:
        return None
    if cell.lower() in BOOLEANS:
        return BOOLEANS[cell.lower()]
    if not cell.isascii() or "_" in cell:
        return cell  # float() accepts digits of every script, and underscores between them
    if cell[0] == "0" and cell[1:2].isdigit():
        return cell
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def parse_time(text: str) -> datetime:
    """A date or a time in ISO 8601; UTC unless it has a zone. Raises InvalidRequest."""
    with suppress(ValueError, OverflowError):
        if len(text) <= MAX_TIME_CHARACTERS:
            return in_utc(datetime.fromisoformat(text))
    raise InvalidRequest("a time must be in ISO 8601, such as 2026-05-01 or 2026-05-01T12:30:00Z")


def parse_past_time(text: str) -> datetime:
    """The time of something that has happened: at most MAX_AHEAD in the future. Raises InvalidRequest."""
    moment = parse_time(text)
    if moment > now() + MAX_AHEAD:
        raise InvalidRequest("a time may be at most a day ahead")
    return moment


def start_of(span: Span, moment: datetime) -> datetime:
    """The start of the hour or the day of a moment in UTC."""
    hour = moment.replace(minute=0, second=0, microsecond=0)
    return hour if span == "hour" else hour.replace(hour=0)


def in_utc(moment: datetime) -> datetime:
    """The moment in UTC, to the millisecond; one without a zone is taken as UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.replace(microsecond=aware.microsecond // 1000 * 1000)


def now() -> datetime:
    """The current time in UTC, to the millisecond."""
    return in_utc(datetime.now(UTC))


def new_id() -> str:
    """An id of 96 random bits."""
    return secrets.token_hex(12)


def digest(*parts: str | bytes) -> str:
    """An id that is equal for equal parts."""
    return key_prefix(*parts).hex()[:24]
