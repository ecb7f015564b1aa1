"""Brings records from a CSV file into a source, some at a time, so that a file may be of any size."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from serving.entities.record import Record, make_record, value_of
from serving.entities.store import BATCH, EntityStore
from serving.errors import InvalidRequest

OWN = ("entity", "time", "id")
"""The columns that are no values; `id` may be missing."""


@dataclass(frozen=True, slots=True)
class Imported:
    """How many records came, and how many of them were not there before."""

    records: int = 0
    new: int = 0


async def import_records(source: EntityStore, records: Iterable[Record]) -> Imported:
    """Keep them all; what comes again changes nothing, so it may be run again. Raises StoreUnavailable.

    Where `records` raise InvalidRequest, those before are kept, and the message says how many.
    """
    done = Imported()
    remaining = iter(records)
    while True:
        batch: list[Record] = []
        try:
            batch.extend(islice(remaining, BATCH))
        except InvalidRequest as error:
            raise InvalidRequest(f"{error}; the {done.records} records before are imported") from None
        if not batch:
            return done
        done = Imported(done.records + len(batch), done.new + await source.add_records(batch))


def read_table(path: Path) -> Iterator[Record]:
    """Of a CSV in UTF-8 with the columns entity, time, perhaps id, and as many more as a record may have.

    An empty cell is null, what looks like a number or a truth is one, all else is text. Raises InvalidRequest naming
    file and line, OSError.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1
        try:
            names = next(reader, [])
            _check_header(names)
            for cells in reader:
                line = reader.line_num
                yield _record(names, cells)
        except UnicodeDecodeError:
            raise InvalidRequest(f"{path}: after line {line}: not UTF-8") from None
        except csv.Error as error:
            raise InvalidRequest(f"{path}: after line {line}: not CSV: {error}") from None
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}: line {line}: {error}") from None


def _check_header(names: list[str]) -> None:
    for name in OWN[:2]:
        if name not in names:
            raise InvalidRequest(f"there must be a column {name}")
    if len(set(names)) != len(names):
        raise InvalidRequest("two columns have the same name")


def _record(names: list[str], cells: list[str]) -> Record:
    if len(cells) != len(names):
        raise InvalidRequest(f"has {len(cells)} values, the header has {len(names)}")
    row = dict(zip(names, cells, strict=True))
    entity, time = row.pop("entity"), row.pop("time")
    record_id = row.pop("id", "") or None
    return make_record(entity, {name: value_of(cell) for name, cell in row.items()}, time, record_id)
