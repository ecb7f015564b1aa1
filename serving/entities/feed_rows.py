"""The rows of a document, JSON or CSV, as the columns that they have by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import msgspec

from serving.entities.feed import Feed
from serving.errors import InvalidRequest

Row = dict[str, Any]


def read_rows(feed: Feed, document: bytes) -> list[Row | None]:
    """At most `max_rows`; None in place of a row that is none. Raises InvalidRequest for what is no such document."""
    rows = _read_json(feed, document) if feed.format == "json" else _read_csv(document)
    if len(rows) > feed.max_rows:
        raise InvalidRequest(f"it has {len(rows)} rows, where {feed.max_rows} are the most")
    return rows


def _read_json(feed: Feed, document: bytes) -> list[Row | None]:
    try:
        content = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("it is not JSON") from None
    if feed.rows and isinstance(content, dict):
        content = content.get(feed.rows)
    if not isinstance(content, list):
        raise InvalidRequest("it is not an array of rows")
    return [row if isinstance(row, dict) else None for row in content]


def _read_csv(document: bytes) -> list[Row | None]:
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest("it is not UTF-8") from None
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(table, [])
        if len(set(names)) < len(names) or not names:
            raise InvalidRequest("its first line must name the columns, each once")
        return list(_cells_by_name(names, table))
    except csv.Error:
        raise InvalidRequest("it is not CSV") from None


def _cells_by_name(names: list[str], table: Iterator[list[str]]) -> Iterator[Row | None]:
    for cells in table:
        if cells:
            yield dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None
