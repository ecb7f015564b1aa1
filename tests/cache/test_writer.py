"""Writing behind: never in the way, never without bound."""

from __future__ import annotations

import asyncio

import pytest

from cache.stats import Stats
from cache.writer import BATCH, Writer
from tests.cache.conftest import DictTier, turns

pytestmark = pytest.mark.anyio


@pytest.fixture
async def remote() -> DictTier:
    return DictTier()


async def test_items_of_many_requests_are_sent_together(remote: DictTier) -> None:
    writer = Writer(remote)
    for number in range(BATCH + 1):
        writer.add({b"%d" % number: b"v"})
    await writer.close()
    assert [len(write) for write in remote.writes] == [BATCH, 1]
    assert len(remote.kept) == BATCH + 1


async def test_what_does_not_fit_is_dropped_and_counted(remote: DictTier) -> None:
    stats = Stats()
    remote.gate.clear()
    writer = Writer(remote, max_bytes=100, stats=stats)
    writer.add({b"sent": b"at once"})
    await turns()
    writer.add({b"%02d" % number: bytes(18) for number in range(20)})
    assert stats.write_dropped == 15
    remote.gate.set()
    await writer.close()
    assert len(remote.kept) == 6
    writer.add({b"again": b"room"})
    await writer.close()
    assert b"again" in remote.kept


async def test_nothing_is_sent_twice_while_it_waits(remote: DictTier) -> None:
    stats = Stats()
    writer = Writer(remote, max_bytes=10, stats=stats)
    for _ in range(100):
        writer.add({b"key": b"value"})
    await writer.close()
    assert remote.writes == [{b"key": b"value"}]
    assert stats.write_dropped == 0


async def test_idle_writer_has_no_task(remote: DictTier) -> None:
    before = asyncio.all_tasks()
    writer = Writer(remote)
    writer.add({b"a": b"1"})
    assert asyncio.all_tasks() != before
    await turns()
    assert asyncio.all_tasks() == before


async def test_closing_does_not_wait_for_a_tier_that_hangs(remote: DictTier) -> None:
    stats = Stats()
    remote.gate.clear()
    before = asyncio.all_tasks()
    writer = Writer(remote, closing_seconds=0.01, stats=stats)
    writer.add({b"%d" % number: b"v" for number in range(BATCH + 5)})
    async with asyncio.timeout(5):
        await writer.close()
    assert stats.write_dropped == 5 + BATCH
    assert asyncio.all_tasks() == before
