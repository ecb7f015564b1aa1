"""Jobs and events that the version before the outbox has left behind, as dumps in `old/`.

Nothing of what is in files is lost. What is in Redis nobody has signed, so anybody could have put it there.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import redis
import structlog

from serving.errors import JobNotFound
from serving.events.log import EventLog
from serving.jobs.results import whole_result
from serving.jobs.store import JobStore
from tests.serving.conftest import until
from tests.serving.jobs.conftest import Jobs, claim, complete, job_request

pytestmark = pytest.mark.anyio

OLD = Path(__file__).with_name("old")


def restore(directory: Path) -> None:
    """The files as that version has written them."""
    for name in ("jobs", "events"):
        with closing(sqlite3.connect(directory / f"{name}.db")) as connection:
            connection.executescript((OLD / f"{name}.sql").read_text())


@pytest.fixture
def old(jobs: Jobs) -> Jobs:
    jobs.let_pass(60)
    restore(jobs.directory)
    return jobs


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
async def test_old_jobs_are_there_and_those_that_waited_or_ran_are_finished(old: Jobs) -> None:
    store = old.open()
    states = {name: (await store.get(name)).state for name in ("done", "failed", "cancelled", "running", "queued")}
    assert states == {name: name for name in states}
    assert [result async for result in whole_result(store, await store.get("done"))] == [b"[0]", b"[1]"]
    assert (await store.get("failed")).error == "the model failed"
    assert (await store.submit(job_request(idempotency_key="key-of-done"))).id == "done"
    assert (await store.submit(job_request(mutex="mutex-of-queued"))).id == "queued"
    for _ in range(2):
        job = await until(lambda: claim(store, "new"))
        await complete(store, job, "new")
    assert (await store.get("running")).error == ""
    counts = await store.counts()
    assert (counts.done, counts.failed, counts.cancelled, counts.running, counts.queued) == (3, 1, 1, 0, 0)


@pytest.mark.parametrize("jobs", ["redis"], indirect=True)
async def test_old_jobs_that_nobody_signed_are_not_there_and_keep_nobody_waiting(jobs: Jobs, raw: redis.Redis) -> None:
    for command in json.loads((OLD / "redis.json").read_text()):
        raw.execute_command(*command)  # type: ignore[no-untyped-call]
    store = jobs.open()
    for name in ("done", "failed", "cancelled", "running", "queued"):
        with pytest.raises(JobNotFound):
            await store.get(name)
    for request in (job_request(idempotency_key="key-of-done"), job_request(mutex="mutex-of-queued")):
        own = await store.submit(request)
        job = await until(lambda: claim(store, "new"))
        assert job.id == own.id
        await complete(store, job, "new")
        assert (await store.get(own.id)).state == "done"


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
async def test_old_events_are_followed_from_an_old_id_into_new_ones(old: Jobs) -> None:
    store, events = old.open(), old.open_events()
    page = await events.read("done", 0, 10)
    assert [event.kind for event in page.events] == ["chunk", "chunk", "done"]
    seen = page.events[0].id
    assert [event.id for event in (await events.read("done", seen, 10)).events] == [e.id for e in page.events[1:]]
    assert not page.is_gap(seen)
    last = (await events.read(None, 0, 0)).latest
    assert [event.id for event in (await events.read("entity:one", 0, 10)).events] == [last]
    job = await until(lambda: claim(store, "new"))
    await complete(store, job, "new")
    new = (await events.read(None, last, 10)).events
    assert [(event.topic, event.kind) for event in new] == [(job.id, "chunk"), (job.id, "done")]
    assert [event.kind for event in (await events.read("running", 0, 10)).events] == ["chunk", "chunk", "done"]


async def test_the_log_names_the_file_that_was_taken_over_once(tmp_path: Path) -> None:
    jobs = Jobs("sqlite", tmp_path, "")
    restore(tmp_path)
    with structlog.testing.capture_logs() as lines:
        first: tuple[JobStore, EventLog] = (jobs.open(), jobs.open_events())
        await first[1].read(None, 0, 10)
        await first[0].counts()
        await jobs.open().counts()
    assert [(line["event"], line["file"], line["events"]) for line in lines] == [("Events taken over", "events.db", 7)]
    await jobs.close()


async def test_an_old_file_that_cannot_be_read_is_left_behind(tmp_path: Path) -> None:
    jobs = Jobs("sqlite", tmp_path, "")
    restore(tmp_path)
    (tmp_path / "events.db").write_bytes(b"this is no database" * 100)
    with structlog.testing.capture_logs() as lines:
        assert (await jobs.open().get("done")).state == "done"
    assert [(line["event"], line["error"]) for line in lines] == [
        ("Old events cannot be read", "file is not a database")
    ]
    assert await jobs.open_events().append("t", "tick", b"") > 0
    await jobs.close()
