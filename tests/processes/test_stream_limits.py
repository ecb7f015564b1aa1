"""Streams that are silent, too many, too slow or of no job: nobody makes the service wait or grow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import pytest

from harness.backstage import OPERATION, Backstage, path_of, rest, take
from harness.processes import DIABETES, PATIENCE, eventually
from harness.service import Service
from harness.sse import Frame, Stream
from harness.wire import Connection, ask, check_refusal, request
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.job import JobRequest
from serving.jobs.sqlite import SQLiteJobStore, jobs_database
from serving.process.kernel import read_rss

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def limited(few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """One worker that allows five streams, three from one address, each with ten heartbeats a second."""
    directory = tmp_path_factory.mktemp("data")
    environ = {
        "MODEL_DIR": str(few_models),
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
    backstage = Backstage(SQLiteJobStore(directory), SQLiteEventLog(jobs_database(directory)), {})
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


async def test_a_stream_ends_with_the_end_of_its_job(small: tuple[Service, Backstage]) -> None:
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
    async with Stream(service.address, path_of(job), headers={"last-event-id": last["id"]}) as again:
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
    assert median(seconds) < 0.5
    assert all(connection.refuses_more(within=PATIENCE) for connection in with_few)
    assert read_rss(worker) - before < 40 << 20
    for connection in with_few:
        connection.close()
    assert eventually(lambda: is_open(service, path_of(job)))


async def test_a_slow_client_misses_nothing_whether_it_is_cut_or_not(small: tuple[Service, Backstage]) -> None:
    service, backstage = small
    job, count = await backstage.submit(), 400
    heard: list[Frame] = []
    while len(heard) < count:
        headers = {"last-event-id": heard[-1]["id"]} if heard else {}
        async with (
            asyncio.timeout(PATIENCE),
            Stream(service.address, path_of(job), headers=headers, receive_buffer=4096) as slow,
        ):
            for number in range(0 if heard else count):
                await backstage.events.append(job, "chunk", b"%d" % number + b" " * 50_000)
            async for frame in slow:
                if "event" in frame:
                    heard.append(frame)
                if len(heard) == count:
                    break
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
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/event-stream", b"")
        connection.send(request("/health/live", method="GET"))
        assert connection.answer() is not None


async def test_streams_are_refused_when_their_store_is_away_and_predictions_go_on(
    few_models: Path, tmp_path: Path
) -> None:
    jobs = SQLiteJobStore(tmp_path)
    job = (await jobs.submit(JobRequest(operation=OPERATION, inputs=[b""]))).id
    await jobs.close()
    (tmp_path / "jobs.db").write_bytes(b"this is no database" * 100)
    with Service({"MODEL_DIR": str(few_models), "DATA_DIR": str(tmp_path), "ROLES": "web"}) as service:
        for path in (path_of(job), "/v1/entities/one/events"):
            answer = ask(service, request(path, method="GET"))
            check_refusal(answer, 503)
            assert "retry-after" in answer.headers
        for _ in range(4):
            assert ask(service, request("/v1/models/diabetes:predict", DIABETES)).status == 200


async def test_streams_count_over_all_workers_and_a_killed_one_gives_back_what_it_held(
    few_models: Path, tmp_path: Path
) -> None:
    environ = {"MODEL_DIR": str(few_models), "DATA_DIR": str(tmp_path), "ROLES": "web", "WEB_CONCURRENCY": "2"}
    with Service(environ | {"MAX_STREAMS_PER_ADDRESS": "12"}) as service:
        path = "/v1/entities/one/events"
        async with AsyncExitStack() as stack:
            for _ in range(12):
                assert (await stack.enter_async_context(Stream(service.address, path))).status == 200
            for _ in range(10):  # whichever worker it is
                check_refusal(ask(service, request(path, method="GET")), 503)
            for pid in list(service.workers):
                os.kill(pid, signal.SIGKILL)
            assert eventually(lambda: len(service.workers) == 2 and is_open(service, path))
            again = [await stack.enter_async_context(Stream(service.address, path)) for _ in range(12)]
            assert [stream.status for stream in again] == [200] * 12
