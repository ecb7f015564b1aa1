"""Lookups that coincide are one round trip; writes are never in the way, and never without bound."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cache.memory import Stats
from cache.remote import MAX_KEYS, MAX_LOOKUPS, WRITE_BATCH, BackgroundTier
from tests.cache.conftest import PATIENCE, DictTier, turns

pytestmark = pytest.mark.anyio


@pytest.fixture
async def remote() -> DictTier:
    tier = DictTier()
    tier.kept = {b"a": b"A", b"b": b"B"}
    return tier


@pytest.fixture
async def tier(remote: DictTier, patient: None) -> BackgroundTier:
    return BackgroundTier(remote, Stats())


async def test_requests_of_one_turn_share_a_round_trip(tier: BackgroundTier, remote: DictTier) -> None:
    found = await asyncio.gather(*(tier.find(keys) for keys in ([b"a"], [b"b", b"x"], [b"a"])))
    assert found == [[b"A"], [b"B", None], [b"A"]]
    assert remote.lookups == [[b"a", b"b", b"x", b"a"]]


async def test_what_arrives_while_all_round_trips_are_under_way_is_the_next_one(
    tier: BackgroundTier, remote: DictTier
) -> None:
    remote.gate.clear()
    first = []
    for _ in range(MAX_LOOKUPS):
        first.append(asyncio.ensure_future(tier.find([b"a"])))
        await turns()
    later = [asyncio.ensure_future(tier.find([key])) for key in (b"a", b"b", b"x")]
    await turns()
    assert len(remote.lookups) == MAX_LOOKUPS
    remote.gate.set()
    assert await asyncio.gather(*first, *later) == [*[[b"A"]] * MAX_LOOKUPS, [b"A"], [b"B"], [None]]
    assert remote.lookups[MAX_LOOKUPS:] == [[b"a", b"b", b"x"]]


async def test_round_trip_is_bounded_but_no_request_is_divided(tier: BackgroundTier, remote: DictTier) -> None:
    sizes = (MAX_KEYS // 2, MAX_KEYS // 2, 1, 2 * MAX_KEYS)
    await asyncio.gather(*(tier.find([b"x"] * size) for size in sizes))
    assert [len(keys) for keys in remote.lookups] == [MAX_KEYS, 1, 2 * MAX_KEYS]


async def test_cancelled_request_takes_no_other_along(tier: BackgroundTier, remote: DictTier) -> None:
    remote.gate.clear()
    gone, staying = (asyncio.ensure_future(tier.find([key])) for key in (b"a", b"b"))
    await turns()
    gone.cancel()
    remote.gate.set()
    assert await staying == [b"B"]


async def test_error_reaches_all_who_asked_and_none_after_them(tier: BackgroundTier, remote: DictTier) -> None:
    well = remote.get_many

    async def broken(keys: Sequence[bytes]) -> list[bytes | None]:
        raise RuntimeError(keys)

    remote.get_many = broken  # type: ignore[method-assign]
    results = await asyncio.gather(tier.find([b"a"]), tier.find([b"b"]), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError, RuntimeError]
    remote.get_many = well  # type: ignore[method-assign]
    assert await tier.find([b"a"]) == [b"A"]


async def test_nobody_waits_long_for_round_trips_that_hang(
    tier: BackgroundTier, remote: DictTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.gate.clear()
    monkeypatch.setattr("cache.remote.PATIENCE_SECONDS", 0.01)
    asked = []
    for _ in range(MAX_LOOKUPS + 1):
        asked.append(asyncio.ensure_future(tier.find([b"a"])))
        await turns()
    assert await asyncio.gather(*asked) == [[None]] * (MAX_LOOKUPS + 1)
    assert len(remote.lookups) == MAX_LOOKUPS
    late = asyncio.ensure_future(tier.find([b"a", b"b"]))
    await turns()
    assert late.done()  # all are known to hang by now, so that it need not wait at all
    assert await late == [None, None]
    monkeypatch.setattr("cache.remote.PATIENCE_SECONDS", PATIENCE)
    remote.gate.set()
    await turns()
    assert await tier.find([b"b"]) == [b"B"]
    assert remote.lookups[MAX_LOOKUPS:] == [[b"b"]]


async def test_items_of_many_requests_are_sent_together(remote: DictTier) -> None:
    tier = BackgroundTier(remote, Stats())
    for number in range(WRITE_BATCH + 1):
        tier.keep({b"%d" % number: b"v"})
    await tier.close()
    assert [len(write) for write in remote.writes] == [WRITE_BATCH, 1]
    assert len(remote.kept) == 2 + WRITE_BATCH + 1, "and the two that were there"


async def test_what_does_not_fit_is_dropped_and_counted(remote: DictTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.remote.MAX_UNWRITTEN_BYTES", 100)
    stats = Stats()
    remote.gate.clear()
    tier = BackgroundTier(remote, stats)
    tier.keep({b"sent": b"at once"})
    await turns()
    tier.keep({b"%02d" % number: bytes(18) for number in range(20)})
    assert stats.write_dropped == 15
    remote.gate.set()
    await tier.close()
    assert len(remote.kept) == 2 + 6, "and the two that were there"
    tier.keep({b"again": b"room"})
    await tier.close()
    assert b"again" in remote.kept


async def test_nothing_is_sent_twice_while_it_waits(remote: DictTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.remote.MAX_UNWRITTEN_BYTES", 10)
    stats = Stats()
    tier = BackgroundTier(remote, stats)
    for _ in range(100):
        tier.keep({b"key": b"value"})
    await tier.close()
    assert remote.writes == [{b"key": b"value"}]
    assert stats.write_dropped == 0


async def test_idle_tier_has_no_task(remote: DictTier) -> None:
    before = asyncio.all_tasks()
    tier = BackgroundTier(remote, Stats())
    tier.keep({b"a": b"1"})
    assert asyncio.all_tasks() != before
    await turns()
    assert asyncio.all_tasks() == before


async def test_closing_does_not_wait_for_a_tier_that_hangs(remote: DictTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.remote.CLOSING_SECONDS", 0.01)
    stats = Stats()
    remote.gate.clear()
    before = asyncio.all_tasks()
    tier = BackgroundTier(remote, stats)
    tier.keep({b"%d" % number: b"v" for number in range(WRITE_BATCH + 5)})
    async with asyncio.timeout(5):
        await tier.close()
    assert stats.write_dropped == 5 + WRITE_BATCH
    assert asyncio.all_tasks() == before
