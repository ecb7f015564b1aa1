"""The memory tier: bounds, order, time."""

from __future__ import annotations

import gc
import random
import tracemalloc

import pytest

from cache.memory import ENTRY_BYTES, MAX_SHARE, MemoryTier, Stats
from tests.cache.conftest import Clock


def make_memory(clock: Clock, max_items: int = 3, max_bytes: int = 1 << 20) -> tuple[MemoryTier, Stats]:
    stats = Stats()
    return MemoryTier(max_items=max_items, max_bytes=max_bytes, ttl_seconds=10, stats=stats, clock=clock), stats


def test_least_recently_used_goes_first(clock: Clock) -> None:
    memory, stats = make_memory(clock)
    for key in (b"a", b"b", b"c"):
        memory.put(key, key)
    assert memory.find([b"a"]) == [b"a"]
    memory.put(b"d", b"d")
    assert memory.find([b"a", b"b", b"c", b"d"]) == [b"a", None, b"c", b"d"]
    assert (stats.items, stats.evictions) == (3, 1)


def test_putting_a_key_again_makes_it_recent_and_its_time_anew(clock: Clock) -> None:
    memory, stats = make_memory(clock, max_items=2)
    memory.put(b"a", b"1")
    memory.put(b"b", b"2")
    clock.advance(6)
    memory.put(b"a", b"three")
    memory.put(b"c", b"4")
    clock.advance(6)
    assert memory.find([b"a", b"b", b"c"]) == [b"three", None, b"4"]
    assert stats.bytes == 2 * (ENTRY_BYTES + 1) + 6


def test_value_lives_exactly_its_time_however_often_it_is_used(clock: Clock) -> None:
    memory, stats = make_memory(clock)
    memory.put(b"a", b"1")
    clock.advance(9.9)
    assert memory.find([b"a"]) == [b"1"]
    clock.advance(0.1)
    assert memory.find([b"a"]) == [None]
    assert (stats.items, stats.bytes, stats.evictions) == (0, 0, 0)


def test_what_goes_after_its_time_is_no_eviction(clock: Clock) -> None:
    memory, stats = make_memory(clock, max_items=1)
    memory.put(b"a", b"1")
    clock.advance(11)
    memory.put(b"b", b"2")
    assert stats.evictions == 0


def test_nothing_is_expired_in_one_go(clock: Clock) -> None:
    memory, stats = make_memory(clock, max_items=1000)
    for number in range(1000):
        memory.put(b"%d" % number, b"1")
    clock.advance(11)
    assert memory.find([b"0"]) == [None]
    assert stats.items == 999, "a lookup removes what it looked for"
    memory.put(b"a", b"1")
    memory.put(b"b", b"1")
    assert stats.items == 1000, "a put removes as many as it needs room for"
    assert stats.evictions == 0


def test_clearing_forgets_everything(clock: Clock) -> None:
    memory, stats = make_memory(clock)
    memory.put(b"a", b"1")
    memory.clear()
    assert (memory.find([b"a"]), stats.items, stats.bytes) == ([None], 0, 0)
    memory.put(b"a", b"1")
    assert memory.find([b"a"]) == [b"1"]


def test_entry_that_takes_more_than_its_share_is_not_kept(clock: Clock) -> None:
    memory, stats = make_memory(clock, max_bytes=80_000)
    largest = 80_000 // MAX_SHARE - ENTRY_BYTES - 1
    memory.put(b"a", bytes(largest))
    memory.put(b"b", bytes(largest + 1))
    assert memory.find([b"a"]) != [None]
    assert memory.find([b"b"]) == [None]
    assert stats.items == 1


def test_value_that_has_grown_too_large_is_not_kept_in_its_old_form(clock: Clock) -> None:
    memory, stats = make_memory(clock, max_bytes=80_000)
    memory.put(b"a", b"1")
    memory.put(b"a", bytes(80_000))
    assert memory.find([b"a"]) == [None]
    assert (stats.items, stats.bytes) == (0, 0)


@pytest.mark.parametrize(("max_items", "max_bytes"), [(0, 1 << 20), (10, 0)])
def test_cache_without_room_keeps_nothing(clock: Clock, max_items: int, max_bytes: int) -> None:
    memory, stats = make_memory(clock, max_items, max_bytes)
    memory.put(b"a", b"1")
    assert memory.find([b"a"]) == [None]
    assert (stats.items, stats.bytes) == (0, 0)


def test_bounds_hold_under_any_load(clock: Clock) -> None:
    memory, stats = make_memory(clock, max_items=40, max_bytes=100_000)
    random_numbers = random.Random(1)
    fullest = most = 0
    for _ in range(20_000):
        key = random_numbers.randbytes(1)
        if random_numbers.random() < 0.3:
            memory.find([key])
        else:
            memory.put(key, bytes(random_numbers.choice([10, 10, 10, 100, 3_000, 12_000, 50_000])))
        clock.advance(random_numbers.random() / 10)
        assert 0 <= stats.items <= 40
        assert 0 <= stats.bytes <= 100_000
        fullest, most = max(fullest, stats.bytes), max(most, stats.items)
    assert fullest > 90_000
    assert most == 40


@pytest.mark.parametrize("items", [700, 5_463, 10_924])
def test_size_of_an_entry_covers_what_python_allocates_for_it(items: int) -> None:
    """The numbers are those at which the dictionary has just grown; as many again make it churn."""
    stats = Stats()
    gc.collect()
    tracemalloc.start()
    memory = MemoryTier(max_items=items, max_bytes=1 << 30, ttl_seconds=60, stats=stats)
    for number in range(2 * items):
        memory.put(number.to_bytes(24, "big"), number.to_bytes(100, "big"))
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stats.items == items
    assert 0.5 * stats.bytes < allocated <= stats.bytes
