"""`forkserve predictions`: shows, exports and deletes what is logged of predictions."""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from serving.cli.command import argument, command, fail, moment, say
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.monitoring.predictions.erasure import Erased, Erasure
    from serving.monitoring.predictions.store import LoggedPrediction

FORMATS = ("jsonl", "csv", "parquet")

JSON_COLUMNS = ("row", "answer")
"""They are JSON in a table: each model has columns of its own."""

SETTLE_SECONDS = 1.0
"""Within a second a running service has stored what it has answered."""


@command(
    argument(
        "action",
        choices=("show", "export", "delete"),
        help="show those of a request; export those that are wanted; delete all that is kept of somebody",
    ),
    argument("request_id", nargs="?", metavar="REQUEST", help="show: id of a request"),
    argument("--entity", help="only those about an entity; delete: also its records, outcomes and events"),
    argument("--key", help="only those of keys of a name; delete: also their records, outcomes and jobs"),
    argument("--request-id", dest="wanted_id", metavar="REQUEST", help="only those of a request"),
    argument("--before", type=moment, metavar="TIME", help="only earlier ones, ISO 8601"),
    argument("--since", type=moment, metavar="TIME", help="export: only those of this time and later"),
    argument("--model", help="export: only those of a model"),
    argument("--version", help="export: only those of a version"),
    argument("--last", type=int, metavar="N", help="export: only the last N, newest first"),
    argument("--format", choices=FORMATS, help="export: default by the name of the file, else jsonl"),
    argument("-o", "--output", type=Path, metavar="FILE", help="export: default standard output"),
)
def predictions(arguments: argparse.Namespace, settings: Settings) -> int:
    """Show, export or delete logged predictions (LOG_PREDICTIONS), and all else that is kept of an entity or a key."""
    if arguments.action == "delete":
        return asyncio.run(_delete(settings, arguments))
    if arguments.action == "export":
        return asyncio.run(_export(settings, arguments))
    if arguments.request_id is None:
        return fail("predictions show needs the id of a request")
    return asyncio.run(_show(settings, arguments.request_id))


async def _show(settings: Settings, request_id: str) -> int:
    """Print each row as a line of JSON. Raises StoreUnavailable, CannotServe."""
    import msgspec

    from serving.stores import build_prediction_store

    store = build_prediction_store(settings)
    try:
        rows = await store.get(request_id)
    finally:
        await store.close()
    for row in rows:
        say(msgspec.json.encode(row).decode())
    return 0 if rows else fail(f"nothing is logged of request {request_id}")


async def _export(settings: Settings, arguments: argparse.Namespace) -> int:
    """Write the wanted rows to a file. Raises StoreUnavailable, CannotServe, OSError."""
    from serving.monitoring.predictions.store import Wanted, pages
    from serving.stores import build_prediction_store

    output, form = arguments.output, arguments.format
    suffix = output.suffix[1:] if output is not None else ""
    form = form or (suffix if suffix in FORMATS else "jsonl")
    if form == "parquet" and output is None:
        return fail("parquet needs a file: -o FILE")
    wanted = Wanted(
        model=arguments.model,
        version=arguments.version,
        entity=arguments.entity,
        key=arguments.key,
        request_id=arguments.wanted_id,
        since=arguments.since,
        until=arguments.before,
    )
    store = build_prediction_store(settings)
    last = arguments.last
    try:
        count = await WRITERS[form](pages(store, wanted, last, oldest_first=last is None), output)
    except ImportError:
        return fail("parquet needs `pip install forkserve[arrow]`")
    finally:
        await store.close()
    say(f"exported {count} rows", file=sys.stderr)
    return 0


Pages = AsyncIterator[list["LoggedPrediction"]]


async def _write_lines(pages: Pages, output: Path | None) -> int:
    import msgspec

    encoder = msgspec.json.Encoder()
    with _opened(output) as file:
        return await _write(pages, lambda rows: file.write(encoder.encode_lines(rows).decode()))


async def _write_csv(pages: Pages, output: Path | None) -> int:
    from serving.monitoring.predictions.store import LoggedPrediction

    with _opened(output) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(LoggedPrediction.__struct_fields__)
        return await _write(pages, lambda rows: table.writerows([row.values() for row in map(_cells, rows)]))


async def _write_parquet(pages: Pages, output: Path | None) -> int:
    from registry.imports import show_arrow

    show_arrow()  # hidden from pandas until here
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("id", "request_id", "key", "model", "version", "verb", "row", "answer", "source", "entity")
    kinds = dict.fromkeys(texts, pa.string()) | {"place": pa.int32(), "milliseconds": pa.float64()}
    kinds["time"] = pa.timestamp("ms", tz="UTC")
    from serving.monitoring.predictions.store import LoggedPrediction

    schema = pa.schema([(name, kinds[name]) for name in LoggedPrediction.__struct_fields__])
    with pq.ParquetWriter(output, schema) as table:
        return await _write(
            pages, lambda rows: table.write_table(pa.Table.from_pylist([_cells(row) for row in rows], schema))
        )


async def _write(pages: Pages, write: Callable[[Sequence[LoggedPrediction]], object]) -> int:
    count = 0
    async for rows in pages:
        write(rows)
        count += len(rows)
    return count


def _opened(output: Path | None) -> AbstractContextManager[IO[str]]:
    """The file to write to; leaving it does not close standard output."""
    if output is None:
        return nullcontext(sys.stdout)
    return output.open("w", encoding="utf-8", newline="")


def _cells(row: LoggedPrediction) -> dict[str, Any]:
    """A row of a table."""
    import msgspec

    cells = {name: getattr(row, name) for name in row.__struct_fields__}
    return cells | {name: msgspec.json.encode(cells[name]).decode() for name in JSON_COLUMNS}


WRITERS: dict[str, Callable[[Pages, Path | None], Awaitable[int]]] = {
    "jsonl": _write_lines,
    "csv": _write_csv,
    "parquet": _write_parquet,
}


async def _delete(settings: Settings, arguments: argparse.Namespace) -> int:
    """Delete all that is kept of somebody, and say how much. Raises StoreUnavailable, CannotServe, InvalidRedisUrl."""
    from serving.monitoring.predictions.store import Wanted

    entity, key, request_id, before = arguments.entity, arguments.key, arguments.wanted_id, arguments.before
    if [entity, key, request_id, before].count(None) != 3:
        return fail("predictions delete needs one of --entity, --key, --request-id and --before")
    if entity is not None:
        erased = await erase(settings, lambda erasure: erasure.of_entity(entity))
    elif key is not None:
        erased = await erase(settings, lambda erasure: erasure.of_key(key))
    else:
        erased = await erase(settings, lambda erasure: erasure.of_log(Wanted(request_id=request_id, until=before)))
    say(f"deleted {describe(erased)}")
    return 0


async def erase(settings: Settings, work: Callable[[Erasure], Awaitable[Erased]]) -> Erased:
    """Delete in all stores. Raises StoreUnavailable, CannotServe, InvalidRedisUrl."""
    from serving.monitoring.predictions.erasure import Erasure
    from serving.stores import build_entity_store, build_event_log, build_job_store, build_prediction_store

    async def settle() -> None:
        if settings.log_predictions != "off":
            await asyncio.sleep(SETTLE_SECONDS)

    async with AsyncExitStack() as closing:
        predictions, entities = build_prediction_store(settings), build_entity_store(settings)
        events, jobs = build_event_log(settings), build_job_store(settings)
        for store in (predictions, entities, events, jobs):
            closing.push_async_callback(store.close)
        return await work(Erasure(predictions, entities, events, jobs, settle))


def describe(erased: Erased) -> str:
    """What was deleted, in words."""
    return (
        f"{erased.records} records, {erased.outcomes} outcomes, {erased.events} events, "
        f"{erased.predictions} logged predictions, {erased.jobs} jobs"
    )
