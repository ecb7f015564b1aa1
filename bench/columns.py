"""Measures jobs of Parquet beside jobs of CSV: `python -m bench.columns` prints a table.

One service, one runner, the forest of 100 trees. Random rows are sent as a CSV, then more as a Parquet file, and
the result is fetched in the form in which they were sent: rows a second from the first byte sent to the last one read.
Beside the second job: the memory that the runner and its processes take at most, above what they took before. The issue
is 5 times the rows a second, and 150 MB.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from registry.imports import hide_arrow
from serving.process.child import limit_numeric_threads

limit_numeric_threads(os.environ)
hide_arrow()

import httpx  # noqa: E402 - pyarrow is hidden before pandas is imported
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from bench.models import add_forest  # noqa: E402
from bench.table import Table  # noqa: E402
from harness.jobs import until  # noqa: E402
from harness.service import Service  # noqa: E402
from serving.process.kernel import RUNNER, child_pids, descendants, name_of, read_memory  # noqa: E402

CSV, PARQUET = "text/csv", "application/vnd.apache.parquet"
MOST_BYTES, LEAST = 150 << 20, 5.0


def bodies(service: Service, rows: int) -> dict[str, bytes]:
    """Random rows in both forms."""
    import registry.rows.arrow  # noqa: F401, I001 - before pyarrow, which is hidden until then
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, dice = list(service.get("/v1/models/forest")["features"]), np.random.default_rng(0)
    example = service.get("/v1/models/forest")["example"]
    frame = pd.DataFrame({name: example[name] + 0.01 * dice.standard_normal(rows) for name in names})
    file = io.BytesIO()
    pq.write_table(pa.table({name: frame[name].to_numpy() for name in names}), file)
    return {CSV: frame.to_csv(index=False).encode(), PARQUET: file.getvalue()}


class Peak(threading.Thread):
    """The most private memory of the runner and its processes, looked at all the time."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        assert service.master is not None
        self._runner = next(pid for pid in child_pids(service.master) if name_of(pid) == RUNNER)
        self._ended = threading.Event()
        self.idle = self.most = self._look()

    def _look(self) -> int:
        total = 0
        for pid in (self._runner, *descendants(self._runner)):
            try:
                total += read_memory(pid).private
            except OSError:
                continue
        return total

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, self._look())

    def stop(self) -> None:
        self._ended.set()
        self.join()


def job_seconds(service: Service, client: httpx.Client, body: bytes, kind: str) -> float:
    started = time.perf_counter()
    path = "/v1/jobs?operation=predict&model=forest"
    place = client.post(path, content=body, headers={"content-type": kind}).raise_for_status().headers["location"]
    until(service, place, state="done")
    client.get(f"{place}/result", headers={"accept": kind}).raise_for_status()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the Parquet job")
    parser.add_argument("--csv-rows", type=int, default=50_000, help="rows of the CSV job")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        add_forest(Path(directory))
        environ = {"MODEL_DIR": directory, "JOB_MAX_ROWS": str(options.rows), "JOB_MAX_BODY_BYTES": str(1 << 30)}
        with Service(environ) as service, httpx.Client(base_url=service.address, timeout=600) as client:
            small, large = bodies(service, options.csv_rows), bodies(service, options.rows)[PARQUET]
            seconds = job_seconds(service, client, small[CSV], CSV)
            peak = Peak(service)
            peak.start()
            rates = {CSV: options.csv_rows / seconds}
            rates[PARQUET] = options.rows / job_seconds(service, client, large, PARQUET)
            peak.stop()
    table = Table("form", "rows", "rows/s", "times")
    table.add("CSV", options.csv_rows, round(rates[CSV]), 1.0)
    table.add("Parquet", options.rows, round(rates[PARQUET]), round(rates[PARQUET] / rates[CSV], 1))
    print(table)
    above = peak.most - peak.idle
    print(f"the runner and its processes took {above / 2**20:.0f} MB more than before")
    sys.exit(rates[PARQUET] < LEAST * rates[CSV] or above > MOST_BYTES)


if __name__ == "__main__":
    main()
