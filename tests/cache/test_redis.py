"""The Redis tier against a real server that is well."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import random
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import redis
import structlog
import trustme

from cache.memory import Stats
from cache.redis import RedisTier
from cache.tiered import build_cache
from harness.servers import RedisServer, redis_server
from serving.errors import InvalidRedisUrl
from serving.storage.seal import Seal
from tests.cache.conftest import PATIENCE, listening

pytestmark = pytest.mark.anyio

PREFIX = b"forkserve:"


async def test_values_are_kept_under_the_prefix_for_their_time(shared_server: RedisServer, raw: redis.Redis) -> None:
    tier = RedisTier(shared_server.url, ttl_seconds=0.75 * 3600, timeout=PATIENCE)
    await tier.put_many({b"a": b"1"})
    await tier.close()
    assert raw.keys() == [b"forkserve:a"]
    assert 2600_000 < int(str(raw.pttl("forkserve:a"))) <= 2700_000


async def test_a_lookup_is_one_command_and_so_is_each_write(tier: RedisTier, raw: redis.Redis) -> None:
    keys = [b"%d" % number for number in range(50)]
    await tier.get_many(keys)
    raw.config_resetstat()
    await tier.get_many(keys)
    await tier.put_many(dict.fromkeys(keys, b"value"))
    commands = raw.info("commandstats")
    assert isinstance(commands, dict)
    calls = {name.removeprefix("cmdstat_"): value["calls"] for name, value in commands.items() if value["calls"]}
    assert {name: count for name, count in calls.items() if name in {"mget", "get", "set", "ping", "select"}} == {
        "mget": 1,
        "set": 50,
    }


async def test_concurrent_lookups_share_at_most_sixteen_connections(tier: RedisTier, raw: redis.Redis) -> None:
    await tier.put_many({b"a": b"1"})
    for _ in range(5):
        assert await asyncio.gather(*[tier.get_many([b"a"]) for _ in range(100)]) == [[b"1"]] * 100
    assert len(raw.client_list()) <= 16 + 1


async def test_nothing_is_connected_before_the_first_call(shared_server: RedisServer, raw: redis.Redis) -> None:
    before = len(raw.client_list())
    cache = build_cache(max_items=10, max_bytes=1 << 20, ttl_seconds=60, redis_url=shared_server.url)
    assert len(raw.client_list()) == before
    await cache.close()


def seal(key: bytes, value: bytes) -> bytes:
    return Seal().close(PREFIX + key, value)


@pytest.mark.parametrize(
    "planted",
    [
        pickle.dumps({"rows": [1]}),
        b"\x80\x04\x95",
        json.dumps({"label": "yes"}).encode(),
        b"",
        seal(b"key", b"value")[:-1],
        seal(b"other key", b"value"),
        b"\x01" + seal(b"key", b"value")[1:],
        b"x" * 100_000,
    ],
    ids=["pickle", "half a pickle", "JSON", "empty", "truncated", "of another key", "other version", "long"],
)
async def test_value_that_this_version_did_not_write_is_a_miss_and_counted(
    shared_server: RedisServer, raw: redis.Redis, planted: bytes
) -> None:
    stats = Stats()
    tier = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE, stats=stats)
    await tier.put_many({b"good": b"value"})
    raw.set(PREFIX + b"key", planted)
    assert await tier.get_many([b"key", b"good"]) == [None, b"value"]
    assert (stats.malformed, stats.errors, tier.state) == (1, 0, "closed")
    await tier.put_many({b"key": b"value"})
    assert await tier.get_many([b"key"]) == [b"value"]
    await tier.close()


async def test_key_of_another_type_is_a_miss_and_healed_by_the_next_write(tier: RedisTier, raw: redis.Redis) -> None:
    raw.rpush(PREFIX + b"key", "a", "list")
    await tier.put_many({b"good": b"value"})
    assert await tier.get_many([b"key", b"good"]) == [None, b"value"]
    await tier.put_many({b"key": b"value"})
    assert await tier.get_many([b"key"]) == [b"value"]


async def test_huge_value_is_not_even_read(
    shared_server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.redis.MAX_VALUE_BYTES", 1000)
    stats = Stats()
    tier = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE, stats=stats)
    raw.setrange(PREFIX + b"key", 256 << 20, b"x")
    raw.config_resetstat()
    for _ in range(5):
        assert await tier.get_many([b"key"]) == [None]
    assert (stats.malformed, stats.errors, tier.state) == (5, 0, "closed")
    await tier.put_many({b"key": bytes(1000)})
    assert await tier.get_many([b"key"]) == [bytes(1000)], "the next write heals it"
    await tier.close()


async def test_value_longer_than_is_read_is_not_written(
    shared_server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.redis.MAX_VALUE_BYTES", 1000)
    stats = Stats()
    tier = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE, stats=stats)
    await tier.put_many({b"long": bytes(1001), b"short": bytes(1000)})
    assert await tier.get_many([b"long", b"short"]) == [None, bytes(1000)]
    assert stats.write_dropped == 1
    await tier.close()


async def test_cancelled_lookups_neither_leak_connections_nor_mix_up_answers(
    shared_server: RedisServer, raw: redis.Redis
) -> None:
    stats = Stats()
    tier = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE, stats=stats)
    numbers = random.Random(1)
    await tier.put_many({b"%d" % number: b"value of %d" % number for number in range(64)})

    async def look_up(number: int) -> None:
        assert await tier.get_many([b"%d" % number]) == [b"value of %d" % number]

    for _ in range(60):
        tasks = [asyncio.create_task(look_up(number)) for number in range(16)]
        for _ in range(numbers.randrange(12)):
            await asyncio.sleep(0)
        for task in numbers.sample(tasks, 8):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    assert await asyncio.gather(*[tier.get_many([b"7"]) for _ in range(16)]) == [[b"value of 7"]] * 16
    assert (stats.malformed, stats.errors, tier.state) == (0, 0, "closed")
    assert len(raw.client_list()) <= 16 + 1
    await tier.close()


def test_forked_worker_does_not_use_the_connections_of_its_parent(shared_server: RedisServer, raw: redis.Redis) -> None:
    tier = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE)

    async def work_in_the_child() -> None:
        warnings.simplefilter("ignore")  # as errors they would stop redis-py from closing what is collected
        assert await tier.get_many([b"parent"]) == [b"1"]
        gc.collect()
        await tier.put_many({b"child": b"2"})
        await tier.close()

    with asyncio.Runner() as parent:
        parent.run(tier.put_many({b"parent": b"1"}))
        connections = len(raw.client_list())
        process = os.fork()
        if process == 0:
            status = 1
            try:
                asyncio.run(work_in_the_child())
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        assert parent.run(tier.get_many([b"parent", b"child"])) == [b"1", b"2"]
        assert len(raw.client_list()) == connections, "the parent's connection is still the one it had"
        parent.run(tier.close())


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "127.0.0.1:6379",
        "redis://:hush/hush@127.0.0.1:6379/0",
        "redis://:hush@127.0.0.1:port",
        "redis://:hush@127.0.0.1?colour=blue",
        "redis://:hush@127.0.0.1?db=hush",
    ],
)
async def test_unusable_url_is_refused_at_once_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidRedisUrl) as refusal:
        RedisTier(url, ttl_seconds=60, timeout=PATIENCE)
    assert "hush" not in str(refusal.value)
    assert refusal.value.__cause__ is None


async def test_url_says_where_but_not_how(shared_server: RedisServer, raw: redis.Redis) -> None:
    tier = RedisTier(
        shared_server.url + "?protocol=3&socket_timeout=60&max_connections=1", ttl_seconds=60, timeout=PATIENCE
    )
    await tier.put_many({b"a": b"1"})
    assert await tier.get_many([b"a"]) == [b"1"]
    (client,) = [client for client in raw.client_list() if client["cmd"] == "mget"]
    assert client["resp"] == "2"
    await tier.close()


async def test_password_and_database_of_the_url_are_used_and_never_logged(own_server: RedisServer) -> None:
    with redis.Redis(port=own_server.port) as client, structlog.testing.capture_logs() as logs:
        client.config_set("requirepass", "hush/hush")
        url = own_server.url.replace("redis://", "redis://:hush%2Fhush@").replace("/0", "/3")
        tier = RedisTier(url, ttl_seconds=60, timeout=PATIENCE)
        await tier.put_many({b"a": b"1"})
        assert await tier.get_many([b"a"]) == [b"1"]
        keyspace = client.info("keyspace")
        wrong = RedisTier(own_server.url.replace("redis://", "redis://:hush-hush@"), ttl_seconds=60, timeout=PATIENCE)
        for _ in range(5):
            await wrong.get_many([b"a"])
    assert isinstance(keyspace, dict)
    assert list(keyspace) == ["db3"]
    assert [line["event"] for line in logs] == [
        "Redis connection established",
        "Redis is unavailable; continuing without it",
    ]
    assert "hush" not in str(logs)
    await tier.close()
    await wrong.close()


@asynccontextmanager
async def tls_in_front_of(port: int, certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """A TLS port that passes everything on, because not every redis-server is built with TLS."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        finally:
            inner_writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    async with listening(serve, context) as tls_port:
        yield tls_port


async def test_rediss_speaks_tls_and_checks_the_certificate(
    shared_server: RedisServer, raw: redis.Redis, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stats = Stats()
    async with tls_in_front_of(shared_server.port, authority.issue_cert("127.0.0.1")) as port:
        trusting = RedisTier(
            f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}", ttl_seconds=60, timeout=PATIENCE
        )
        await trusting.put_many({b"a": b"1"})
        assert await trusting.get_many([b"a"]) == [b"1"]
        await trusting.close()
        wary = RedisTier(f"rediss://127.0.0.1:{port}/0", ttl_seconds=60, timeout=PATIENCE, stats=stats)
        assert await wary.get_many([b"a"]) == [None]
        assert stats.errors == 1
        await wary.close()


async def test_unix_socket_works_too(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server("--unixsocket", str(path)):
        tier = RedisTier(f"unix://{path}", ttl_seconds=60, timeout=PATIENCE)
        await tier.put_many({b"a": b"1"})
        assert await tier.get_many([b"a"]) == [b"1"]
        await tier.close()


async def test_cache_without_a_url_is_memory_alone_and_says_so() -> None:
    with structlog.testing.capture_logs() as logs:
        cache = build_cache(max_items=10, max_bytes=1 << 20, ttl_seconds=60)
    assert [line["event"] for line in logs] == ["Redis caching disabled"]
    assert cache.redis_state == "disabled"


@pytest.mark.usefixtures("patient")
async def test_cache_with_a_url_fills_both_tiers(
    shared_server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.tiered.RedisTier", partial(RedisTier, timeout=PATIENCE))
    one, other = [
        build_cache(max_items=10, max_bytes=1 << 20, ttl_seconds=60, redis_url=shared_server.url) for _ in range(2)
    ]
    one.keep({b"a": b"A"})
    await one.close()
    assert await other.find_remotely([b"a"]) == {b"a": (b"A", "hit-redis")}
    assert other.find([b"a"]) == [b"A"]
    assert (other.stats.items, other.redis_state) == (1, "closed")
    await other.close()
