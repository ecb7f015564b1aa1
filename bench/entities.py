"""One entity asked about with five models, as fast as a client may: uncached and cached, over SQLite and over Supabase.

The targets are 100 ms at the 95th percentile uncached, over SQLite, and 10 ms cached.

    python -m bench.entities
"""

from __future__ import annotations

import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.table import Table
from harness.entities import import_market, sqlite_source
from harness.service import Service, demo_models
from harness.supabase import postgres_server, supabase_server
from serving.entities.supabase import SupabaseEntityStore

REQUESTS = 300
SHARES = ("AAPL", "FB", "GOOG", "IBM", "MSFT")


def main() -> None:
    table = Table("records", "answers", "median ms", "95 %", "99 %")
    with demo_models() as models:
        for kind, environ in stores():
            for cached, settings in ((False, {"CACHE_MAX_ITEMS": "0"}), (True, {})):
                common = {"MODEL_DIR": str(models), "WEB_CONCURRENCY": "1", "MAX_REQUESTS": "0"}
                with Service(common | settings | dict(environ)) as service:
                    seconds = [*measure(service.address)]
                table.add(kind, "cached" if cached else "uncached", *figures(seconds))
    print(table)


@contextmanager
def directory() -> Iterator[Path]:
    """A temporary directory for a file of records."""
    with tempfile.TemporaryDirectory(prefix="forkserve-entities-") as name:
        yield Path(name)


def stores() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Both kinds with the market in them, and the settings that name them."""
    with directory() as data:
        import_market(sqlite_source(data))
        yield "SQLite", {"DATA_DIR": str(data)}
    with postgres_server() as postgres, supabase_server(postgres) as server:
        import_market(SupabaseEntityStore(server.url, server.key, keep_records=1000, keep_outcomes=1000))
        yield "Supabase", {"SUPABASE_URL": server.url, "SUPABASE_SERVICE_KEY": server.key}


def measure(address: str) -> Iterator[float]:
    """Seconds of each request, over one connection; the first of each share are not counted."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    for number in range(-len(SHARES), REQUESTS):
        share = SHARES[number % len(SHARES)]
        started = time.perf_counter()
        connection.request("GET", f"/v1/entities/{share}/predictions")
        answer = json.load(connection.getresponse())
        seconds = time.perf_counter() - started
        assert len(answer["models"]) == 5
        assert all(len(one["predictions"]) == 10 for one in answer["models"])
        if number >= 0:
            yield seconds
    connection.close()


def figures(seconds: list[float]) -> list[str]:
    """Median, 95th and 99th percentile in milliseconds."""
    hundredths = statistics.quantiles(seconds, n=100)
    return [f"{hundredths[place - 1] * 1e3:.1f}" for place in (50, 95, 99)]


if __name__ == "__main__":
    main()
