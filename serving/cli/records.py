"""Commands about records of entities."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from serving.cli.terminal import say
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.entities.record import Record
    from serving.entities.store import EntityStore


def entities(arguments: argparse.Namespace, settings: Settings) -> int:
    """Import records of entities from a CSV file, or those of the demo."""
    from serving.entities.importing import read_records_csv
    from serving.stores import build_entity_store

    try:
        if arguments.action == "demo":
            import_demo(settings)
        else:
            import_into(build_entity_store(settings), read_records_csv(arguments.file))
    except OSError as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    return 0


def import_demo(settings: Settings) -> None:
    """A year of market days for each share of the demo. Raises StoreUnavailable, CannotServe."""
    from examples.market import market_records
    from serving.entities.record import make_record
    from serving.stores import build_entity_store

    import_into(
        build_entity_store(settings), (make_record(share, values, day) for share, day, values in market_records())
    )


def import_into(source: EntityStore, records: Iterable[Record]) -> None:
    """Keep the records and say how many they were. Raises InvalidRequest, StoreUnavailable."""
    from serving.entities.importing import import_records

    async def run() -> None:
        try:
            done = await import_records(source, records)
        finally:
            await source.close()
        say(f"imported {done.records} records, {done.new} of them new")

    asyncio.run(run())
