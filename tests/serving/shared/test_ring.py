"""Rings between processes: written by forked children of the test, which may be killed, and read by the test."""

from __future__ import annotations

import os
import random

import pytest

from serving.shared.book import Book
from serving.shared.ring import Ring, Rings
from tests.serving.shared.test_book import in_child

SIZE = 1024

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def ring() -> Ring:
    return Ring(SIZE)


def take(ring: Ring, max_bytes: int = SIZE) -> list[bytes]:
    records, end = ring.read(max_bytes)
    ring.release(end)
    return [record.content for record in records]


def test_what_is_written_is_read_once_and_in_order(ring: Ring) -> None:
    assert take(ring) == []
    assert ring.put(b"one")
    assert ring.put(b"")
    assert ring.put(b"three")
    assert take(ring) == [b"one", b"", b"three"]
    assert take(ring) == []


def test_what_is_not_released_is_read_again_in_the_same_place(ring: Ring) -> None:
    ring.put(b"one")
    before, _ = ring.read(SIZE)
    ring.put(b"two")
    after, _ = ring.read(SIZE)
    assert after[0] == before[0]
    assert [record.content for record in after] == [b"one", b"two"]


def test_a_full_ring_refuses_and_keeps_what_it_has(ring: Ring) -> None:
    written: list[bytes] = []
    while ring.put(record := b"%3d" % len(written) * 10):
        written.append(record)
    assert len(written) > 10
    assert not ring.put(b"x" * 40)
    assert take(ring) == written
    assert ring.put(b"x" * 40)


@pytest.mark.parametrize("start", range(0, SIZE, 8))
def test_the_largest_record_fits_an_empty_ring_wherever_that_has_got(ring: Ring, start: int) -> None:
    ring._numbers[0] = ring._numbers[8] = 5 * SIZE + start
    largest = os.urandom(ring.max_record)
    assert not ring.put(largest + b"x")
    assert ring.put(largest)
    assert take(ring) == [largest]


def test_records_of_all_lengths_come_through(ring: Ring) -> None:
    chance = random.Random(5)
    waiting: list[bytes] = []
    positions = set()
    read = 0
    for _ in range(20_000):
        record = chance.randbytes(chance.choice((0, 1, 7, 8, 9, 60, 200, 400)))
        if ring.put(record):
            waiting.append(record)
        if chance.random() < 0.3:
            records, end = ring.read(chance.choice((1, 100, SIZE)))
            ring.release(end)
            positions |= {record.position for record in records}
            assert [record.content for record in records] == waiting[: len(records)]
            del waiting[: len(records)]
            read += len(records)
    assert read > 5000
    assert len(positions) == read


@pytest.mark.parametrize("start", range(0, SIZE, 56))
def test_a_ring_holds_as_much_wherever_it_has_got(ring: Ring, start: int) -> None:
    ring._numbers[0] = ring._numbers[8] = start
    for _ in range(SIZE // 48 - 1):
        assert ring.put(b"x" * 40)


def test_each_process_writes_to_its_own_ring_and_one_that_is_gone_leaves_what_it_wrote() -> None:
    book = Book(2)
    rings = book.rings()
    assert rings.own is None

    def write(slot: int, records: list[bytes]) -> None:
        book.enter(slot)
        assert rings.own is not None
        for record in records:
            rings.own.put(record)

    slots = [book.assign(), book.assign()]
    for slot in slots:
        in_child(lambda slot=slot: write(slot, [b"%d" % slot, b"more"]))  # type: ignore[misc]
    book.release(slots[0], "web")
    successor = book.assign()
    assert successor == slots[0]
    in_child(lambda: write(successor, [b"later"]))
    assert [take(rings.all[slot]) for slot in slots] == [
        [b"%d" % slots[0], b"more", b"later"],
        [b"%d" % slots[1], b"more"],
    ]


def test_a_process_too_many_has_no_ring() -> None:
    rings = Rings(3, SIZE)
    rings.enter(2)
    assert rings.own is None
