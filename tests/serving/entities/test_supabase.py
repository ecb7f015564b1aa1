"""Supabase under faults, without HTTP in front: calls end in time and leave nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from decimal import Decimal
from random import Random
from typing import Any

import httpx
import pytest

from harness.supabase import SupabaseServer
from serving.entities.record import now
from serving.entities.supabase import CALLS_AT_ONCE, SupabaseEntityStore
from serving.errors import InvalidRecord, InvalidRequest, StoreFull, StoreUnavailable
from serving.storage.guard import Breaker
from tests.serving.conftest import WallClock, until
from tests.serving.entities.conftest import outcome, record

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> WallClock:
    """The breaker's."""
    return WallClock()


@pytest.fixture
async def store(own_supabase: SupabaseServer, clock: WallClock) -> AsyncIterator[SupabaseEntityStore]:
    breaker = Breaker(clock=clock)
    store = SupabaseEntityStore(own_supabase.url, own_supabase.key, keep_records=5, keep_outcomes=5000, breaker=breaker)
    yield store
    own_supabase.resume()
    await store.close()


async def answers(store: SupabaseEntityStore, clock: WallClock) -> bool:
    """Whether it does, once its breaker lets anybody ask."""
    clock.now += 60
    try:
        await store.newest("a", 1)
    except StoreUnavailable:
        return False
    return True


@pytest.mark.usefixtures("patient")
async def test_cancelled_calls_give_their_connections_back(store: SupabaseEntityStore, clock: WallClock) -> None:
    await store.add_records([record(1)])
    moments = Random(1)
    for _ in range(30):
        calls = [asyncio.create_task(store.newest("a", 1)) for _ in range(3 * CALLS_AT_ONCE)]
        # at another moment each time: connecting, sent, answered
        await asyncio.wait(calls, timeout=moments.uniform(0, 0.05))
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await until(lambda: answers(store, clock))
    found = await asyncio.gather(*(store.newest("a", 1) for _ in range(CALLS_AT_ONCE)))
    assert found == [[record(1)]] * CALLS_AT_ONCE


async def test_a_hung_server_is_given_up_and_then_left_alone(
    store: SupabaseEntityStore, own_supabase: SupabaseServer, clock: WallClock
) -> None:
    await until(lambda: answers(store, clock))
    own_supabase.pause()
    found = await asyncio.gather(*(store.newest("a", 1) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in found] == ["Supabase is unavailable: ReadTimeout"] * 3
    assert store.state == "open"
    with pytest.raises(StoreUnavailable, match=r"^Supabase is unavailable$"):  # and not of what it would have died
        await store.newest("a", 1)
    own_supabase.resume()
    await until(lambda: answers(store, clock))
    assert store.state == "closed"


async def test_a_dead_server_is_seen_at_once(store: SupabaseEntityStore, own_supabase: SupabaseServer) -> None:
    own_supabase.kill()
    with pytest.raises(StoreUnavailable, match=r"^Supabase is unavailable: ConnectError$"):
        await store.newest("a", 1)
    own_supabase.start()


async def test_answers_that_are_none_are_failures() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = babbled.pop()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        writer.close()

    answers = [b'[{"id": 1}]', b"[1]", b"not JSON", b'"text"', b"null", b'{"a": 1}']
    babbled = answers + answers
    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    store = SupabaseEntityStore(url, "key", keep_records=1, keep_outcomes=1, breaker=Breaker(failures=100))
    for _ in answers:
        with pytest.raises(StoreUnavailable):
            await store.newest("a", 1)
        with pytest.raises(StoreUnavailable):
            await store.outcomes("m", 1)
    await store.close()
    server.close()
    await server.wait_closed()


BAD_ROWS = {
    "text": ("now()", "'\"text\"'"),
    "array": ("now()", "'[1]'"),
    "nested": ("now()", """'{"x": [1]}'"""),
    "infinite time": ("'infinity'", """'{"x": 1}'"""),
    "late time": ("'10000-01-01'", """'{"x": 1}'"""),
}


@pytest.mark.usefixtures("patient")
async def test_a_row_that_somebody_else_has_written_costs_its_entity_only(
    store: SupabaseEntityStore, own_supabase: SupabaseServer
) -> None:
    await store.add_records([record(1, "good")])
    own_supabase.run("alter table entity_records drop constraint entity_records_forms")
    for name, (time, data) in BAD_ROWS.items():
        row = f"values ('{name}', 'odd', {time}, {data})"
        own_supabase.run(f"insert into entity_records (entity, id, time, data) {row}")
    own_supabase.run("alter table model_outcomes drop constraint model_outcomes_forms")
    await store.add_outcomes([outcome(1)])
    outcomes = "('m', '1', 'a', 'infinity', '{}', '1', '1'), ('m', '1', 'b', now(), '[]', '[]', '1')"
    own_supabase.run(
        f"insert into model_outcomes (model, version, id, time, instance, outcome, prediction) values {outcomes}"
    )
    own_supabase.apply_schema()  # older rows do not prevent it
    for _ in range(3):
        for name in BAD_ROWS:
            with pytest.raises(InvalidRecord, match="the stored record odd is not valid"):
                await store.newest(name, 1)
        assert await store.outcomes("m", 10) == [outcome(1)]
    assert await store.newest("good", 1) == [record(1, "good")]
    assert store.state == "closed"
    for name in BAD_ROWS.keys() - {"nested"}:
        with pytest.raises(RuntimeError, match="entity_records_forms"):
            own_supabase.run(f"update entity_records set id = 'other' where entity = '{name}'")


@pytest.mark.usefixtures("patient")
async def test_values_that_the_server_refuses_do_not_make_it_look_unwell(store: SupabaseEntityStore) -> None:
    for _ in range(5):
        with pytest.raises(InvalidRequest, match="the store refuses these values"):
            await store.add_outcomes([outcome(1, instance={"x": "a\0b"})])
    assert store.state == "closed"


@pytest.mark.usefixtures("patient")
async def test_an_old_schema_is_named_and_costs_only_the_calls_that_need_the_new_one(
    store: SupabaseEntityStore, own_supabase: SupabaseServer, capsys: pytest.CaptureFixture[str]
) -> None:
    own_supabase.run("drop table model_outcomes")
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match=r"run supabase\.sql"):
            await store.outcomes("m", 1)
    assert await store.newest("a", 1) == []
    assert capsys.readouterr().out.count("Supabase schema is old") == 1


OLD = """
drop trigger entity_records_added on entity_records; drop trigger entity_records_deleted on entity_records;
drop trigger entity_records_truncated on entity_records; drop table entity_record_counts;
alter table entity_records drop column kind, drop column writer, drop constraint entity_records_forms;
drop table model_quality; drop table model_low_quality; alter table model_outcomes drop column probabilities;
alter table model_outcomes drop column entity, drop column writer, drop constraint model_outcomes_forms;
insert into entity_records (entity, id, time, data)
values ('a', '1', '2024-02-28', '{"x": 1}'), ('b', '1', now(), '{}')
"""
"""Makes of the present schema that of an earlier version, which has records."""


@pytest.mark.usefixtures("patient")
async def test_the_schema_of_an_earlier_version_is_brought_up_and_keeps_its_rows(own_supabase: SupabaseServer) -> None:
    own_supabase.run(OLD)
    for _ in range(2):
        own_supabase.apply_schema()
    store = SupabaseEntityStore(own_supabase.url, own_supabase.key, keep_records=5, keep_outcomes=5, keep_in_all=3)
    assert await store.newest("a", 5) == [record(1)]
    assert [(one.entity, one.records) for one in await store.entities(9)] == [("a", 1), ("b", 1)]
    assert (await store.add_records([record(2)])).stored == 1
    assert (await store.add_outcomes([outcome(1, sums={"outcomes": Decimal(1)}, time=now())])).stored == 1
    assert len(await store.quality("m", "hour", record(0).time)) == 1
    with pytest.raises(StoreFull):
        await store.add_records([record(1, "c")])
    await store.close()


@pytest.mark.parametrize("most", [1, 3, 1000])
@pytest.mark.usefixtures("patient")
async def test_a_server_that_cuts_its_answers_short_is_asked_until_a_page_is_empty(
    store: SupabaseEntityStore, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    await store.add_records([dataclasses.replace(record(number // 2), id=str(number)) for number in range(5)])
    await store.add_outcomes([outcome(number) for number in range(7)])
    send = httpx.AsyncClient.send

    async def cut(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        if limit := request.url.params.get("limit"):
            request.url = request.url.copy_set_param("limit", min(int(limit), most))
        return await send(client, request, **options)

    monkeypatch.setattr(httpx.AsyncClient, "send", cut)
    assert [one.id for one in await store.newest("a", 9)] == ["4", "3", "2", "1", "0"]
    assert [one.id for one in await store.newest("a", 2)] == ["4", "3"]
    assert [one.id for one in await store.outcomes("m", 6)] == ["6", "5", "4", "3", "2", "1"]
    assert len(await store.judged("m", "1", 9)) == 7


@pytest.mark.usefixtures("patient")
async def test_more_outcomes_than_one_answer_holds_are_read(store: SupabaseEntityStore) -> None:
    outcomes = [outcome(number, time=record(0).time) for number in range(2100)]
    for start in range(0, len(outcomes), 700):
        await store.add_outcomes(outcomes[start : start + 700])
    found = await store.outcomes("m", 2050)
    assert [one.id for one in found] == [str(number) for number in range(2099, 49, -1)]


@pytest.mark.usefixtures("patient")
async def test_more_calls_than_connections_do_not_make_a_server_look_dead(
    store: SupabaseEntityStore, own_supabase: SupabaseServer
) -> None:
    await store.newest("a", 1)
    own_supabase.pause()
    calls = [asyncio.create_task(store.newest("a", 1)) for _ in range(30)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert {str(call.exception()) for call in done} == {"Supabase is busy"}
    assert store.state == "closed"
    own_supabase.resume()
    await asyncio.gather(*calls, return_exceptions=True)
    assert sum(call.exception() is None for call in calls) == CALLS_AT_ONCE
    found = await asyncio.gather(*(store.newest("a", 1) for _ in range(CALLS_AT_ONCE)))
    assert found == [[]] * CALLS_AT_ONCE
