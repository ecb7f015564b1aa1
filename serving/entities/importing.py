"""Imports records from a CSV file of any size, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from serving.entities.record import Record, make_record, value_of
from serving.entities.store import BATCH, Added, EntityStore
from serving.errors import InvalidRequest, StoreFull
from serving.jobs.csv_reader import CsvReader

PIECE_BYTES = 1 << 20


async def import_records(store: EntityStore, records: Iterable[Record], kind: str | None = None) -> tuple[int, Added]:
    """Store records; return how many there were, and what became of them. For `kind` see `EntityStore.add_records`.

    A record that is stored already changes nothing, so an import may be repeated. Raises StoreUnavailable. If `records`
    raise InvalidRequest, those before are stored, and the message says how many.
    """
    count, added = 0, Added()
    remaining = iter(records)
    try:
        while batch := list(islice(remaining, BATCH)):
            added += await store.add_records(batch, kind)
            count += len(batch)
    except (InvalidRequest, StoreFull) as error:
        raise InvalidRequest(f"{error}; the {count} records before are imported") from None
    return count, added


def read_records_csv(path: Path) -> Iterator[Record]:
    """Records from a CSV with the columns entity, time, optionally id, and up to as many more as a record may have.

    An empty cell is null; numbers and booleans are recognised; all else is text. Raises InvalidRequest naming file and
    line, OSError.
    """
    reader = CsvReader()
    with path.open("rb") as file:
        try:
            table = reader.rows(iter(lambda: file.read(PIECE_BYTES), b""))
            names = next(table, [])
            _check_header(reader, names)
            for cells in table:
                yield _record(reader, names, cells)
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}: {error}") from None


def _check_header(reader: CsvReader, names: list[str]) -> None:
    for name in ("entity", "time"):
        if name not in names:
            raise reader.error(f"there must be a column {name}")
    if len(set(names)) != len(names):
        raise reader.error("two columns have the same name")


def _record(reader: CsvReader, names: list[str], cells: list[str]) -> Record:
    if len(cells) != len(names):
        raise reader.error(f"has {len(cells)} values, the header has {len(names)}")
    row = dict(zip(names, cells, strict=True))
    entity, time = row.pop("entity"), row.pop("time")
    record_id = row.pop("id", "") or None
    try:
        return make_record(entity, {name: value_of(cell) for name, cell in row.items()}, time, record_id)
    except InvalidRequest as error:
        raise reader.error(str(error)) from None
