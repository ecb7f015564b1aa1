"""Connections left over when HTTP calls are cancelled at random moments: `python -m bench.calls` prints a table."""

from __future__ import annotations

import argparse
import asyncio

from bench.table import Table
from harness.calls import leak_of_ours, leak_of_plain


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    calls = parser.parse_args().calls
    table = Table("client", "calls", "done", "connections left", "calls left over")
    table.add("httpx", calls, *asyncio.run(leak_of_plain(calls)))
    table.add("forkserve", calls, *asyncio.run(leak_of_ours(calls)))
    print(table)


if __name__ == "__main__":
    main()
