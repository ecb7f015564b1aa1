"""The table of a box: shared by its processes, and never larger."""

from __future__ import annotations

import os
import struct

import pytest

from serving.process.kernel import read_memory
from serving.shared.rate_table import Rate, RateTable

SLOW = Rate(100, 3600.0, 100)


def test_forked_processes_count_the_same_clients() -> None:
    table = RateTable(SLOW, buckets=64)
    readable, writable = os.pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            allowed = sum(table.count(b"aaaa").allowed for _ in range(30))
            os.write(writable, bytes([allowed]))
            os._exit(0)
        os.waitpid(pid, 0)  # one after the other: what two do in the same microsecond is not promised
        children.append(pid)
    assert list(os.read(readable, 4)) == [30, 30, 30, 10]
    assert not table.count(b"aaaa").allowed
    os.close(readable)
    os.close(writable)


def test_300_000_clients_are_remembered_in_less_than_20_megabytes() -> None:
    table = RateTable(Rate(2, 3600.0, 2))
    before = read_memory(os.getpid())
    clients = range(300_000)
    for _ in range(2):
        for client in clients:
            table.count(struct.pack("!I", client))
    after = read_memory(os.getpid())
    grown = after.private + after.shared - before.private - before.shared
    assert grown <= 20 << 20
    forgotten = sum(table.count(struct.pack("!I", client)).allowed for client in clients)
    assert forgotten < 0.005 * len(clients)


def test_a_full_bucket_forgets_who_owes_least() -> None:
    table = RateTable(Rate(10, 3600.0, 10), buckets=1)
    for _ in range(10):
        table.count(b"debtor")
    for number in range(10_000):
        table.count(number.to_bytes(4))
    assert not table.count(b"debtor").allowed


def test_clients_cannot_choose_their_bucket() -> None:
    first, second = (RateTable(SLOW, buckets=1 << 10) for _ in range(2))
    for table in (first, second):
        for client in range(8):
            table.count(b"%d" % client)
    assert _places(first) != _places(second)


def _places(table: RateTable) -> list[int]:
    return [place for place, word in enumerate(table._words) if word]


@pytest.mark.parametrize("rate", [Rate(1000, 1.0, 1000), Rate(1, 86_400.0, 1), Rate(7, 1.0, 3)])
def test_in_the_long_run_as_many_are_allowed_as_the_rate_says(rate: Rate) -> None:
    clock = [0.0]
    table = RateTable(rate, buckets=1, clock=lambda: clock[0])
    steps, allowed = 20_000, 0
    seconds = 2000 * rate.interval
    for step in range(steps):
        clock[0] = seconds * step / steps
        allowed += table.count(b"aaaa").allowed
    assert allowed == pytest.approx(2000 + rate.burst, rel=0.006, abs=1.5)
