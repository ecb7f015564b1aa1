"""Calls to other servers, tested against a server in this process that misbehaves in many ways."""

from __future__ import annotations

import asyncio
import gzip
from functools import partial

import pytest

from harness.calls import CONNECTIONS, leak_of_ours, leak_of_plain
from harness.stub import reply, serving
from serving.errors import OutboundFailed
from serving.storage.guard import Breaker
from serving.storage.http import Call, Outbound
from tests.cache.conftest import turns

pytestmark = pytest.mark.anyio


def quick(**options: float) -> Outbound:
    return Outbound(**({"first_wait": 0.001} | options))  # type: ignore[arg-type]


async def test_cancelled_calls_leave_nothing_behind() -> None:
    done, connections, calls = await leak_of_ours(1000)
    assert done >= 500
    assert (connections <= CONNECTIONS, calls) == (True, 0)


async def test_a_client_that_loses_connections_is_found_out() -> None:
    _, _, calls = await leak_of_plain(1000)
    assert calls > 0


async def test_a_reply_comes_back_whole_over_a_connection_that_is_kept() -> None:
    async with serving(lambda number, _head: reply(200, b"x" * number, etag="a")) as stub:
        outbound = quick()
        replies = [await outbound.fetch(Call(stub.url, headers={"X-Mine": "1"})) for _ in range(3)]
        assert [(one.status, len(one.body)) for one in replies] == [(200, 0), (200, 1), (200, 2)]
        assert replies[0].headers["etag"] == "a"
        assert len(stub.connections) == 1
        assert b"x-mine: 1" in stub.requests[0].lower()
        await outbound.close()
        await turns()
        assert len(stub.connections) == 0


@pytest.mark.parametrize("status", [204, 304, 400, 404])
async def test_a_status_is_the_callers_affair(status: int) -> None:
    async with serving(lambda _number, _head: reply(status)) as stub:
        outbound = quick()
        assert (await outbound.fetch(Call(stub.url))).status == status
        await outbound.close()


async def test_nobody_is_followed_to_another_address() -> None:
    async with serving(lambda _number, _head: reply(302, location="http://127.0.0.1:1/")) as stub:
        outbound = quick()
        assert (await outbound.fetch(Call(stub.url))).status == 302
        assert len(stub.requests) == 1
        await outbound.close()


async def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(lambda _number, _head: reply(200)) as stub:
        outbound = quick()
        assert (await outbound.fetch(Call(stub.url))).status == 200
        await outbound.close()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/", "unix:/x", "//x", "x", "http://", "http://[", "\0"])
async def test_other_addresses_are_not_called(url: str) -> None:
    with pytest.raises(OutboundFailed):
        await quick().fetch(Call(url))


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b"x" * 2000),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"7d0\r\n" + b"x" * 2000 + b"\r\n",
        reply(200, gzip.compress(bytes(10**6)), content_encoding="gzip"),
    ],
    ids=["long", "without end", "compressed"],
)
async def test_a_reply_that_is_too_much_is_not_read(answer: bytes) -> None:
    async with serving(lambda _number, _head: answer) as stub:
        outbound = quick()
        with pytest.raises(OutboundFailed):
            await outbound.fetch(Call(stub.url, max_bytes=1000, repeatable=True))
        assert len(stub.requests) == 1, "it would be too much again"
        await outbound.close()


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx", b"no HTTP\r\n\r\n"]
)
async def test_a_server_that_hangs_or_babbles_is_given_up(answer: bytes | None) -> None:
    async with serving(lambda _number, _head: answer) as stub:
        outbound = quick(timeout=0.05)
        with pytest.raises(OutboundFailed) as failure:
            await outbound.fetch(Call(stub.url))
        assert "secret-path" not in str(failure.value)
        await outbound.close()


async def test_a_reply_that_drips_is_given_up_in_time() -> None:
    async with serving(lambda _number, _head: b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n") as stub:
        outbound = quick(timeout=5.0, deadline=0.2)

        async def drip() -> None:
            while True:
                for transport in stub.connections:
                    transport.write(b"x")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        with pytest.raises(OutboundFailed, match="in time"):
            await outbound.fetch(Call(stub.url))
        await outbound.settle()
        assert outbound.calls == 0, "and by nobody else waited for"
        dripping.cancel()
        await outbound.close()


async def test_only_what_may_be_repeated_is() -> None:
    async with serving(lambda number, _head: reply(200 if number == 2 else 503)) as stub:
        outbound = quick()
        assert (await outbound.fetch(Call(stub.url, repeatable=True))).status == 200
        assert len(stub.requests) == 3
        await outbound.close()
    async with serving(lambda _number, _head: reply(503)) as stub:
        outbound = quick()
        with pytest.raises(OutboundFailed, match="answers 503"):
            await outbound.fetch(Call(stub.url, "POST", content=b"{}"))
        assert len(stub.requests) == 1
        await outbound.close()


async def test_a_host_that_fails_is_left_alone_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.storage.guard.Breaker", partial(Breaker, cool_down=60.0))
    async with serving(lambda _number, _head: reply(500)) as broken, serving(lambda *_: reply(200)) as well:
        outbound = Outbound()
        for _ in range(10):
            with pytest.raises(OutboundFailed):
                await outbound.fetch(Call(broken.url))
        assert len(broken.requests) == 3
        assert (await outbound.fetch(Call(well.url))).status == 200
        await outbound.close()


async def test_so_many_calls_at_once_and_no_more() -> None:
    async with serving(lambda _number, _head: None) as stub:
        outbound = quick(max_calls=2, timeout=0.2)
        calls = [asyncio.create_task(outbound.fetch(Call(stub.url))) for _ in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum("too many" in str(outcome) for outcome in outcomes) == 1
        await outbound.close()
