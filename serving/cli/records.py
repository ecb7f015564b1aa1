"""`forkserve entities`: imports records of entities."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from serving.cli.command import argument, command, fail, say
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.entities.record import Record


@command(
    argument("action", choices=("import", "demo"), help="import a CSV file, or the demo records"),
    argument("file", nargs="?", type=Path, help="CSV in UTF-8 with the columns entity, time and more; may be repeated"),
)
def entities(arguments: argparse.Namespace, settings: Settings) -> int:
    """Import records of entities from a CSV file, or those of the demo."""
    from serving.entities.importing import read_records_csv

    if arguments.action == "demo":
        import_demo(settings)
        return 0
    if arguments.file is None:
        return fail("entities import needs a file")
    try:
        _import(settings, read_records_csv(arguments.file))
    except OSError as error:
        return fail(error)
    return 0


def import_demo(settings: Settings) -> None:
    """Import a year of market days for each share of the demo. Raises StoreUnavailable, CannotServe."""
    from examples.market import market_records
    from serving.entities.record import make_record

    _import(settings, (make_record(share, values, day) for share, day, values in market_records()))


def _import(settings: Settings, records: Iterable[Record]) -> None:
    """Store the records and say how many they were. Raises InvalidRequest, StoreUnavailable, CannotServe."""
    from serving.entities.importing import import_records
    from serving.stores import build_entity_store

    store = build_entity_store(settings)

    async def run() -> None:
        try:
            count, new = await import_records(store, records)
        finally:
            await store.close()
        say(f"imported {count} records, {new} of them new")

    asyncio.run(run())
