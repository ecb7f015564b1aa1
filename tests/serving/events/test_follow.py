"""Clients that follow the log: nothing is missed, nothing comes twice, and no client makes the worker grow."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from harness.service import ROOT
from serving.errors import StoreUnavailable, TooManyStreams
from serving.events import follow as follow_module
from serving.events.follow import Hub
from serving.events.log import RESET, Event, EventLog, Page
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.sqlite import jobs_database
from serving.shared.book import Book
from tests.serving.conftest import PATIENCE, until
from tests.serving.events.conftest import Logs, append_many

pytestmark = pytest.mark.anyio

WRITER = """
import asyncio, sys
from pathlib import Path
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.sqlite import jobs_database

async def main(kind, where, count):
    # patient: an event whose answer is late is told again
    if kind == "redis":
        log = RedisEventLog(where, timeout=30)
    else:
        log = SQLiteEventLog(jobs_database(Path(where), busy_seconds=30))
    for number in range(int(count)):
        await log.append("t", "tick", b"%d" % number)
    await log.close()

asyncio.run(main(*sys.argv[1:]))
"""


class Hubs:
    """Makes hubs, each with a log of its own, and closes them."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._made: list[Hub] = []

    def make(self, **options: Any) -> Hub:
        hub = Hub(self._logs.open(), **options)
        self._made.append(hub)
        return hub

    def close(self) -> None:
        for hub in self._made:
            hub.close()


@pytest.fixture
async def hubs(logs: Logs) -> AsyncIterator[Hubs]:
    hubs = Hubs(logs)
    yield hubs
    hubs.close()


async def take(stream: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(stream) for _ in range(count)]


async def ended(stream: AsyncIterator[Event]) -> bool:
    """Whether it has ended, once what is at hand has been read."""
    async with asyncio.timeout(PATIENCE):
        return await anext(stream, None) is None


async def test_new_client_gets_what_happens_from_now_on(log: EventLog, hubs: Hubs) -> None:
    await append_many(log, 3)
    hub = hubs.make()
    async with hub.subscribe("t", after=await hub.latest()) as stream:
        ids = await append_many(log, 2)
        assert [event.id for event in await take(stream, 2)] == ids


async def test_returning_client_gets_what_it_missed_and_then_what_happens(log: EventLog, hubs: Hubs) -> None:
    ids = await append_many(log, 120)
    async with hubs.make().subscribe("t", after=ids[4]) as stream:
        assert [event.id for event in await take(stream, 115)] == ids[5:]
        more = await append_many(log, 2)
        assert [event.id for event in await take(stream, 2)] == more


async def test_client_that_begins_with_0_gets_all_that_is_kept(log: EventLog, hubs: Hubs) -> None:
    ids = await append_many(log, 3)
    async with hubs.make().subscribe("t", after=0) as stream:
        assert [event.id for event in await take(stream, 3)] == ids


async def test_each_gets_its_topic_and_one_gets_all(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make()
    async with (
        hub.subscribe("a", after=0) as a,
        hub.subscribe("b", after=0) as b,
        hub.subscribe(None, after=0) as everything,
    ):
        waiting = [asyncio.create_task(take(stream, count)) for stream, count in [(a, 1), (b, 2), (everything, 3)]]
        for topic in ("b", "a", "b"):
            await log.append(topic, "tick", b"")
        got = await asyncio.gather(*waiting)
    assert [[event.topic for event in events] for events in got] == [["a"], ["b", "b"], ["b", "a", "b"]]


async def test_nothing_is_missed_and_nothing_twice_while_another_process_tells(logs: Logs, hubs: Hubs) -> None:
    """Clients come at any time, leave after some events and come back with the last id that they saw."""
    count, hub = 1500, hubs.make()
    where = logs.url if logs.kind == "redis" else str(logs.directory)
    command = (sys.executable, "-c", WRITER, logs.kind, where, str(count))

    async def follow(leaves_after: int) -> list[bytes]:
        got: list[bytes] = []
        position = 0
        while len(got) < count:
            async with hub.subscribe("t", after=position) as stream:
                for _ in range(leaves_after):
                    event = await anext(stream, None)
                    assert event is not None
                    position = event.id
                    got.append(event.data)
                    if len(got) == count:
                        break
        return got

    writer = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        async with asyncio.timeout(60):
            everything = await asyncio.gather(*[follow(leaves_after) for leaves_after in (7, 60, 400, 5000)])
            assert await writer.wait() == 0
    finally:
        if writer.returncode is None:
            with suppress(ProcessLookupError):
                writer.kill()
        await writer.wait()
    for got in everything:
        assert got == [b"%d" % number for number in range(count)]


async def test_client_whose_events_were_forgotten_is_told(logs: Logs, hubs: Hubs) -> None:
    log = logs.open(max_events=100)
    ids = await append_many(log, 400)
    async with hubs.make().subscribe("t", after=ids[0]) as stream:
        reset, following = await take(stream, 2)
        assert (reset.kind, reset.topic, reset.data) == (RESET, "t", b"")
        assert following == (await log.read("t", 0, 1)).events[0]
        assert reset.id == (await log.read("t", 0, 0)).floor
        assert ids[0] < reset.id < following.id


async def test_client_with_an_id_of_the_future_is_told_and_gets_what_there_is(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make()
    async with hub.subscribe("t", after=await hub.latest()) as up_to_date:
        waiting = asyncio.create_task(take(up_to_date, 2))
        await until(lambda: _is(hub._following.is_set))
        ids = await append_many(log, 2)
        await waiting
        await until(lambda: _is(lambda: hub._recent is not None))
        async with hub.subscribe("t", after=ids[-1] + (1 << 40)) as stream:
            assert [event.kind for event in await take(stream, 3)] == [RESET, "tick", "tick"]


async def test_client_that_does_not_read_keeps_its_place_and_holds_up_nobody(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make()
    async with hub.subscribe("t", after=0) as slow, hub.subscribe("t", after=0) as quick:
        ids = await append_many(log, 1)
        assert (await take(slow, 1))[0].id == ids[0]
        ids += await append_many(log, 200)
        assert [event.id for event in await take(quick, 201)] == ids
        assert [event.id for event in await take(slow, 200)] == ids[1:]


async def test_stream_that_does_not_follow_ends_with_the_log(log: EventLog, hubs: Hubs) -> None:
    ids = await append_many(log, 70)
    async with hubs.make().subscribe("t", after=0, follow=False) as stream:
        assert [event.id for event in await take(stream, 70)] == ids
        assert await ended(stream)


async def test_streams_are_counted_by_worker_and_by_address(hubs: Hubs) -> None:
    hub = hubs.make(max_streams=4, max_streams_per_address=2)
    async with AsyncExitStack() as stack:

        async def enter(address: str = "") -> None:
            await stack.enter_async_context(hub.subscribe("t", after=0, address=address))

        async with hub.subscribe("t", after=0, address="one"):
            await enter("one")
            with pytest.raises(TooManyStreams, match="address"):
                await enter("one")
            await enter("two")
            await enter()
            with pytest.raises(TooManyStreams):
                await enter("three")
        await enter("one")
        with pytest.raises(TooManyStreams):
            await enter("one")
    assert (hub.open_streams, hub._held.total(), len(hub._waiting)) == (0, 0, 0)


async def test_streams_are_counted_by_key_whatever_their_address(hubs: Hubs) -> None:
    hub = hubs.make(max_streams_per_address=0, max_streams_per_key=2)
    async with AsyncExitStack() as stack:
        for address, key in (
            ("one", "mine"),
            ("two", "mine"),
            ("one", "theirs"),
            ("one", ""),
            ("one", ""),
            ("one", ""),
        ):
            await stack.enter_async_context(hub.subscribe("t", after=0, address=address, key=key))
        with pytest.raises(TooManyStreams, match="of this key"):
            await stack.enter_async_context(hub.subscribe("t", after=0, address="three", key="mine"))
    assert (hub.open_streams, hub._held.total()) == (0, 0)


async def test_streams_of_all_workers_count_together(hubs: Hubs) -> None:
    held = Book(2).holdings()
    here, there = (hubs.make(held=held, max_streams_per_address=2, max_streams_per_key=3) for _ in range(2))
    async with AsyncExitStack() as stack:
        for hub in (here, there):
            await stack.enter_async_context(hub.subscribe("t", after=0, address="one", key="mine"))
        for hub in (here, there):
            with pytest.raises(TooManyStreams, match="address"):
                await stack.enter_async_context(hub.subscribe("t", after=0, address="one"))
        await stack.enter_async_context(there.subscribe("t", after=0, address="two", key="mine"))
        with pytest.raises(TooManyStreams, match="key"):
            await stack.enter_async_context(here.subscribe("t", after=0, address="three", key="mine"))
    assert held.total() == 0


async def test_no_limit_by_address_is_0(hubs: Hubs) -> None:
    hub = hubs.make(max_streams_per_address=0)
    async with AsyncExitStack() as stack:
        for _ in range(60):
            await stack.enter_async_context(hub.subscribe("t", after=0, address="one"))


async def test_log_is_followed_only_while_somebody_listens(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make()
    for _ in range(3):
        async with hub.subscribe("t", after=await hub.latest()) as stream:
            ids = await append_many(log, 1)
            assert (await take(stream, 1))[0].id == ids[0]
            follower = hub._follower
            assert follower is not None
        assert hub._follower is None
        await asyncio.wait([follower])


async def test_client_that_got_nothing_for_long_is_let_go(logs: Logs) -> None:
    hub = Hub(logs.open(), idle_seconds=0.01)
    await append_many(logs.open(), 1)
    async with hub.subscribe("t", after=0) as stream:
        await take(stream, 1)
        assert await ended(stream)


async def test_closing_ends_all_streams_and_those_to_come(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make()
    await append_many(log, 3, topic="u")

    async def follow_to_the_end() -> bool:
        async with hub.subscribe("t", after=0) as stream:
            return await ended(stream)

    ends = [asyncio.create_task(follow_to_the_end()) for _ in range(5)]
    async with hub.subscribe("u", after=0) as within_a_page:
        await take(within_a_page, 1)
        await until(lambda: _is(lambda: len(hub._waiting["t"]) == 5))
        hub.close()
        assert await asyncio.gather(*ends) == [True] * 5
        assert await ended(within_a_page)
    assert await follow_to_the_end()
    assert (hub.open_streams, hub._follower) == (0, None)


async def test_cancelled_client_leaves_nothing_behind(hubs: Hubs) -> None:
    hub = hubs.make()

    async def follow() -> None:
        async with hub.subscribe("t", after=0) as stream:
            await anext(stream)

    for pauses in range(20):
        task = asyncio.create_task(follow())
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (hub.open_streams, hub._follower, len(hub._waiting)) == (0, None, 0)


class FailingLog:
    """A log that fails when told to, for the reads of which topics it is told."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.error: Exception | None = None
        self.topics: tuple[str | None, ...] = (None, "t")
        self.failures = 0

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        if self.error is not None and topic in self.topics:
            self.failures += 1
            raise self.error
        return await self._log.read(topic, after, limit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


async def test_streams_go_on_when_the_log_comes_back(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "RETRY_SECONDS", 0.001)
    log = logs.open()
    failing = FailingLog(log)
    hub = Hub(failing)
    with structlog.testing.capture_logs() as lines:
        async with hub.subscribe("t", after=0) as stream:
            ids = await append_many(log, 1)
            await take(stream, 1)
            waiting = asyncio.create_task(take(stream, 1))
            failing.error = StoreUnavailable("unavailable")
            ids += await append_many(log, 1)
            await until(lambda: _is(lambda: bool(lines)))
            failing.error = None
            assert [event.id for event in await waiting] == ids[1:]
    assert [line["event"] for line in lines] == ["Events cannot be read"]


async def test_stream_that_is_behind_tries_again_until_it_can_read_on(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "RETRY_SECONDS", 0.001)
    failing = FailingLog(logs.open())
    ids = await append_many(logs.open(), 60)
    async with Hub(failing).subscribe("t", after=0) as stream:
        assert len(await take(stream, 50)) == 50
        failing.error, failing.topics = StoreUnavailable("unavailable"), ("t",)
        waiting = asyncio.create_task(take(stream, 10))
        await until(lambda: _is(lambda: failing.failures > 1))
        failing.error = None
        assert [event.id for event in await waiting] == ids[50:]


async def test_client_that_comes_while_the_log_is_unavailable_is_refused(logs: Logs) -> None:
    failing = FailingLog(logs.open())
    failing.error = StoreUnavailable("unavailable")
    hub = Hub(failing)
    with pytest.raises(StoreUnavailable):
        await hub.latest()
    async with hub.subscribe("t", after=0) as stream:
        with pytest.raises(StoreUnavailable):
            await take(stream, 1)


async def test_follower_that_fails_ends_its_streams_and_the_next_client_starts_another(logs: Logs) -> None:
    log = logs.open()
    failing = FailingLog(log)
    hub = Hub(failing)
    with structlog.testing.capture_logs() as lines:
        async with hub.subscribe("t", after=0) as stream:
            ids = await append_many(log, 1)
            await take(stream, 1)
            waiting = asyncio.create_task(ended(stream))
            await until(lambda: _is(hub._following.is_set))
            failing.error = RuntimeError("a fault of ours")
            failing.topics = (None,)
            await log.append("other", "tick", b"")
            assert await waiting
        assert hub.open_streams == 0
    assert [line["event"] for line in lines] == ["Event reader failed"]
    failing.error = None
    await append_many(log, 1)
    async with hub.subscribe("t", after=ids[0]) as again:
        assert len(await take(again, 1)) == 1


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


class CountingLog:
    """A log that knows how many reads there were, and how many at once."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._reading = self.most = self.reads = 0

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        self._reading += 1
        self.reads += topic is not None
        self.most = max(self.most, self._reading)
        page = await self._log.read(topic, after, limit)
        self._reading -= 1
        return page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


async def take_from(hub: Hub, topic: str, after: int, count: int) -> list[int]:
    async with hub.subscribe(topic, after=after) as stream:
        return [event.id for event in await take(stream, count)]


async def test_a_thousand_clients_that_come_back_together_wait_for_each_other(logs: Logs) -> None:
    log, writer = CountingLog(logs.open()), logs.open()
    hub = Hub(log)
    ids = [await append_many(writer, 2, topic=f"t{topic}") for topic in range(20)]
    taking = [take_from(hub, f"t{number % 20}", 0, 2) for number in range(1000)]
    assert await asyncio.gather(*taking) == [ids[number % 20] for number in range(1000)]
    assert log.most <= 9
    assert log.reads == 20, "clients at one place share a read"


async def test_a_thousand_idle_streams_take_little(tmp_path: Path) -> None:
    log = SQLiteEventLog(jobs_database(tmp_path))
    hub = Hub(log, max_streams=1000)

    async def follow_to_the_end(topic: str) -> bool:
        async with hub.subscribe(topic, after=0) as stream:
            return await ended(stream)

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    waiting = [asyncio.create_task(follow_to_the_end(f"job:{number}")) for number in range(1000)]
    await until(lambda: _is(lambda: len(hub._waiting) == 1000 and not hub._reads))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    hub.close()
    assert await asyncio.gather(*waiting) == [True] * 1000
    await log.close()
    assert used / 1000 < 8000


async def test_clients_that_are_up_to_date_do_not_read_the_log(logs: Logs) -> None:
    log, writer = CountingLog(logs.open()), logs.open()
    hub = Hub(log)
    async with hub.subscribe("t", after=0) as one, hub.subscribe("t", after=0) as two:
        ids = await append_many(writer, 1)
        assert [(await take(stream, 1))[0].id for stream in (one, two)] == ids * 2
        waiting = [asyncio.create_task(take(stream, 30)) for stream in (one, two)]
        await until(lambda: _is(lambda: hub._following.is_set() and not hub._reads))
        reads = log.reads
        for number in range(30):
            ids += await append_many(writer, 1)
            await append_many(writer, 1, topic=f"other {number}")
        assert [[event.id for event in await task] for task in waiting] == [ids[1:]] * 2
    assert log.reads - reads <= 4, "one more look for each, and what came while the follower began"


async def test_client_of_a_quiet_topic_is_not_told_that_others_events_were_forgotten(logs: Logs) -> None:
    log = logs.open(max_events=100)
    hub = Hub(logs.open(max_events=100))
    seen = (await append_many(log, 1))[0]
    async with hub.subscribe("t", after=0) as quiet, hub.subscribe("noise", after=0) as noise:
        await take(quiet, 1)
        waiting = asyncio.create_task(take(quiet, 1))
        for _ in range(330):
            await append_many(log, 1, topic="noise")
            await take(noise, 1)
        assert (await log.read(None, 0, 0)).is_gap(seen)
        ids = await append_many(log, 1)
        assert [(event.kind, event.id) for event in await waiting] == [("tick", ids[0])]


async def test_a_read_that_has_not_begun_ends_with_the_last_client(logs: Logs) -> None:
    reads: list[str | None] = []

    class Log(FailingLog):
        async def read(self, topic: str | None, after: int, limit: int) -> Page:
            reads.append(topic)
            return await super().read(topic, after, limit)

    hub = Hub(Log(logs.open()))
    hub._turns = asyncio.Semaphore(0)
    task = asyncio.create_task(_first_event(hub))
    await until(lambda: _is(lambda: bool(hub._reads)))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for _ in range(8):
        hub._turns.release()
        await asyncio.sleep(0)
    assert reads == []


async def _first_event(hub: Hub) -> None:
    async with hub.subscribe("t", after=0) as stream:
        await anext(stream)
