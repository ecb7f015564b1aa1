"""Redis as a store: away, hung, full, forgetful - the caller always knows what happened, and soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any

import pytest
import redis
import structlog
import trustme

from cache.redis import RedisTier
from harness.servers import RedisServer, free_port, redis_server
from serving.errors import InvalidRedisUrl, JobNotFound, QueueFull, StoreUnavailable
from serving.events.follow import Hub
from serving.events.redis import RedisEventLog
from serving.jobs.redis import RedisJobStore
from serving.storage.redis import RedisClient
from serving.storage.seal import Seal
from tests.cache.conftest import listening
from tests.cache.test_redis import tls_in_front_of
from tests.serving.conftest import PATIENCE, until
from tests.serving.jobs.conftest import LEASE, adds_a_job, claim, claimed, complete, job_request

pytestmark = pytest.mark.anyio

SOON = 8.0
"""Two attempts of at most 2.5 timeouts of a second, and something for a busy machine."""


@pytest.fixture
async def store(shared_server: RedisServer, raw: redis.Redis) -> AsyncIterator[RedisJobStore]:
    store = RedisJobStore(shared_server.url, timeout=PATIENCE)
    yield store
    await store.close()


@asynccontextmanager
async def forgetful_proxy(port: int, forgets: int) -> AsyncIterator[str]:
    """In front of a server; its connection number `forgets` breaks when the answer to the first command comes."""
    connections = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(upstream_writer):
            while data := await reader.read(1 << 20):
                upstream_writer.write(data)
                answer = await upstream_reader.read(1 << 20)
                if number == forgets and b"EVALSHA" in data and not answer.startswith(b"-NOSCRIPT"):
                    return
                writer.write(answer)

    async with listening(forward) as proxy:
        yield f"redis://127.0.0.1:{proxy}/0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", "..."),
        ("http://localhost", "..."),
        ("secret", "..."),
        ("redis://user:secret/x@localhost:notaport/0", "redis://localhost:..."),
        ("redis://user:secret", "redis://user:..."),
        ("redis://:secret@there:6379/zero", "redis://there:6379"),
        ("redis://there/zero", "redis://there"),
        ("redis://there/1/2", "redis://there"),
        ("redis://there/-1", "redis://there"),
        ("rediss://there:99999/0", "rediss://there:99999"),
        ("redis://there?db=zero&password=secret", "redis://there"),
        ("redis://there/0?colour=secret", "redis://there"),
        ("unix:///run/redis.sock?db=secret", "unix://"),
        ("redis://[::1]:6379/zero", "redis://[::1]:6379"),
    ],
)
def test_a_url_that_is_not_valid_is_named_without_what_may_be_its_password(url: str, shown: str) -> None:
    for build in (RedisJobStore, RedisEventLog):
        with pytest.raises(InvalidRedisUrl) as caught:
            build(url)
        assert f"REDIS_URL {shown!r} is not valid" in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://there", "redis://there/", "redis://:a%2Fb@there/3", "unix:///run/redis.sock?db=1"]
)
def test_a_url_that_is_valid_is_taken(url: str) -> None:
    RedisJobStore(url)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-MOVED 866 10.0.0.7:7002\r\n", "Moved"),
        (b"-CLUSTERDOWN Hash slot not served\r\n", "ClusterDown"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "maxmemory"),
        (b"-NOPERM this user has no permissions to run the 'evalsha' command\r\n", "evalsha"),
        (b"-NOAUTH Authentication required.\r\n", "Authentication required"),
    ],
)
async def test_what_a_server_says_is_the_reason(answer: bytes, reason: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(answer)

    async with listening(serve) as port:
        store, cache = (
            RedisJobStore(f"redis://127.0.0.1:{port}/0"),
            RedisTier(f"redis://127.0.0.1:{port}/0", ttl_seconds=1),
        )
        with pytest.raises(StoreUnavailable, match=reason):
            await store.counts()
        with structlog.testing.capture_logs() as lines:
            for _ in range(5):
                await cache.get_many([b"key"])
        assert [reason in line["reason"] for line in lines] == [True]
        await store.close()
        await cache.close()


async def test_a_certificate_that_is_not_trusted_is_the_reason(shared_server: RedisServer) -> None:
    async with tls_in_front_of(shared_server.port, trustme.CA().issue_cert("127.0.0.1")) as port:
        store = RedisJobStore(f"rediss://127.0.0.1:{port}/0", timeout=PATIENCE)
        with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await store.counts()
        await store.close()


async def test_server_that_is_not_there_is_said_soon() -> None:
    store = RedisJobStore(f"redis://127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="Redis is unavailable"):
        await store.submit(job_request())
    assert time.monotonic() - started < SOON
    await store.close()


async def test_hung_server_is_said_soon_and_used_again_when_it_is_well(own_server: RedisServer) -> None:
    store = RedisJobStore(own_server.url, timeout=1.0)
    job = await store.submit(job_request())
    own_server.pause()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.get(job.id)
    assert time.monotonic() - started < SOON
    own_server.resume()
    assert await store.get(job.id) == job
    await store.close()


async def test_restarted_server_is_used_without_an_error_in_between(own_server: RedisServer) -> None:
    store = RedisJobStore(own_server.url, timeout=PATIENCE)
    await store.submit(job_request())
    own_server.kill()
    with redis_server(port=own_server.port):
        # it knows neither the connection nor the scripts
        assert await adds_a_job(store, job_request())
    await store.close()


async def test_server_that_has_forgotten_the_scripts_is_sent_them(store: RedisJobStore, raw: redis.Redis) -> None:
    await store.submit(job_request())
    raw.script_flush()
    assert (await claimed(store)).state == "running"


async def test_submission_whose_answer_was_lost_is_one_job(shared_server: RedisServer, store: RedisJobStore) -> None:
    async with forgetful_proxy(shared_server.port, forgets=1) as url:
        behind = RedisJobStore(url, timeout=PATIENCE)
        job = await behind.submit(job_request())
        await behind.close()
    assert await store.get(job.id) == job
    assert (await store.counts()).queued == 1


async def test_checkpoint_and_finish_whose_answers_were_lost_are_told_as_they_were(
    shared_server: RedisServer, store: RedisJobStore
) -> None:
    await store.submit(job_request(inputs=(b"",)))
    job = await claimed(store)
    for last in (False, True):
        async with forgetful_proxy(shared_server.port, forgets=1) as url:
            behind = RedisJobStore(url, timeout=PATIENCE)
            if last:
                assert await behind.finish(job.id, "a") == await store.get(job.id)
            else:
                assert await behind.checkpoint(job.id, "a", LEASE, 0, b"r") == "held"
            await behind.close()
    assert (await store.get(job.id)).chunks_done == 1


async def test_claim_whose_answer_was_lost_is_not_repeated(shared_server: RedisServer, store: RedisJobStore) -> None:
    for _ in range(2):
        await store.submit(job_request())
    async with forgetful_proxy(shared_server.port, forgets=1) as url:
        behind = RedisJobStore(url, timeout=PATIENCE)
        with pytest.raises(StoreUnavailable):
            await claim(behind)
        await behind.close()
    counts = await store.counts()
    assert (counts.queued, counts.running) == (1, 1)


async def test_nothing_that_is_kept_has_a_time_to_live(store: RedisJobStore, raw: redis.Redis) -> None:
    """A server that is also a cache evicts what has one."""
    for _ in range(3):
        await store.submit(job_request(unique_key="u", idempotency_key="i", mutex="x"))
        await store.submit(job_request())
    await complete(store, await claimed(store))
    await claimed(store)
    keys = list(raw.scan_iter())
    assert len(keys) >= 8
    assert all(key.startswith((b"forkserve:{jobs}:", b"forkserve:{events}:")) for key in keys)
    assert [key for key in keys if raw.ttl(key) != -1] == []


async def test_pruned_jobs_leave_no_keys_behind(store: RedisJobStore, raw: redis.Redis) -> None:
    await store.submit(job_request(unique_key="u", idempotency_key="i", mutex="x"))
    await complete(store, await claimed(store))
    assert await store.prune(3600, 0, 1 << 30) == 1
    await store.probe()
    assert raw.ttl("forkserve:{jobs}:probe") > 0
    raw.delete("forkserve:{jobs}:probe")
    left = {key.decode().removeprefix("forkserve:") for key in raw.scan_iter()}
    assert left == {"{jobs}:counts", "{jobs}:operations", "{events}:stream", "{events}:first"}


async def test_counts_that_are_wrong_lock_nobody_out(store: RedisJobStore, raw: redis.Redis) -> None:
    await store.submit(job_request(account="key:a"))
    for number in (1000, 1 << 40):
        for name, field in (("waiting", "key:a"), ("held", "key:a"), ("held", "all")):
            raw.hset(f"forkserve:{{jobs}}:{name}", field, number)
        raw.delete("forkserve:{jobs}:recounted")
        await store.submit(job_request(account="key:a"))
    assert raw.hgetall("forkserve:{jobs}:waiting") == {b"key:a": b"3"}
    assert raw.hgetall("forkserve:{jobs}:held") == {b"key:a": b"9", b"all": b"9"}
    raw.hset("forkserve:{jobs}:held", "all", 1 << 40)
    with pytest.raises(QueueFull):  # all is counted again only now and then
        await store.submit(job_request())


async def test_full_server_refuses_new_jobs_and_lets_the_others_be_worked_off(own_server: RedisServer) -> None:
    store = RedisJobStore(own_server.url, timeout=PATIENCE)
    large = job_request(inputs=(b"x" * 1_000_000,))

    async def refusal() -> str:
        try:
            await store.submit(large)
        except StoreUnavailable as error:
            return str(error)
        return ""

    with redis.Redis(port=own_server.port) as raw:
        raw.config_set("maxmemory-policy", "noeviction")
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 6_000_000)
        told = [await refusal() for _ in range(10)]
        assert "maxmemory" in told[-1]
        kept = told.count("")
        assert 1 <= kept == (await store.counts()).queued
        raw.config_set("maxmemory", 1)
        for _ in range(kept):
            job = await claimed(store)
            assert len(await store.input(job.id, 0)) == 1_000_000
            await complete(store, job)
        assert (await store.counts()).done == kept
        assert await store.prune(3600, 0, 1 << 30) == kept
    await store.close()


@pytest.mark.parametrize("command", [("CONFIG", "SET", "maxmemory", "1"), ("REPLICAOF", "127.0.0.1", "1")])
async def test_server_that_can_be_read_and_not_written_is_found_out(
    own_server: RedisServer, command: tuple[str, ...]
) -> None:
    store = RedisJobStore(own_server.url, timeout=PATIENCE)
    await store.probe()
    with redis.Redis(port=own_server.port) as raw:
        raw.execute_command(*command)
        with pytest.raises(StoreUnavailable):
            await store.probe()
    await store.close()


async def test_a_probe_finds_a_server_that_takes_a_key_and_no_job(own_server: RedisServer) -> None:
    store = RedisJobStore(own_server.url, timeout=PATIENCE)
    with redis.Redis(port=own_server.port) as raw:
        raw.config_set("maxmemory-policy", "noeviction")
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 600_000)
        with pytest.raises(StoreUnavailable, match="memory is full"):
            await store.probe()
        raw.config_set("maxmemory-policy", "volatile-lru")
        await store.probe()
    await store.close()


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-ttl", "allkeys-lru", "allkeys-random"])
async def test_a_server_that_may_evict_jobs_is_a_risk(own_server: RedisServer, policy: str) -> None:
    store = RedisJobStore(own_server.url, timeout=PATIENCE)
    with redis.Redis(port=own_server.port) as raw:
        raw.config_set("maxmemory-policy", policy)
    risk = await store.risk()
    assert (risk is not None and policy in risk) is policy.startswith("allkeys")
    await store.close()


async def test_services_that_sign_with_other_secrets_are_a_risk_to_each_other(
    shared_server: RedisServer, raw: redis.Redis
) -> None:
    def store(*secrets: str) -> RedisJobStore:
        return RedisJobStore(shared_server.url, seal=Seal(secrets))

    async def at_risk(*order: RedisJobStore) -> list[bool]:
        return ["another secret" in (await one.risk() or "") for one in order]

    old, same, rotating, other = store("old"), store("old"), store("new", "old"), store("other")
    assert await at_risk(old, same, old) == [False] * 3
    assert await at_risk(rotating) == [False], "it accepts both"
    assert await at_risk(old) == [True], "it ignores what the new secret has signed"
    raw.delete("forkserve:{jobs}:seals")
    assert await at_risk(old, other, old) == [False, True, True]
    raw.hset("forkserve:{jobs}:seals", mapping={Seal(["other"]).marks[0]: "1.0", "garbage": "garbage"})
    assert await at_risk(old) == [False], "it has not looked for long"
    assert 0 < raw.ttl("forkserve:{jobs}:seals") <= 600
    raw.set("forkserve:{jobs}:seals", "something else")
    assert await at_risk(old) == [False]
    for one in (old, same, rotating, other):
        await one.close()


async def test_jobs_that_a_wrongly_configured_server_has_evicted_do_not_stop_the_others(
    store: RedisJobStore, raw: redis.Redis
) -> None:
    lost = [await store.submit(job_request(inputs=(b"",))) for _ in range(3)]
    running = await claimed(store, lease_seconds=0.001)
    await complete(store, done := await claimed(store))
    for job in lost:
        raw.delete(f"forkserve:{{jobs}}:job:{job.id}")
    assert {running.id, done.id} < {job.id for job in lost}
    wanted = await store.submit(job_request())
    assert (await until(lambda: claim(store))).id == wanted.id
    with pytest.raises(JobNotFound):
        await store.get(running.id)
    assert await store.prune(3600, 0, 1 << 30) == 1


async def test_server_that_does_not_speak_redis_is_said() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(answer) as port:
        store = RedisJobStore(f"redis://127.0.0.1:{port}")
        with pytest.raises(StoreUnavailable):
            await store.counts()
        await store.close()


async def test_hub_takes_a_few_connections_however_many_listen(shared_server: RedisServer, raw: redis.Redis) -> None:
    log = RedisEventLog(shared_server.url, timeout=PATIENCE)
    hub = Hub(log)
    before = raw.info("clients")["connected_clients"]
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(hub.subscribe("t", after=0)) for _ in range(50)]
        for number, stream in enumerate(streams):
            if not number:
                await log.append("t", "tick", b"")
            assert (await anext(stream)).kind == "tick"
        assert raw.info("clients")["connected_clients"] - before <= 4
    await log.close()

    async def gone() -> bool:
        return int(raw.info("clients")["connected_clients"]) <= int(before)

    await until(gone)


@pytest.mark.parametrize("interval", [0, 17.0])
async def test_health_check_interval_reaches_the_connections(shared_server: RedisServer, interval: float) -> None:
    client = RedisClient(shared_server.url, timeout=PATIENCE, max_value_bytes=1000, health_check_interval=interval)
    pool: Any = client.get().connection_pool
    assert pool.make_connection().health_check_interval == interval
    await client.close()


async def test_connections_never_wait_long_and_never_retry() -> None:
    client = RedisClient("rediss://somewhere:7000/1", timeout=0.1, max_value_bytes=1000)
    pool: Any = client.get().connection_pool
    settings = pool.connection_kwargs
    assert settings["retry"].get_retries() == 0
    assert [settings["socket_timeout"], settings["socket_connect_timeout"], pool.timeout] == [0.1, 0.1, 0.05]
    assert pool.max_connections == 16
    assert settings["socket_keepalive"]
    assert (settings["host"], settings["port"], settings["db"]) == ("somewhere", 7000, 1)
    await client.close()
