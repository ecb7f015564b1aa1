"""`forkserve entities`: imports, shows and deletes what is kept of entities."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from serving.cli.command import argument, command, fail, kind_of_entities, say
from serving.cli.predictions import describe, erase
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.entities.record import Record


@command(
    argument(
        "action",
        choices=("import", "demo", "show", "delete"),
        help="import a CSV file, or the demo records; show or delete all that is kept of an entity",
    ),
    argument(
        "name",
        nargs="?",
        metavar="FILE or ENTITY",
        help="CSV in UTF-8 with the columns entity, time and more, which may be repeated; or the name of an entity",
    ),
    argument("--kind", type=kind_of_entities, help="import: kind of the entities, such as house"),
)
def entities(arguments: argparse.Namespace, settings: Settings) -> int:
    """Import records of entities from a CSV file, or those of the demo; show or delete what is kept of one."""
    from serving.entities.importing import read_records_csv

    action, name = arguments.action, arguments.name
    if action == "demo":
        import_demo(settings)
        return 0
    if name is None:
        return fail(f"entities {action} needs {'a file' if action == 'import' else 'the name of an entity'}")
    if action != "import":
        return asyncio.run((_show if action == "show" else _delete)(settings, name))
    try:
        _import(settings, read_records_csv(Path(name)), arguments.kind)
    except OSError as error:
        return fail(error)
    return 0


async def _show(settings: Settings, entity: str) -> int:
    """Print each record and outcome as a line of JSON. Raises StoreUnavailable, CannotServe."""
    import msgspec

    from serving.entities.store import BATCH
    from serving.stores import build_entity_store

    store = build_entity_store(settings)
    found = False
    try:
        after = None
        while records := await store.newest(entity, BATCH, after):
            for record in records:
                say(msgspec.json.encode({"record": record}).decode())
            found, after = True, records[-1].id
        for outcome in await store.outcomes_of_entity(entity, sys.maxsize):
            found = True
            say(msgspec.json.encode({"outcome": outcome}).decode())
    finally:
        await store.close()
    return 0 if found else fail(f"nothing is kept of {entity}")


async def _delete(settings: Settings, entity: str) -> int:
    """Delete all that is kept of an entity, and say how much. Raises StoreUnavailable, CannotServe, InvalidRedisUrl."""
    erased = await erase(settings, lambda erasure: erasure.of_entity(entity))
    say(f"{entity}: deleted {describe(erased)}")
    return 0


def import_demo(settings: Settings) -> None:
    """Import a year of market days for each share of the demo. Raises StoreUnavailable, CannotServe."""
    from examples.market import market_records
    from serving.entities.record import make_record

    _import(settings, (make_record(share, values, day) for share, day, values in market_records()))


def _import(settings: Settings, records: Iterable[Record], kind: str | None = None) -> None:
    """Store the records and say how many they were. Raises InvalidRequest, StoreUnavailable, CannotServe."""
    from serving.entities.importing import import_records
    from serving.stores import build_entity_store

    store = build_entity_store(settings)

    async def run() -> None:
        try:
            count, added = await import_records(store, records, kind)
        finally:
            await store.close()
        say(f"imported {count} records, {added.stored} of them new")
        if added.dropped:
            say(f"{added.dropped} were not kept: MAX_RECORDS_PER_ENTITY newer ones, or MAX_RECORDS in all, are there")

    asyncio.run(run())
