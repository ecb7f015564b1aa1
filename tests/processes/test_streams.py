"""Streams of jobs on the real service: nothing is missed or repeated while workers come and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from harness.backstage import Backstage, path_of, rest, take
from harness.jobs import call, send, varied
from harness.processes import DIABETES, PATIENCE, eventually, gone, hammer
from harness.servers import RedisServer
from harness.service import ADMIN_TOKEN, SECRET_KEY, Service
from harness.sse import Stream, follow
from harness.wire import ask, check_refusal, request
from serving.cli.client import post
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore, jobs_database
from serving.storage.seal import Seal

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sqlite(few_models: Path, tmp_path: Path) -> AsyncIterator[Backstage]:
    environ = {"MODEL_DIR": str(few_models), "DATA_DIR": str(tmp_path), "MAX_REQUESTS": "0"}
    backstage = Backstage(SQLiteJobStore(tmp_path), SQLiteEventLog(jobs_database(tmp_path)), environ)
    yield backstage
    await backstage.close()


@pytest.fixture(scope="module")
def one_worker(few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service of one worker, and where it keeps its jobs and events."""
    directory = tmp_path_factory.mktemp("data")
    environ = {"MODEL_DIR": str(few_models), "DATA_DIR": str(directory), "ROLES": "web", "WEB_CONCURRENCY": "1"}
    limits = {"MAX_REQUESTS": "0", "MAX_STREAMS_PER_ADDRESS": "0", "GRACEFUL_TIMEOUT_SECONDS": "60"}
    with Service(environ | limits | {"ADMIN_TOKEN": ADMIN_TOKEN}) as service:
        yield service, directory


@pytest.fixture
async def shared(one_worker: tuple[Service, Path]) -> AsyncIterator[tuple[Service, Backstage]]:
    """That service, whose worker may be ended by any test, and what is behind it."""
    service, directory = one_worker
    assert eventually(lambda: len(service.workers) == 1)
    backstage = Backstage(SQLiteJobStore(directory), SQLiteEventLog(jobs_database(directory)), {})
    yield service, backstage
    await backstage.close()


@pytest.fixture(params=["sqlite", "redis"])
async def backstage(
    request: pytest.FixtureRequest, sqlite: Backstage, own_server: RedisServer
) -> AsyncIterator[Backstage]:
    if request.param == "sqlite":
        yield sqlite
        return
    url = own_server.url
    seal = Seal([SECRET_KEY])
    environ = sqlite.environ | {"REDIS_URL": url}
    redis = Backstage(RedisJobStore(url, seal=seal), RedisEventLog(url, seal=seal), environ)
    yield redis
    await redis.close()


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
    environ = backstage.environ | {"MAX_REQUESTS": "20", "MAX_REQUESTS_JITTER": "5", "MIN_WORKER_SECONDS": "0"}
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
            while number < count or len(service.events("Worker stopped")) < 4:
                await backstage.tell(job, 1, start=number)
                number += 1
            over.set()
            await disturbing
            await backstage.events.append(job, "done", b"")
            for heard in await asyncio.gather(*hearing):
                assert heard == [f"chunk {n}" for n in range(number)]


async def test_another_worker_goes_on_where_the_client_left_off(shared: tuple[Service, Backstage]) -> None:
    service, backstage = shared
    (old,) = service.workers
    started = len(service.events("Worker started"))
    job = await backstage.submit()
    ids = await backstage.tell(job, 3)
    async with Stream(service.address, path_of(job)) as stream:
        await take(aiter(stream), 3)
        os.kill(old, signal.SIGKILL)
        assert await rest(stream) == []
        assert not stream.complete
    assert eventually(lambda: len(service.events("Worker started")) == started + 1)
    ids += await backstage.tell(job, 2, start=3)
    for headers, query in (({"last-event-id": str(ids[2])}, ""), ({}, f"?last_event_id={ids[2]}")):
        async with Stream(service.address, path_of(job) + query, headers=headers) as stream:
            assert [frame["data"] for frame in await take(aiter(stream), 2)] == ["3", "4"]
    both = Stream(service.address, f"{path_of(job)}?last_event_id=0", headers={"last-event-id": str(ids[3])})
    async with both as stream:
        assert [frame["data"] for frame in await take(aiter(stream), 1)] == ["4"]


async def test_who_missed_what_the_log_has_forgotten_is_told_so(shared: tuple[Service, Backstage]) -> None:
    service, backstage = shared
    await backstage.events.prune(-60)  # what other tests have left
    job = await backstage.submit()
    (seen,) = await backstage.tell(job, 1)
    (forgotten,) = await backstage.tell(job, 1, start=1)
    assert await backstage.events.prune(-60) == 2
    (kept,) = await backstage.tell(job, 1, start=2)
    async with Stream(service.address, path_of(job), headers={"last-event-id": str(seen)}) as stream:
        reset, event = await take(aiter(stream), 2)
        assert (reset["event"], reset["id"], reset["data"]) == ("reset", str(forgotten), "")
        assert (event["event"], event["id"]) == ("chunk", str(kept))


async def test_a_drain_does_not_wait_for_streams(sqlite: Backstage) -> None:
    environ = {"WEB_CONCURRENCY": "1", "GRACEFUL_TIMEOUT_SECONDS": "60", "MAX_REQUESTS": "10"}
    with Service(sqlite.environ | environ | {"MAX_REQUESTS_JITTER": "0", "MIN_WORKER_SECONDS": "0"}) as service:
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


async def test_admin_sees_figures_again_and_again_until_the_worker_drains(shared: tuple[Service, Backstage]) -> None:
    service, _ = shared
    (old,) = service.workers
    check_refusal(ask(service, request("/api/admin/events", method="GET")), 401)
    async with Stream(service.address, "/api/admin/events", headers={"x-admin-token": ADMIN_TOKEN}) as stream:
        for frame in await take(aiter(stream), 2):
            assert frame["event"] == "metrics"
            assert [worker["pid"] for worker in json.loads(frame["data"])["workers"]] == [old]
        started = time.monotonic()
        os.kill(old, signal.SIGTERM)
        await rest(stream)
        assert stream.complete
        assert gone([old])
        assert time.monotonic() - started < 10


async def test_a_finished_job_tells_all_and_then_that_it_is_over(shared: tuple[Service, Backstage]) -> None:
    service, backstage = shared
    job = await backstage.submit()
    ids = await backstage.tell(job, 60)
    await backstage.jobs.cancel(job)
    async with Stream(service.address, path_of(job)) as stream:
        *told, last = await rest(stream)
        assert [frame["id"] for frame in told] == [str(number) for number in ids]
        assert (last["event"], json.loads(last["data"])) == ("cancelled", {"state": "cancelled", "error": ""})
        assert int(last["id"]) > ids[-1]
        assert stream.complete
    async with Stream(service.address, path_of(job), headers={"last-event-id": last["id"]}) as stream:
        assert stream.status == 204


@pytest.fixture(params=["sqlite", "redis"])
def running(
    request: pytest.FixtureRequest, few_models: Path, tmp_path: Path, own_server: RedisServer
) -> Iterator[Service]:
    where = {"REDIS_URL": own_server.url} if request.param == "redis" else {}
    environ = {
        "MODEL_DIR": str(few_models),
        "DATA_DIR": str(tmp_path),
        "MAX_REQUESTS": "0",
        "MAX_STREAMS_PER_ADDRESS": "0",
    }
    with Service(environ | where) as service:
        yield service


async def test_done_is_told_exactly_once_to_whoever_comes_while_a_job_ends(running: Service) -> None:
    """Clients come all the time while jobs run; the last of them in the moment in which a job's state is `done`."""

    async def hear(job: str) -> None:
        async with Stream(running.address, path_of(job)) as stream:
            assert stream.status == 200
            *_, last = heard = await rest(stream)
        assert [frame["event"] for frame in heard].count("done") == 1
        assert (last["event"], json.loads(last["data"])) == ("done", {"state": "done", "error": ""})
        async with Stream(running.address, path_of(job), headers={"last-event-id": last["id"]}) as again:
            assert again.status == 204

    async def watch(number: int) -> None:
        answer = await asyncio.to_thread(send, running, "predict", "diabetes", varied_rows[number : number + 3])
        path, hearing = answer.headers["Location"], []
        done = False
        while not done:
            done = (await asyncio.to_thread(call, running, "GET", path)).json["state"] == "done"
            hearing.append(asyncio.create_task(hear(answer.json["id"])))
        await asyncio.gather(*hearing)

    varied_rows = varied(running, "diabetes", 20)
    async with asyncio.timeout(2 * PATIENCE):
        for number in range(6):
            await watch(number)
