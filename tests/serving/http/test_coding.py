"""Content codings: which one a client likes, and bodies that inflate to more than they seem."""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import AsyncIterator

import pytest

from serving.errors import NotJSON
from serving.http.body import Bodies, HeldBody
from serving.http.coding import DECOMPRESSORS, MAX_MEMBERS, Compressor, inflate
from serving.http.negotiation import coding_of
from serving.shared.holdings import Holdings
from tests.attacks.payloads import PACK

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT = b"".join(b"%d," % (number * number) for number in range(50_000))


async def some(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def unpack(coding: bytes, *pieces: bytes) -> bytes:
    async def collect() -> bytes:
        return b"".join([piece async for piece in inflate(some(*pieces), coding)])

    return asyncio.run(collect())


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, b""),
        (b"", b""),
        (b"gzip", b"gzip"),
        (b"X-GZIP", b"gzip"),
        (b"zstd", b"zstd"),
        (b"gzip, deflate, br, zstd", b"zstd"),
        (b"gzip, zstd;q=0.9", b"gzip"),
        (b"gzip;q=0.4, zstd;q=0.5", b"zstd"),
        (b"*", b"zstd"),
        (b"*, zstd;q=0", b"gzip"),
        (b"*;q=0", b""),
        (b"*;q=0, gzip", b"gzip"),
        (b"gzip;q=0, zstd;q=0.0", b""),
        (b"identity", b""),
        (b"identity;q=0", b""),
        (b"identity;q=0, gzip;q=0.1", b"gzip"),
        (b"identity;q=0, *;q=0.1", b"zstd"),
        (b"gzip;q=0.5, identity", b""),
        (b"gzip;q=0.5, identity;q=0.2", b"gzip"),
        (b"gzip;q=2", b""),
        (b"br, deflate", b""),
    ],
)
def test_best_liked_coding_is_found(header: bytes | None, coding: bytes) -> None:
    assert coding_of(header) == coding


@pytest.mark.parametrize("coding", DECOMPRESSORS)
@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_compressed_body_is_read_in_pieces_of_any_size(coding: bytes, size: int) -> None:
    packed = PACK[coding.decode()](CONTENT)
    assert unpack(coding, *(packed[start : start + size] for start in range(0, len(packed), size))) == CONTENT


@pytest.mark.parametrize("coding", DECOMPRESSORS)
def test_streams_one_after_the_other_are_one_body(coding: bytes) -> None:
    first, second = PACK[coding.decode()](b"one,"), PACK[coding.decode()](b"two")
    assert unpack(coding, first + second) == unpack(coding, first, second) == b"one,two"
    with pytest.raises(NotJSON, match="compressed streams"):
        unpack(coding, PACK[coding.decode()](b"") * (MAX_MEMBERS + 1))


@pytest.mark.parametrize("coding", DECOMPRESSORS)
def test_damaged_body_is_refused(coding: bytes) -> None:
    packed = PACK[coding.decode()](CONTENT)
    for broken in (b"", packed[:-9], packed[:100], b"{}", packed + b"{}", CONTENT):
        with pytest.raises(NotJSON, match=coding.decode()):
            unpack(coding, broken)


@pytest.mark.parametrize("coding", DECOMPRESSORS)
def test_nothing_is_inflated_ahead_of_what_is_asked_for(coding: bytes) -> None:
    bomb = PACK[coding.decode()](bytes(1 << 28))

    async def first_pieces() -> int:
        pieces = inflate(some(bomb), coding)
        return sum([len(await anext(pieces)) for _ in range(3)])

    assert asyncio.run(first_pieces()) < 2 << 20


def test_zstd_with_a_window_of_gigabytes_is_refused() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.compression_level: 1}
    stream = zstd.ZstdCompressor(options=options)
    packed = stream.compress(bytes(1 << 20)) + stream.flush()  # whose head does not say how little it holds
    with pytest.raises(NotJSON, match="zstd"):
        unpack(b"zstd", packed)


def test_bytes_of_an_inflated_body_are_counted() -> None:
    counted = Holdings(1)
    bodies = Bodies(counted, 4 << 20)
    messages = iter([{"type": "http.request", "body": gzip.compress(bytes(1 << 20)), "more_body": False}])

    async def receive() -> dict[str, object]:
        return next(messages)

    async def read() -> list[int]:
        body, sizes = HeldBody(bodies, b"client", receive, b"gzip"), []
        while (await body.receive())["more_body"]:
            sizes.append(counted.total())
        body.release()
        return sizes

    assert asyncio.run(read())[-1] == 1 << 20
    assert counted.total() == 0


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"])
def test_answer_in_parts_is_one_stream(coding: bytes) -> None:
    async def compress() -> bytes:
        compressor, packed = Compressor(coding), b""
        for start in range(0, len(CONTENT), 100_000):
            message = {"body": CONTENT[start : start + 100_000], "more_body": start + 100_000 < len(CONTENT)}
            await compressor.compress(message)
            packed += message["body"]  # type: ignore[operator]
        return packed

    assert unpack(coding, asyncio.run(compress())) == CONTENT
