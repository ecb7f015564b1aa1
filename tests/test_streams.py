"""Streams of jobs on the real service: nothing is missed or repeated, nobody makes the service wait or grow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from statistics import median

import pytest

from bench.service import Service
from bench.sse import Frame, Stream, follow
from remote.client import hammer, post
from serving.events.log import EventLog
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.job import JobRequest
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore
from serving.jobs.store import JobStore
from serving.processes import read_rss
from tests.processes import DIABETES, PATIENCE, eventually, gone
from tests.servers import RedisServer
from tests.wire import Connection, ask, check_refusal, request

pytestmark = pytest.mark.anyio

OPERATION = "test:nobody-runs-this"


class Backstage:
    """The stores behind a service, as another process has them: jobs that nobody runs, and their events."""

    def __init__(self, jobs: JobStore, events: EventLog, environ: dict[str, str]) -> None:
        self.jobs = jobs
        self.events = events
        self.environ = environ | {"ROLES": "web", "MAX_STREAMS_PER_ADDRESS": "0"}

    async def submit(self) -> str:
        return (await self.jobs.submit(JobRequest(operation=OPERATION, inputs=[b""]))).job.id

    async def tell(self, job: str, count: int, start: int = 0) -> list[int]:
        """Events whose data are their numbers; gives their ids."""
        return [await self.events.append(job, "chunk", b"%d" % number) for number in range(start, start + count)]

    async def close(self) -> None:
        await self.jobs.close()
        await self.events.close()


@pytest.fixture
async def sqlite(models: Path, tmp_path: Path) -> AsyncIterator[Backstage]:
    environ = {"MODEL_DIR": str(models), "DATA_DIR": str(tmp_path), "MAX_REQUESTS": "0"}
    backstage = Backstage(SQLiteJobStore(tmp_path), SQLiteEventLog(tmp_path), environ)
    yield backstage
    await backstage.close()


@pytest.fixture(params=["sqlite", "redis"])
async def backstage(
    request: pytest.FixtureRequest, sqlite: Backstage, own_server: RedisServer
) -> AsyncIterator[Backstage]:
    if request.param == "sqlite":
        yield sqlite
        return
    url = own_server.url
    redis = Backstage(RedisJobStore(url), RedisEventLog(url), sqlite.environ | {"REDIS_URL": url})
    yield redis
    await redis.close()


def path_of(job: str) -> str:
    return f"/v1/jobs/{job}/events"


async def take(frames: AsyncIterator[Frame], count: int) -> list[Frame]:
    """The next events; other frames are passed over."""
    taken: list[Frame] = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            frame = await anext(frames)
            if "event" in frame:
                taken.append(frame)
    return taken


async def rest(stream: Stream) -> list[Frame]:
    """All events until the stream ends."""
    async with asyncio.timeout(PATIENCE):
        return [frame async for frame in stream if "event" in frame]


async def test_stream_of_a_job_begins_with_its_beginning_and_ends_with_its_end(backstage: Backstage) -> None:
    with Service(backstage.environ) as service:
        job = await backstage.submit()
        told = await backstage.tell(job, 3)
        async with Stream(service.address, path_of(job)) as stream:
            assert stream.status == 200
            assert stream.headers["content-type"] == "text/event-stream"
            assert stream.headers["cache-control"] == "no-store"
            assert stream.headers["x-accel-buffering"] == "no"
            assert "content-length" not in stream.headers
            frames = aiter(stream)
            first = await anext(frames)
            assert first["id"] == "0"
            assert 500 <= int(first["retry"]) <= 1500
            past = await take(frames, 3)
            told += await backstage.tell(job, 2, start=3)
            live = await take(frames, 2)
            assert [frame["id"] for frame in past + live] == [str(number) for number in told]
            assert [frame["data"] for frame in past + live] == ["0", "1", "2", "3", "4"]
            await backstage.tell(await backstage.submit(), 1)
            await backstage.events.append(job, "done", b'{"a":\n1}')
            assert [(frame["event"], frame["data"]) for frame in await rest(stream)] == [("done", '{"a":\n1}')]
            assert stream.complete


async def test_nothing_is_missed_and_nothing_twice_while_workers_come_and_go(backstage: Backstage) -> None:
    count, clients = 300, 8
    environ = backstage.environ | {"MAX_REQUESTS": "20", "MAX_REQUESTS_JITTER": "5"}
    with Service(environ) as service:
        job = await backstage.submit()
        over = asyncio.Event()

        async def hear() -> list[str]:
            heard: list[str] = []
            async with aclosing(follow(service.address, path_of(job))) as frames:
                async for frame in frames:
                    if frame["event"] == "done":
                        break
                    heard.append(f"{frame['event']} {frame['data']}")
            return heard

        async def disturb() -> None:
            message = post(f"{service.address}/v1/models/diabetes:predict", DIABETES)
            while not over.is_set():
                tally = await hammer(service.address, [message], requests=20, connections=2)
                assert tally.failed == 0

        hearing = [asyncio.create_task(hear()) for _ in range(clients)]
        disturbing = asyncio.create_task(disturb())
        async with asyncio.timeout(2 * PATIENCE):
            number = 0
            while number < count or len(service.events("Worker ends")) < 4:
                await backstage.tell(job, 1, start=number)
                number += 1
            over.set()
            await disturbing
            await backstage.events.append(job, "done", b"")
            for heard in await asyncio.gather(*hearing):
                assert heard == [f"chunk {n}" for n in range(number)]


async def test_another_worker_goes_on_where_the_client_left_off(sqlite: Backstage) -> None:
    with Service(sqlite.environ | {"WEB_CONCURRENCY": "1"}) as service:
        (old,) = service.workers
        job = await sqlite.submit()
        ids = await sqlite.tell(job, 3)
        async with Stream(service.address, path_of(job)) as stream:
            await take(aiter(stream), 3)
            os.kill(old, signal.SIGKILL)
            assert await rest(stream) == []
            assert not stream.complete
        assert eventually(lambda: len(service.events("Worker serves")) == 2)
        ids += await sqlite.tell(job, 2, start=3)
        for headers, query in (({"last-event-id": str(ids[2])}, ""), ({}, f"?last_event_id={ids[2]}")):
            async with Stream(service.address, path_of(job) + query, headers=headers) as stream:
                assert [frame["data"] for frame in await take(aiter(stream), 2)] == ["3", "4"]
        both = Stream(service.address, f"{path_of(job)}?last_event_id=0", headers={"last-event-id": str(ids[3])})
        async with both as stream:
            assert [frame["data"] for frame in await take(aiter(stream), 1)] == ["4"]


async def test_who_missed_what_the_log_has_forgotten_is_told_so(sqlite: Backstage) -> None:
    with Service(sqlite.environ | {"WEB_CONCURRENCY": "1"}) as service:
        job = await sqlite.submit()
        (seen,) = await sqlite.tell(job, 1)
        (forgotten,) = await sqlite.tell(job, 1, start=1)
        assert await sqlite.events.prune(-60) == 2
        (kept,) = await sqlite.tell(job, 1, start=2)
        async with Stream(service.address, path_of(job), headers={"last-event-id": str(seen)}) as stream:
            reset, event = await take(aiter(stream), 2)
            assert (reset["event"], reset["id"], reset["data"]) == ("reset", str(forgotten), "")
            assert (event["event"], event["id"]) == ("chunk", str(kept))


async def test_a_drain_does_not_wait_for_streams(sqlite: Backstage) -> None:
    environ = {"WEB_CONCURRENCY": "1", "GRACEFUL_TIMEOUT_SECONDS": "60", "MAX_REQUESTS": "10"}
    with Service(sqlite.environ | environ | {"MAX_REQUESTS_JITTER": "0"}) as service:
        (old,) = service.workers
        job = await sqlite.submit()
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(Stream(service.address, path_of(job))) for _ in range(9)]
            started = time.monotonic()
            for _ in range(10):
                assert ask(service, request("/health/live", method="GET", connection="close")).status == 200
            assert await asyncio.gather(*map(rest, streams)) == [[]] * 9
            assert all(stream.complete for stream in streams)
            assert gone([old])
            assert time.monotonic() - started < 10, "with idle connections a drain takes 30 s"
        assert '"level":"error"' not in service.log()


async def test_the_service_ends_at_once_with_streams_open(sqlite: Backstage) -> None:
    with Service(sqlite.environ | {"GRACEFUL_TIMEOUT_SECONDS": "60"}) as service:
        job = await sqlite.submit()
        async with Stream(service.address, path_of(job)) as stream:
            started = time.monotonic()
            assert await asyncio.to_thread(service.stop) == 0
            assert time.monotonic() - started < 10
            assert await rest(stream) == []
            assert stream.complete


async def test_admin_sees_figures_again_and_again_until_the_worker_drains(sqlite: Backstage) -> None:
    token = "a-token-only-for-this-test"
    environ = {"ADMIN_TOKEN": token, "WEB_CONCURRENCY": "1", "GRACEFUL_TIMEOUT_SECONDS": "60"}
    with Service(sqlite.environ | environ) as service:
        (old,) = service.workers
        check_refusal(ask(service, request("/api/admin/events", method="GET")), 401)
        async with Stream(service.address, "/api/admin/events", headers={"x-admin-token": token}) as stream:
            for frame in await take(aiter(stream), 2):
                assert frame["event"] == "metrics"
                assert [worker["pid"] for worker in json.loads(frame["data"])["workers"]] == [old]
            started = time.monotonic()
            os.kill(old, signal.SIGTERM)
            await rest(stream)
            assert stream.complete
            assert gone([old])
            assert time.monotonic() - started < 10


async def test_a_finished_job_tells_all_and_then_that_it_is_over(sqlite: Backstage) -> None:
    with Service(sqlite.environ) as service:
        job = await sqlite.submit()
        ids = await sqlite.tell(job, 60)
        await sqlite.jobs.cancel(job)
        async with Stream(service.address, path_of(job)) as stream:
            *told, last = await rest(stream)
            assert [frame["id"] for frame in told] == [str(number) for number in ids]
            assert (last["event"], json.loads(last["data"])["state"], "id" in last) == ("cancelled", "cancelled", False)
            assert stream.complete
        async with Stream(service.address, path_of(job), headers={"last-event-id": str(ids[-1])}) as stream:
            assert stream.status == 204


@pytest.fixture(scope="module")
def limited(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """One worker that allows five streams, three from one address, each with ten heartbeats a second."""
    directory = tmp_path_factory.mktemp("data")
    environ = {
        "MODEL_DIR": str(models),
        "DATA_DIR": str(directory),
        "ROLES": "web",
        "WEB_CONCURRENCY": "1",
        "MAX_REQUESTS": "0",
        "MAX_STREAMS": "5",
        "MAX_STREAMS_PER_ADDRESS": "3",
        "STREAM_HEARTBEAT_SECONDS": "0.1",
        "READ_TIMEOUT_SECONDS": "1",
    }
    with Service(environ) as service:
        yield service, directory


@pytest.fixture
async def small(limited: tuple[Service, Path]) -> AsyncIterator[tuple[Service, Backstage]]:
    """That service, which must be as well after the test as before."""
    service, directory = limited
    workers = service.workers
    backstage = Backstage(SQLiteJobStore(directory), SQLiteEventLog(directory), {})
    yield service, backstage
    await backstage.close()
    assert service.workers == workers
    assert '"level":"error"' not in service.log()


async def test_a_silent_stream_says_that_it_lives(small: tuple[Service, Backstage]) -> None:
    service, backstage = small
    async with Stream(service.address, path_of(await backstage.submit())) as stream:
        frames = aiter(stream)
        await anext(frames)
        async with asyncio.timeout(PATIENCE):
            assert [await anext(frames) for _ in range(3)] == [{"": ""}] * 3


async def test_a_stream_whose_last_event_was_lost_ends_with_what_the_job_has_become(
    small: tuple[Service, Backstage],
) -> None:
    service, backstage = small
    job = await backstage.submit()
    async with Stream(service.address, path_of(job)) as stream:
        frames = aiter(stream)
        (seen,) = await backstage.tell(job, 1)
        assert (await take(frames, 1))[0]["id"] == str(seen)
        await backstage.jobs.cancel(job)
        (last,) = await take(frames, 1)
        assert (last["event"], json.loads(last["data"])) == ("cancelled", {"state": "cancelled", "error": ""})
        assert await rest(stream) == []
        assert stream.complete
    async with Stream(service.address, path_of(job), headers={"last-event-id": str(seen)}) as again:
        assert again.status == 204


async def test_one_stream_too_many_is_refused_until_another_ends(small: tuple[Service, Backstage]) -> None:
    service, backstage = small
    path = path_of(await backstage.submit())
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(Stream(service.address, path))
        answer = ask(service, request(path, method="GET"))
        check_refusal(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert ask(service, request("/v1/models/diabetes:predict", DIABETES)).status == 200
    assert eventually(lambda: is_open(service, path))


def is_open(service: Service, path: str) -> bool:
    """Whether a stream is allowed now; lets go of it at once."""
    with Connection(service) as connection:
        connection.send(request(path, method="GET"))
        head = connection.status()
        assert head in (200, 503)
        return head == 200


async def test_clients_that_never_read_are_cut_and_cost_nothing(small: tuple[Service, Backstage]) -> None:
    service, backstage = small
    (worker,) = service.workers
    job = await backstage.submit()
    with_few = [Connection(service, receive_buffer=4096) for _ in range(3)]
    for connection in with_few:
        connection.send(request(path_of(job), method="GET"))
        assert connection.status() == 200
    before = read_rss(worker)
    seconds: list[float] = []
    for _ in range(300):
        await backstage.events.append(job, "chunk", b"x" * 100_000)
        started = time.perf_counter()
        assert ask(service, request("/v1/models/diabetes:predict", DIABETES)).status == 200
        seconds.append(time.perf_counter() - started)
    assert median(seconds) < 0.1
    assert all(connection.refuses_more(within=PATIENCE) for connection in with_few)
    assert read_rss(worker) - before < 40 << 20
    for connection in with_few:
        connection.close()
    assert eventually(lambda: is_open(service, path_of(job)))


async def test_a_client_that_was_cut_because_it_was_slow_resumes_without_a_gap(
    small: tuple[Service, Backstage],
) -> None:
    service, backstage = small
    job, count = await backstage.submit(), 400
    slow = Stream(service.address, path_of(job), receive_buffer=4096)
    async with slow:
        assert slow.status == 200
        for number in range(count):
            await backstage.events.append(job, "chunk", b"%d" % number + b" " * 50_000)
        heard = await rest(slow)
    assert 0 < len(heard) < count
    async with Stream(service.address, path_of(job), headers={"last-event-id": heard[-1]["id"]}) as stream:
        heard += await take(aiter(stream), count - len(heard))
    assert [int(frame["data"]) for frame in heard] == list(range(count))


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 19, "9" * 5000, "٣", "1; drop", "0x10"])
async def test_a_last_event_id_that_is_none_is_refused(small: tuple[Service, Backstage], given: str) -> None:
    service, backstage = small
    path = path_of(await backstage.submit())
    check_refusal(ask(service, request(path, method="GET", last_event_id=given)), 422)


async def test_an_unknown_job_is_not_found_and_other_methods_are_refused(small: tuple[Service, Backstage]) -> None:
    service, backstage = small
    for name in ("nobody", "%00", "%ff", "x" * 9999):
        check_refusal(ask(service, request(path_of(name), method="GET")), 404)
    path = path_of(await backstage.submit())
    check_refusal(ask(service, request(path, method="POST")), 405)
    with Connection(service) as connection:
        connection.send(request(path, method="HEAD"))
        answer = connection.answer(to_head=True)
        assert answer is not None
        assert answer.status == 405
        connection.send(request("/health/live", method="GET"))
        assert connection.answer() is not None


async def test_streams_are_refused_when_their_store_is_away_and_predictions_go_on(models: Path, tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"this is no database" * 100)
    environ = {"MODEL_DIR": str(models), "DATA_DIR": str(tmp_path), "ROLES": "web"}
    jobs = SQLiteJobStore(tmp_path)
    job = (await jobs.submit(JobRequest(operation=OPERATION, inputs=[b""]))).job.id
    with Service(environ) as service:
        async with Stream(service.address, path_of(job)) as stream:
            (error,) = await rest(stream)
            assert error["event"] == "error"
            assert json.loads(error["data"])["status"] == 503
        await jobs.cancel(job)
        answer = ask(service, request(path_of(job), method="GET"))
        check_refusal(answer, 503)
        assert "retry-after" in answer.headers
        for _ in range(4):
            assert ask(service, request("/v1/models/diabetes:predict", DIABETES)).status == 200
    await jobs.close()
