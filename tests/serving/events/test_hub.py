"""The hub of a worker: nothing is missed, nothing comes twice, and nobody can make it grow."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from harness.service import ROOT
from serving.errors import StoreUnavailable, TooManyStreams
from serving.events import hub as hub_module
from serving.events.hub import Hub
from serving.events.log import RESET, Event, EventLog, Page
from serving.events.sqlite import SQLiteEventLog
from serving.events.subscription import Subscription
from tests.serving.conftest import PATIENCE, until
from tests.serving.events.conftest import Logs, append_many

pytestmark = pytest.mark.anyio

WRITER = """
import asyncio, sys
from pathlib import Path
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog

async def main(kind, where, count):
    # patient: an event whose answer is late is told again
    log = RedisEventLog(where, timeout=30) if kind == "redis" else SQLiteEventLog(Path(where), busy_seconds=30)
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

    async def close(self) -> None:
        for hub in self._made:
            await hub.close()


@pytest.fixture
async def hubs(logs: Logs) -> AsyncIterator[Hubs]:
    hubs = Hubs(logs)
    yield hubs
    await hubs.close()


async def take(stream: Subscription, count: int) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(stream) for _ in range(count)]


async def ended(stream: Subscription) -> bool:
    """Whether it has ended, once what is at hand has been read."""
    async with asyncio.timeout(PATIENCE):
        return await anext(stream, None) is None


async def test_new_client_gets_what_happens_from_now_on(log: EventLog, hubs: Hubs) -> None:
    await append_many(log, 3)
    async with hubs.make().subscribe("t") as stream:
        ids = await append_many(log, 2)
        assert [event.id for event in await take(stream, 2)] == ids
        assert stream.position == ids[-1]


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
    async with hub.subscribe("a") as a, hub.subscribe("b") as b, hub.subscribe(None) as everything:
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
                    if event is None:
                        break  # too slow for once
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
    ids = await append_many(log, 2)
    async with hubs.make().subscribe("t", after=ids[-1] + (1 << 40)) as stream:
        assert [event.kind for event in await take(stream, 3)] == [RESET, "tick", "tick"]


async def test_client_that_does_not_keep_up_is_cut_and_resumes_where_it_was(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make(queue_size=10)
    async with hub.subscribe("t") as stream, hub.subscribe("t") as quick:
        first = asyncio.create_task(take(stream, 1))
        following = asyncio.create_task(take(quick, 31))
        ids = await append_many(log, 1)
        await first
        ids += await append_many(log, 30)
        assert [event.id for event in await following] == ids
        assert await ended(stream)
        assert hub.open_streams == 1
        async with hub.subscribe("t", after=stream.position) as again:
            assert [event.id for event in await take(again, 30)] == ids[1:]


async def test_streams_are_counted_by_worker_and_by_address(hubs: Hubs) -> None:
    hub = hubs.make(max_streams=4, max_streams_per_address=2)
    streams = [hub.subscribe("t", address="one") for _ in range(2)]
    with pytest.raises(TooManyStreams, match="address"):
        hub.subscribe("t", address="one")
    streams += [hub.subscribe("t", address="two"), hub.subscribe("t")]
    with pytest.raises(TooManyStreams):
        hub.subscribe("t", address="three")
    await streams[0].aclose()
    await streams[0].aclose()
    streams.append(hub.subscribe("t", address="one"))
    with pytest.raises(TooManyStreams):
        hub.subscribe("t", address="one")
    for stream in streams:
        await stream.aclose()
    assert (hub.open_streams, len(hub._by_address), len(hub._live)) == (0, 0, 0)


async def test_reader_runs_only_while_somebody_listens(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make()
    for _ in range(3):
        async with hub.subscribe("t") as stream:
            ids = await append_many(log, 1)
            assert (await take(stream, 1))[0].id == ids[0]
            reader = hub._reader
            assert reader is not None
        assert hub._reader is None
        await asyncio.wait([reader])


async def test_client_to_which_nothing_was_handed_for_long_is_cut(logs: Logs) -> None:
    now = 0.0
    log = logs.open()
    hub = Hub(log, idle_seconds=600, clock=lambda: now)
    waiting, unread = hub.subscribe("t"), hub.subscribe("t")
    end = asyncio.create_task(ended(waiting))
    async with unread:
        now = 500.0
        async with hub.subscribe("t") as fresh:
            now = 700.0
            await until(lambda: log.append("other", "tick", b""))
            assert await end
            assert await ended(unread)
            assert hub.open_streams == 1
            ids = await append_many(log, 1)
            assert (await take(fresh, 1))[0].id == ids[0]
    await hub.close()


async def test_closing_ends_all_streams_and_those_to_come(log: EventLog, hubs: Hubs) -> None:
    hub = hubs.make()
    streams = [hub.subscribe("t") for _ in range(5)]
    ends = [asyncio.create_task(ended(stream)) for stream in streams]
    async with hub.subscribe("u", after=0) as replaying:
        await append_many(log, 1, topic="u")
        await take(replaying, 1)
        await hub.close()
        assert await asyncio.gather(*ends) == [True] * 5
        assert await ended(replaying)
    assert await ended(hub.subscribe("t"))
    assert hub.open_streams == 0
    assert hub._reader is None


async def test_cancelled_client_leaves_nothing_behind(hubs: Hubs) -> None:
    hub = hubs.make()

    async def follow() -> None:
        async with hub.subscribe("t") as stream:
            await anext(stream)

    for pauses in range(20):
        task = asyncio.create_task(follow())
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (hub.open_streams, hub._reader, len(hub._live)) == (0, None, 0)


class FailingLog:
    """A log that is away when told to be."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.error: Exception | None = None

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        if self.error is not None:
            raise self.error
        return await self._log.read(topic, after, limit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


async def test_streams_go_on_when_the_log_comes_back(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RETRY_SECONDS", 0.001)
    log = logs.open()
    failing = FailingLog(log)
    hub = Hub(failing)
    with structlog.testing.capture_logs() as lines:
        async with hub.subscribe("t") as stream:
            waiting = asyncio.create_task(take(stream, 1))
            await until(lambda: _is(lambda: stream._live))
            failing.error = StoreUnavailable("away")
            ids = await append_many(log, 1)
            await until(lambda: _is(lambda: bool(lines)))
            failing.error = None
            assert [event.id for event in await waiting] == ids
    assert [line["event"] for line in lines] == ["Events cannot be read"]
    await hub.close()


async def test_reader_that_fails_ends_its_streams_and_the_next_client_starts_another(logs: Logs) -> None:
    log = logs.open()
    failing = FailingLog(log)
    hub = Hub(failing)
    with structlog.testing.capture_logs() as lines:
        stream = await hub.subscribe("t").__aenter__()
        ids = await append_many(log, 1)
        await take(stream, 1)
        failing.error = RuntimeError("a fault of ours")
        await log.append("t", "tick", b"")
        await until(lambda: _is(lambda: stream.ended))
    assert [line["event"] for line in lines] == ["Event reader failed"]
    failing.error = None
    async with hub.subscribe("t", after=ids[0]) as again:
        assert len(await take(again, 1)) == 1
    await hub.close()


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


class CountingLog:
    """A log that knows how many read from it at once."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._reading = self.most = 0

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        self._reading += 1
        self.most = max(self.most, self._reading)
        page = await self._log.read(topic, after, limit)
        self._reading -= 1
        return page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


async def test_a_thousand_clients_that_come_back_together_wait_for_each_other(logs: Logs) -> None:
    log = CountingLog(logs.open())
    ids = await append_many(logs.open(), 3)
    hub = Hub(log)
    streams = [hub.subscribe("t", after=ids[0]) for _ in range(1000)]
    got = await asyncio.gather(*[take(stream, 2) for stream in streams])
    assert all([event.id for event in events] == ids[1:] for events in got)
    assert log.most <= 9
    await hub.close()


async def test_a_thousand_idle_streams_take_little(tmp_path: Path) -> None:
    log = SQLiteEventLog(tmp_path)
    hub = Hub(log, max_streams=1000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    waiting = [asyncio.create_task(ended(hub.subscribe(f"job:{number}"))) for number in range(1000)]
    await until(lambda: _is(lambda: len(hub._live) == 1000))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    await hub.close()
    assert await asyncio.gather(*waiting) == [True] * 1000
    await log.close()
    assert used / 1000 < 8000
