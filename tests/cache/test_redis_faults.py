"""The Redis tier against servers that are not well: it answers None, soon, and comes back by itself.

Times are bounded coarsely: redis-py as it comes takes 59 s where these tests allow 6; the timeout is four times
the usual one, so that a busy machine does not look like a hung server.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import redis
import structlog

from cache.memory import MemoryTier, Stats
from cache.redis import RedisTier
from cache.tiered import TieredCache
from harness.servers import RedisServer, free_port, redis_server
from serving.storage.guard import Breaker
from tests.cache.conftest import PATIENCE, Clock, listening, turns

pytestmark = pytest.mark.anyio

SOON = 6.0


class Patient:
    """A tier whose breaker follows the test's clock, and all that can be seen of it."""

    def __init__(self, url: str, clock: Clock, timeout: float = 1.0) -> None:
        """`timeout` is what a server that hangs costs."""
        self.stats = Stats()
        breaker = Breaker(failures=3, cool_down=1.0, clock=clock, jitter=lambda: 1.0)
        self.tier = RedisTier(url, ttl_seconds=60, timeout=timeout, breaker=breaker, stats=self.stats)

    def state(self) -> str:
        return self.tier.state


@pytest.fixture
async def patient(own_server: RedisServer, clock: Clock) -> AsyncIterator[Patient]:
    patient = Patient(own_server.url, clock)
    yield patient
    await patient.tier.close()


async def expect_misses(tier: RedisTier, calls: int = 20) -> None:
    """All at once and one after the other, and all soon."""
    async with asyncio.timeout(SOON):
        assert await asyncio.gather(*[tier.get_many([b"a", b"b"]) for _ in range(calls)]) == [[None, None]] * calls
        for _ in range(calls):
            assert await tier.get_many([b"a"]) == [None]


@contextmanager
def silent_port(*, accepting: bool) -> Iterator[int]:
    """A port that takes connections and never answers, or does not even take them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128 if accepting else 0)
        clients: list[socket.socket] = []
        try:
            while not accepting and len(clients) < 8:
                client = socket.socket()
                clients.append(client)
                client.settimeout(0)
                client.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]
        finally:
            for client in clients:
                client.close()


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """A server that says the same to whatever it is sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(reply)
            await writer.drain()

    async with listening(answer) as port:
        yield f"redis://127.0.0.1:{port}"


async def test_hung_server_costs_a_moment_and_comes_back_by_itself(
    own_server: RedisServer, patient: Patient, clock: Clock
) -> None:
    with structlog.testing.capture_logs() as logs:
        await patient.tier.put_many({b"kept": b"value"})
        own_server.pause()
        await expect_misses(patient.tier)
        assert patient.state() == "open"
        own_server.resume()
        clock.advance(1.0)
        assert await patient.tier.get_many([b"kept"]) == [b"value"]
    assert patient.state() == "closed"
    assert [line["event"] for line in logs] == [
        "Redis connection established",
        "Redis is unavailable; continuing without it",
        "Redis connection established",
    ]


async def test_one_caller_of_many_pays_for_the_probe(own_server: RedisServer, patient: Patient, clock: Clock) -> None:
    own_server.pause()
    await expect_misses(patient.tier)
    before = patient.stats.errors
    for probes in range(1, 4):
        clock.advance(30)
        await asyncio.gather(*[patient.tier.get_many([b"a"]) for _ in range(100)])
        assert patient.stats.errors == before + probes


async def test_cancelled_probe_does_not_keep_it_closed_off(
    own_server: RedisServer, patient: Patient, clock: Clock
) -> None:
    await patient.tier.put_many({b"kept": b"value"})
    own_server.pause()
    await expect_misses(patient.tier)
    clock.advance(1.0)
    probe = asyncio.create_task(patient.tier.get_many([b"kept"]))
    await turns()
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    own_server.resume()
    assert await patient.tier.get_many([b"kept"]) == [b"value"]


async def test_killed_server_costs_a_moment_and_its_successor_is_used(
    own_server: RedisServer, patient: Patient, clock: Clock
) -> None:
    await patient.tier.put_many({b"a": b"1"})
    own_server.kill()
    await expect_misses(patient.tier)
    assert patient.state() == "open"
    with redis_server(port=own_server.port):
        clock.advance(1.0)
        await patient.tier.put_many({b"a": b"2"})
        assert await patient.tier.get_many([b"a"]) == [b"2"]


async def test_restarted_server_is_used_at_once_when_nobody_asked_meanwhile(
    own_server: RedisServer, patient: Patient
) -> None:
    await patient.tier.put_many({b"a": b"1"})
    own_server.kill()
    with redis_server(port=own_server.port):
        await turns()
        await patient.tier.put_many({b"a": b"2"})
        assert await patient.tier.get_many([b"a"]) == [b"2"]
    assert patient.stats.errors == 0


async def test_refused_connection_is_a_miss(clock: Clock) -> None:
    patient = Patient(f"redis://127.0.0.1:{free_port()}", clock)
    await expect_misses(patient.tier)
    assert patient.state() == "open"
    await patient.tier.close()


@pytest.mark.parametrize("accepting", [True, False])
async def test_silent_port_is_a_miss(clock: Clock, *, accepting: bool) -> None:
    with silent_port(accepting=accepting) as port:
        patient = Patient(f"redis://127.0.0.1:{port}", clock)
        await expect_misses(patient.tier)
        assert patient.state() == "open"
        await patient.tier.close()


async def test_name_that_does_not_resolve_is_a_miss(clock: Clock) -> None:
    patient = Patient("redis://no-such-host.invalid", clock)
    await expect_misses(patient.tier)
    await patient.tier.close()


async def test_server_that_drips_is_given_up(clock: Clock) -> None:
    """Each reply is in time for the socket's timeout, all of them take twenty seconds: only the deadline ends it."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"+PONG\r\n")
        while not reader.at_eof():
            writer.write(b"+OK\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with listening(drip) as port:
        patient = Patient(f"redis://127.0.0.1:{port}", clock)
        async with asyncio.timeout(SOON):
            await patient.tier.put_many({b"%d" % number: b"value" for number in range(1000)})
        assert patient.stats.write_dropped == 1000
        await patient.tier.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*x\r\n",
        b"$-2\r\n",
        b"x" * 200_000,
        b"*1\r\n" * 5_000,
        b":1\r\n",
        b"$5\r\nhello\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"*2\r\n:1\r\n*0\r\n",
        b"+PONG\r\n+PONG\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-ERR max number of clients reached\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-MOVED 3999 127.0.0.1:6381\r\n",
    ],
)
async def test_server_that_talks_nonsense_is_a_miss_and_a_skipped_write(clock: Clock, reply: bytes) -> None:
    async with answering(reply) as url:
        patient = Patient(url, clock)
        await expect_misses(patient.tier)
        await patient.tier.put_many({b"a": b"1"})
        assert patient.stats.errors + patient.stats.malformed > 0
        await patient.tier.close()


async def test_loading_server_is_no_outage(clock: Clock) -> None:
    async with answering(b"-LOADING Redis is loading the dataset in memory\r\n") as url:
        patient = Patient(url, clock, PATIENCE)
        await expect_misses(patient.tier)
        await patient.tier.put_many({b"a": b"1", b"b": b"2"})
        assert (patient.state(), patient.stats.write_dropped) == ("closed", 2)
        await patient.tier.close()


async def test_full_server_is_no_outage(clock: Clock) -> None:
    with redis_server("--maxmemory-policy", "noeviction") as server, redis.Redis(port=server.port) as client:
        patient = Patient(server.url, clock, PATIENCE)
        await patient.tier.put_many({b"kept": b"value"})
        client.config_set("maxmemory", "1")
        for _ in range(10):
            await patient.tier.put_many({b"a": b"1", b"b": b"2"})
        assert await patient.tier.get_many([b"kept", b"a"]) == [b"value", None]
        assert (patient.state(), patient.stats.write_dropped) == ("closed", 20)
        client.config_set("maxmemory", "0")
        await patient.tier.put_many({b"a": b"1"})
        assert await patient.tier.get_many([b"a"]) == [b"1"]
        await patient.tier.close()


async def test_read_only_replica_is_no_outage(clock: Clock) -> None:
    with redis_server() as server, redis.Redis(port=server.port) as client:
        patient = Patient(server.url, clock, PATIENCE)
        await patient.tier.put_many({b"kept": b"value"})
        client.replicaof("127.0.0.1", str(free_port()))
        for _ in range(10):
            await patient.tier.put_many({b"a": b"1"})
        assert await patient.tier.get_many([b"kept", b"a"]) == [b"value", None]
        assert (patient.state(), patient.stats.write_dropped) == ("closed", 10)
        await patient.tier.close()


async def test_user_without_permission_gets_misses(clock: Clock) -> None:
    with redis_server() as server, redis.Redis(port=server.port) as client:
        client.acl_setuser("reader", enabled=True, passwords=["+hush"], commands=["+mget"], keys=["other:*"])
        patient = Patient(server.url.replace("redis://", "redis://reader:hush@"), clock, PATIENCE)
        await expect_misses(patient.tier)
        await patient.tier.put_many({b"a": b"1"})
        assert (patient.state(), patient.stats.write_dropped) == ("closed", 1)
        await patient.tier.close()


async def test_what_is_refused_does_not_take_the_rest_with_it(clock: Clock) -> None:
    with redis_server() as server, redis.Redis(port=server.port) as client:
        client.acl_setuser("writer", enabled=True, passwords=["+hush"], commands=["+mget", "+set"], keys=["*:a", "*:c"])
        patient = Patient(server.url.replace("redis://", "redis://writer:hush@"), clock, PATIENCE)
        await patient.tier.put_many({b"b": b"2", b"a": b"1", b"c": b"3"})
        assert await patient.tier.get_many([b"a", b"c"]) == [b"1", b"3"]
        assert patient.stats.write_dropped == 1
        await patient.tier.close()


async def test_outage_is_two_lines_in_the_log_however_many_call(own_server: RedisServer, clock: Clock) -> None:
    patient = Patient(own_server.url.replace("redis://", "redis://:hush@"), clock)
    with redis.Redis(port=own_server.port) as client:
        client.config_set("requirepass", "hush")
    with structlog.testing.capture_logs() as logs:
        own_server.pause()
        for _ in range(3):
            await expect_misses(patient.tier)
            clock.advance(40)
        own_server.resume()
        for _ in range(3):
            await patient.tier.get_many([b"a"])
    assert [line["event"] for line in logs] == [
        "Redis is unavailable; continuing without it",
        "Redis connection established",
    ]
    assert "hush" not in str(logs)
    await patient.tier.close()


async def test_requests_are_answered_while_the_server_hangs(own_server: RedisServer, patient: Patient) -> None:
    stats = patient.stats
    memory = MemoryTier(max_items=1000, max_bytes=1 << 20, ttl_seconds=60, stats=stats)
    cache = TieredCache(memory, patient.tier, stats=stats)

    own_server.pause()
    started = time.monotonic()
    for number in range(200):
        keys = [b"%d" % number, b"%d" % (number - 1)]
        missing = [key for key, value in zip(keys, cache.find(keys), strict=True) if value is None]
        assert await cache.find_remotely(missing) == {}
        cache.keep(dict.fromkeys(missing, b"value"))
        assert cache.find(keys) == [b"value", b"value"]
    await cache.close()
    assert time.monotonic() - started < SOON
    assert cache.redis_state == "open"
    assert stats.write_dropped == 201


async def test_the_breaker_closes_after_an_outage_though_nobody_asks(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.redis.PROBE_SECONDS", 0.01)
    before = asyncio.all_tasks()
    breaker = Breaker(failures=1, cool_down=0.01, max_cool_down=0.02)
    tier = RedisTier(own_server.url, ttl_seconds=60, timeout=0.2, breaker=breaker)
    own_server.pause()
    assert await tier.get_many([b"a"]) == [None]

    def is_well() -> bool:
        return tier.state == "closed"

    assert not is_well()
    own_server.resume()
    async with asyncio.timeout(PATIENCE):
        while not is_well():  # noqa: ASYNC110 - it is the tier that changes it
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    own_server.pause()
    assert await tier.get_many([b"a"]) == [None]
    await tier.close()
    own_server.resume()
    assert asyncio.all_tasks() == before
