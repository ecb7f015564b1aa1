"""What a feed is: where it is, and which of its columns say whose record it is and of what time."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


class Feed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A document of rows. `entity`, `time` and `id` name its columns, all others are values; without `id`, a row is
    known by its time and values.

    In JSON it is an array of objects, or an object that has one under the key `rows`.
    """

    name: str
    url: str
    format: Literal["json", "csv"]
    entity: str = "entity"
    time: str = "time"
    id: str = ""
    rows: str = ""
    max_bytes: int = 4 << 20
    max_rows: int = 10_000

    def __repr__(self) -> str:
        return f"Feed({self.name!r})"  # its address may hold a secret


def parse_feeds(text: str) -> tuple[Feed, ...]:
    """Feeds from a JSON array; an empty text is none. Raises ValueError, which quotes nothing but names."""
    if not text:
        return ()
    try:
        feeds = msgspec.json.decode(text, type=tuple[Feed, ...])
    except msgspec.ValidationError as error:
        raise ValueError(f"must be feeds: {str(error)[:160]}") from None
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise ValueError(
            'must be a JSON array like [{"name": "prices", "url": "https://...", "format": "csv"}]'
        ) from None
    for feed in feeds:
        _check(feed)
    if len({feed.name for feed in feeds}) < len(feeds):
        raise ValueError("must not give two feeds the same name")
    return feeds


def _check(feed: Feed) -> None:
    if not NAME.fullmatch(feed.name):
        raise ValueError("must give each feed a name of up to 63 small letters, digits, '.', '_' and '-'")
    try:
        parts = urlsplit(feed.url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"must give {feed.name} an address of http or https")
    if feed.max_bytes < 1 or feed.max_rows < 1:
        raise ValueError(f"must let {feed.name} have bytes and rows")
