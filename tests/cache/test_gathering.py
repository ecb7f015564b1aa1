"""Lookups of one turn of the loop are one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cache.gathering import MAX_KEYS, MAX_LOOKUPS, GatheringTier
from tests.cache.conftest import PATIENCE, DictTier, turns

pytestmark = pytest.mark.anyio


@pytest.fixture
async def remote() -> DictTier:
    tier = DictTier()
    tier.kept = {b"a": b"A", b"b": b"B"}
    return tier


@pytest.fixture
async def gathering(remote: DictTier, patient: None) -> GatheringTier:
    return GatheringTier(remote)


async def test_requests_of_one_turn_share_a_round_trip(gathering: GatheringTier, remote: DictTier) -> None:
    found = await asyncio.gather(*(gathering.get_many(keys) for keys in ([b"a"], [b"b", b"x"], [b"a"])))
    assert found == [[b"A"], [b"B", None], [b"A"]]
    assert remote.lookups == [[b"a", b"b", b"x", b"a"]]


async def test_what_arrives_while_all_round_trips_are_under_way_is_the_next_one(
    gathering: GatheringTier, remote: DictTier
) -> None:
    remote.gate.clear()
    first = []
    for _ in range(MAX_LOOKUPS):
        first.append(asyncio.ensure_future(gathering.get_many([b"a"])))
        await turns()
    later = [asyncio.ensure_future(gathering.get_many([key])) for key in (b"a", b"b", b"x")]
    await turns()
    assert len(remote.lookups) == MAX_LOOKUPS
    remote.gate.set()
    assert await asyncio.gather(*first, *later) == [*[[b"A"]] * MAX_LOOKUPS, [b"A"], [b"B"], [None]]
    assert remote.lookups[MAX_LOOKUPS:] == [[b"a", b"b", b"x"]]


async def test_round_trip_is_bounded_but_no_request_is_divided(gathering: GatheringTier, remote: DictTier) -> None:
    sizes = (MAX_KEYS // 2, MAX_KEYS // 2, 1, 2 * MAX_KEYS)
    await asyncio.gather(*(gathering.get_many([b"x"] * size) for size in sizes))
    assert [len(keys) for keys in remote.lookups] == [MAX_KEYS, 1, 2 * MAX_KEYS]


async def test_cancelled_request_takes_no_other_along(gathering: GatheringTier, remote: DictTier) -> None:
    remote.gate.clear()
    gone, staying = (asyncio.ensure_future(gathering.get_many([key])) for key in (b"a", b"b"))
    await turns()
    gone.cancel()
    remote.gate.set()
    assert await staying == [b"B"]


async def test_error_reaches_all_who_asked_and_none_after_them(gathering: GatheringTier, remote: DictTier) -> None:
    well = remote.get_many

    async def broken(keys: Sequence[bytes]) -> list[bytes | None]:
        raise RuntimeError(keys)

    remote.get_many = broken  # type: ignore[method-assign]
    results = await asyncio.gather(gathering.get_many([b"a"]), gathering.get_many([b"b"]), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError, RuntimeError]
    remote.get_many = well  # type: ignore[method-assign]
    assert await gathering.get_many([b"a"]) == [b"A"]


async def test_nobody_waits_long_for_round_trips_that_hang(
    gathering: GatheringTier, remote: DictTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.gate.clear()
    monkeypatch.setattr("cache.gathering.PATIENCE", 0.01)
    asked = []
    for _ in range(MAX_LOOKUPS + 1):
        asked.append(asyncio.ensure_future(gathering.get_many([b"a"])))
        await turns()
    assert await asyncio.gather(*asked) == [[None]] * (MAX_LOOKUPS + 1)
    assert len(remote.lookups) == MAX_LOOKUPS
    late = asyncio.ensure_future(gathering.get_many([b"a", b"b"]))
    await turns()
    assert late.done()  # all are known to hang by now, so that it need not wait at all
    assert await late == [None, None]
    monkeypatch.setattr("cache.gathering.PATIENCE", PATIENCE)
    remote.gate.set()
    await turns()
    assert await gathering.get_many([b"b"]) == [b"B"]
    assert remote.lookups[MAX_LOOKUPS:] == [[b"b"]]
