"""The way of a request: found in memory, found in Redis, made by another request, or made and kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.errors import DeadlineExceeded
from tests.cache.conftest import PATIENCE, DictTier, turns
from tests.serving.predict.letters import Letters, rows_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make the remote tier look slow."""
    monkeypatch.setattr("cache.remote.PATIENCE_SECONDS", PATIENCE)


@pytest.fixture
async def remote() -> DictTier:
    return DictTier()


@pytest.fixture
async def letters(models: Path, remote: DictTier) -> Letters:
    return Letters(models, remote)


async def remember(models: Path, remote: DictTier, rows: str) -> None:
    """Have another worker put rows into the remote tier."""
    other = Letters(models, remote)
    await other.ask(rows)
    await other.cache.close()
    remote.lookups.clear()
    remote.writes.clear()


async def test_each_row_says_where_it_was_found(models: Path, letters: Letters, remote: DictTier) -> None:
    await remember(models, remote, "b")
    await letters.ask("a")
    assert await letters.ask("abcc") == [(b"A", "hit-memory"), (b"B", "hit-redis"), (b"C", "miss"), (b"C", "coalesced")]
    assert letters.batcher.asked == ["a", "c"]
    stats = letters.cache.stats
    assert (stats.hits_memory, stats.hits_redis, stats.misses, stats.coalesced) == (1, 1, 2, 1)


async def test_second_identical_row_is_answered_from_memory(letters: Letters, remote: DictTier) -> None:
    await letters.ask("a")
    assert await letters.ask("a") == [(b"A", "hit-memory")]
    assert (letters.batcher.asked, len(remote.lookups)) == (["a"], 1)


async def test_row_found_remotely_is_then_in_memory(models: Path, letters: Letters, remote: DictTier) -> None:
    await remember(models, remote, "a")
    assert await letters.ask("ab") == [(b"A", "hit-redis"), (b"B", "miss")]
    assert await letters.ask("a") == [(b"A", "hit-memory")]
    assert (len(remote.lookups), letters.batcher.asked) == (1, ["b"])


async def test_batch_of_known_and_new_rows_computes_the_new_ones_at_once(letters: Letters, remote: DictTier) -> None:
    await letters.ask("acegikmoqs")
    remote.lookups.clear()
    assert [value for value, _ in await letters.ask("abcdefghijklmnopqrst")] == [
        letter.encode() for letter in "ABCDEFGHIJKLMNOPQRST"
    ]
    assert letters.batcher.asked[1:] == ["bdfhjlnprt"]
    assert [len(lookup) for lookup in remote.lookups] == [10]


async def test_equal_rows_of_concurrent_requests_are_looked_up_and_computed_once(
    letters: Letters, remote: DictTier
) -> None:
    remote.gate.clear()
    tasks = [letters.start("a") for _ in range(50)]
    await turns()
    remote.gate.set()
    sources = [source for ((_, source),) in await asyncio.gather(*tasks)]
    assert (sources.count("miss"), sources.count("coalesced")) == (1, 49)
    assert (letters.batcher.asked, len(remote.lookups)) == (["a"], 1)
    assert (letters.cache.stats.misses, letters.cache.stats.coalesced) == (1, 49)


async def test_requests_that_share_some_rows_make_each_row_once(letters: Letters) -> None:
    letters.batcher.gate.clear()
    tasks = [letters.start(rows) for rows in ("ab", "bc", "cad")]
    await turns()
    letters.batcher.gate.set()
    assert await asyncio.gather(*tasks) == [
        [(b"A", "miss"), (b"B", "miss")],
        [(b"B", "coalesced"), (b"C", "miss")],
        [(b"C", "coalesced"), (b"A", "coalesced"), (b"D", "miss")],
    ]
    assert letters.batcher.asked == ["ab", "c", "d"]


async def test_answer_does_not_wait_for_the_remote_write(letters: Letters, remote: DictTier) -> None:
    letters.batcher.gate.clear()
    asked = letters.start("a")
    await turns()
    remote.gate.clear()
    letters.batcher.gate.set()
    async with asyncio.timeout(5):
        assert await asked == [(b"A", "miss")]
        await turns()
    assert [list(write.values()) for write in remote.writes] == [[b"A"]]
    assert remote.kept == {}
    remote.gate.set()
    await letters.cache.close()
    assert list(remote.kept.values()) == [b"A"]


async def test_follower_of_a_cancelled_request_is_answered(letters: Letters) -> None:
    letters.batcher.gate.clear()
    first, second = letters.start("a"), letters.start("a")
    await turns()
    first.cancel()
    await turns()
    letters.batcher.gate.set()
    assert await second == [(b"A", "miss")]


async def test_error_of_the_model_is_raised_in_all_that_wait_and_nothing_is_kept(
    letters: Letters, remote: DictTier
) -> None:
    letters.batcher.gate.clear()
    letters.batcher.error = LookupError("no such model")
    tasks = [letters.start("a") for _ in range(3)]
    await turns()
    letters.batcher.gate.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [letters.batcher.error] * 3
    letters.batcher.error = None
    await turns()
    assert (remote.writes, letters.batcher.asked) == ([], ["a"])
    assert await letters.ask("a") == [(b"A", "miss")]


async def test_memory_alone_works_the_same(models: Path) -> None:
    letters = Letters(models)
    letters.batcher.quick = True
    assert await letters.ask("aa") == [(b"A", "miss"), (b"A", "coalesced")]
    assert await letters.ask("a") == [(b"A", "hit-memory")]
    assert letters.cache.redis_state == "disabled"


async def test_values_that_memory_has_no_room_for_are_still_answered(models: Path, remote: DictTier) -> None:
    letters = Letters(models, remote, max_items=1)
    assert [value for value, _ in await letters.ask("abc")] == [b"A", b"B", b"C"]


async def test_request_that_is_divided_is_answered_part_by_part(letters: Letters) -> None:
    await letters.ask("c")
    letters.batcher.rows_in_a_part = 2
    parts = [part async for part in letters.inference.answer_by_parts(letters.diabetes, "predict", rows_of("abcde"))]
    assert parts == [
        [(b"A", "miss"), (b"B", "miss")],
        [(b"C", "hit-memory"), (b"D", "miss")],
        [(b"E", "miss")],
    ]
    assert letters.batcher.asked == ["c", "ab", "d", "e"]


async def test_deadline_of_a_request_covers_all_of_its_parts(letters: Letters) -> None:
    parts = letters.inference.answer_by_parts(letters.diabetes, "predict", rows_of("ab"), timeout=0.05)
    assert await anext(parts) == [(b"A", "miss")]
    letters.batcher.gate.clear()
    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.05 s"):
        await anext(parts)


async def test_request_is_over_at_its_deadline(letters: Letters) -> None:
    letters.batcher.gate.clear()
    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.05 s"):
        await letters.inference.answer(letters.diabetes, "predict", rows_of("a"), timeout=0.05)
    letters.batcher.gate.set()
    assert await letters.ask("a") == [(b"A", "miss")]
