"""Measures the check of a request's key: `python -m bench.keys`."""

from __future__ import annotations

import time
import timeit
from typing import Any

from bench.table import Table
from serving.errors import NotAuthorized
from serving.http.keys import Key, Keys, digest_of, new_secret

ROUNDS = 100_000


def request(sent: str, number: int = 0) -> dict[str, Any]:
    """The scope of a prediction with the headers that clients usually send."""
    headers = {"host": "localhost", "accept": "*/*", "user-agent": "x", "content-type": "application/json"}
    raw = [(name.encode(), value.encode()) for name, value in (headers | {"authorization": f"Bearer {sent}"}).items()]
    return {"method": "POST", "path": f"/v1/models/model-{number}:predict", "headers": raw, "query_string": b""}


def microseconds(keys: Keys, scopes: list[dict[str, Any]]) -> str:
    """Processor time of one check, with each of the requests in turn; the best of five rounds."""

    def check() -> None:
        for scope in scopes:
            try:
                keys.check(scope)
            except NotAuthorized:
                continue

    rounds = max(1, ROUNDS // len(scopes))
    seconds = min(timeit.repeat(check, timer=time.process_time, number=rounds, repeat=5))
    return f"{seconds / rounds / len(scopes) * 1e6:.2f}"


def main() -> None:
    """Print the table."""
    secrets = [new_secret() for _ in range(10_000)]
    table = Table("keys", "requests", "us a check")
    for count in (1, 10_000):
        held = secrets[:count]
        keys = Keys(Key(f"key-{place}", digest_of(one), frozenset({"predict"})) for place, one in enumerate(held))
        several = [request(held[number % count], number) for number in range(10_000)]
        table.add(count, "the same key and model", microseconds(keys, [request(secrets[0])]))
        table.add(count, "each another key and model", microseconds(keys, several))
        table.add(count, "unknown keys", microseconds(keys, [request(new_secret()) for _ in range(10_000)]))
    print(table)


if __name__ == "__main__":
    main()
