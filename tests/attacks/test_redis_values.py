"""Who can write to Redis plants nothing: what was not signed with the secret is a miss, or is not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from cache.redis import PREFIX, RedisTier
from harness.servers import RedisServer
from serving.errors import JobNotFound
from serving.events.redis import KEYS as EVENT_KEYS
from serving.events.redis import RedisEventLog
from serving.jobs.job import Job
from serving.jobs.redis import RedisJobStore
from serving.settings import Settings
from serving.storage.seal import Seal
from serving.stores import SECRET_FILENAME, build_seal
from tests.serving.jobs.conftest import LEASE, OPERATIONS, job_request

pytestmark = pytest.mark.anyio

SECRET, OLDER = "the secret of tests", "the one before that"
JOBS = "forkserve:{jobs}:"
PATIENCE = 10.0


@pytest.fixture
async def store(shared_server: RedisServer, raw: redis.Redis) -> AsyncIterator[RedisJobStore]:
    store = RedisJobStore(shared_server.url, timeout=PATIENCE, seal=Seal([SECRET]))
    yield store
    await store.close()


@pytest.fixture
async def stranger(shared_server: RedisServer) -> AsyncIterator[RedisJobStore]:
    """A store of somebody who can write to Redis, and does not know the secret."""
    store = RedisJobStore(shared_server.url, timeout=PATIENCE, seal=Seal(["another secret"]))
    yield store
    await store.close()


async def claim(store: RedisJobStore) -> Job | None:
    return await store.claim("me", LEASE, OPERATIONS)


async def test_planted_answer_is_a_miss(shared_server: RedisServer, raw: redis.Redis) -> None:
    ours = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE, seal=Seal([SECRET]))
    raw.set(PREFIX + b"key", Seal().close(PREFIX + b"key", b"planted"))
    raw.set(PREFIX + b"older", Seal([OLDER]).close(PREFIX + b"older", b"ours"))
    assert await ours.get_many([b"key", b"older"]) == [None, None]
    rotated = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE, seal=Seal([SECRET, OLDER]))
    assert await rotated.get_many([b"key", b"older"]) == [None, b"ours"]
    await ours.close()
    await rotated.close()


async def test_planted_job_is_none_and_stops_nobody(store: RedisJobStore, stranger: RedisJobStore) -> None:
    planted = await stranger.submit(job_request())
    mine = await store.submit(job_request())
    with capture_logs() as logs:
        assert await claim(store) is None, "it was due first"
        with pytest.raises(JobNotFound):
            await store.get(planted.id)
        claimed = await claim(store)
    assert claimed is not None
    assert claimed.id == mine.id
    assert [event["kind"] for event in logs] == ["jobs"], "said once"
    assert (await store.counts()).queued == 0


@pytest.mark.parametrize(
    "field", ["parameters", "model", "version", "client", "chunks", "operation", "idempotency_key", "signature"]
)
async def test_changed_job_is_none(store: RedisJobStore, raw: redis.Redis, field: str) -> None:
    job = await store.submit(job_request(parameters=b"{}"))
    raw.hset(f"{JOBS}job:{job.id}", field, "12")
    with pytest.raises(JobNotFound):
        await store.get(job.id)


async def test_job_under_the_id_of_another_is_none(store: RedisJobStore, raw: redis.Redis) -> None:
    job, other = await store.submit(job_request()), await store.submit(job_request(model="other"))
    fields: Any = raw.hgetall(f"{JOBS}job:{other.id}")
    raw.hset(f"{JOBS}job:{job.id}", mapping=fields)
    with pytest.raises(JobNotFound):
        await store.get(job.id)


@pytest.mark.parametrize(
    "garbage", [{}, {"operation": "predict"}, {"state": "queued", "stalled": "x"}, b"text", b"\xff"]
)
@pytest.mark.parametrize("place", ["due:predict", "running"])
async def test_record_of_another_form_stops_nobody(
    store: RedisJobStore, raw: redis.Redis, garbage: Any, place: str
) -> None:
    raw.zadd(JOBS + place, {"planted": 1.0})
    if isinstance(garbage, bytes):
        raw.set(f"{JOBS}job:planted", garbage)
    elif garbage:
        raw.hset(f"{JOBS}job:planted", mapping=garbage)
    mine = await store.submit(job_request(operation="predict"))
    found = [await claim(store) for _ in range(3)]
    assert [job.id for job in found if job is not None] == [mine.id]
    with pytest.raises(JobNotFound):
        await store.get("planted")
    with pytest.raises(JobNotFound):
        await store.cancel("planted")


async def test_planted_inputs_and_results_are_not_there(store: RedisJobStore, raw: redis.Redis) -> None:
    job = await store.submit(job_request())
    await claim(store)
    await store.checkpoint(job.id, "me", LEASE, 0, b"right")
    stolen: Any = raw.hget(f"{JOBS}result:{job.id}", "0")
    for kind in ("result", "input"):
        raw.hset(f"{JOBS}{kind}:{job.id}", mapping={"1": stolen, "2": b"wrong"})
    assert [await store.result(job.id, chunk) for chunk in range(3)] == [b"right", None, None]
    assert await store.input(job.id, 0) == b"0"
    for chunk in (1, 2):
        with pytest.raises(JobNotFound):
            await store.input(job.id, chunk)


async def test_key_that_was_led_to_another_job_is_led_back(store: RedisJobStore, raw: redis.Redis) -> None:
    other = await store.submit(job_request())
    raw.hset(f"{JOBS}idempotency_key", "mine", other.id)
    raw.hset(f"{JOBS}unique_key", "mine", "none")
    for request in (job_request(idempotency_key="mine"), job_request(unique_key="mine")):
        job = await store.submit(request)
        assert job.id not in (other.id, "none")
        assert (await store.submit(request)).id == job.id


async def test_counts_and_schedules_of_another_form_are_none(store: RedisJobStore, raw: redis.Redis) -> None:
    raw.hset(f"{JOBS}counts", mapping={"queued": "many", "wrong": "1", "done": "3"})
    raw.sadd(f"{JOBS}schedules", "planted", b"\xff")
    raw.hset(f"{JOBS}schedule:planted", mapping={"last": "never", "fired": b"\xff"})
    counts = await store.counts()
    assert (counts.queued, counts.done) == (0, 3)
    assert await store.schedules() == {}


async def test_secrets_are_rotated_without_losing_a_job(shared_server: RedisServer, store: RedisJobStore) -> None:
    job = await store.submit(job_request())
    rotated = RedisJobStore(shared_server.url, timeout=PATIENCE, seal=Seal(["a new secret", SECRET]))
    assert (await rotated.get(job.id)).id == job.id
    claimed = await claim(rotated)
    assert claimed is not None
    assert await rotated.input(job.id, 1) == b"1"
    await rotated.close()


async def test_planted_events_are_passed_over(shared_server: RedisServer, raw: redis.Redis) -> None:
    log = RedisEventLog(shared_server.url, timeout=PATIENCE, seal=Seal([SECRET]))
    stranger = RedisEventLog(shared_server.url, timeout=PATIENCE, seal=Seal(["another secret"]))
    first = await log.append("house", "prediction", b"1")
    for kind in ("prediction", "done", "progress"):
        await stranger.append("house", kind, b'{"progress":0.5}')
    planted: list[dict[Any, Any]] = [
        {"t": "house", "k": "prediction", "d": '{"prediction":1}'},
        {"t": "house", "k": "done", "d": '{"anything":1}'},
        {"t": "house", "k": "progress", "d": "not JSON"},
        {"t": b"\xff", "k": b"\xff", "d": b"\xff"},
        {"only": "one"},
    ]
    for entry in planted:
        raw.xadd(EVENT_KEYS[0], entry)
    last = await log.append("house", "prediction", b"2")
    for limit in (1, 2, 3, 100):
        seen, position = [], 0
        while (page := await log.read(None, position, limit)).events:
            seen += page.events
            position = page.events[-1].id
        assert [(event.id, event.data) for event in seen] == [(first, b"1"), (last, b"2")]
    await log.close()
    await stranger.close()


def test_secret_is_the_one_that_is_set_else_the_admins_else_one_of_this_box(tmp_path: Path) -> None:
    common = {"REDIS_URL": "redis://x", "DATA_DIR": str(tmp_path / "data")}

    def seal(**environ: str) -> Seal:
        return build_seal(Settings.from_env(common | environ))

    set_here = seal(SECRET_KEY=f"{SECRET},{OLDER}", ADMIN_TOKEN="a token of the admin")
    assert set_here.open(b"x", Seal([OLDER]).close(b"x", b"1")) == b"1"
    assert Seal([SECRET]).open(b"x", set_here.close(b"x", b"1")) == b"1"
    token = "a token of the admin"
    assert Seal([token]).open(b"x", seal(ADMIN_TOKEN=token).close(b"x", b"1")) == b"1"
    assert not (tmp_path / "data").exists()
    assert seal().open(b"x", seal().close(b"x", b"1")) == b"1"
    kept = tmp_path / "data" / SECRET_FILENAME
    assert kept.stat().st_mode & 0o777 == 0o600
    assert Seal().open(b"x", seal().close(b"x", b"1")) is None
    assert len(list(kept.parent.iterdir())) == 1
