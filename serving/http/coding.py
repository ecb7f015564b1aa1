"""Content codings (RFC 9110, 8.4): answers are compressed with gzip and zstd, bodies may come in these and deflate.

A body of some kilobytes may inflate to a thousand times as much. So it is inflated in pieces, each bounded before it is
made, and on a thread as soon as one piece is not enough.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from starlette.types import Message

from serving.errors import NotJSON

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 64 * 1024
"""Bytes to compress or to inflate at once on the event loop: a tenth of a millisecond to one."""

THREAD_BYTES = 512 * 1024
"""Bytes to inflate at once on a thread; a hand-over takes as long as 20 KB."""

INPUT_BYTES = 16 * 1024
"""Bytes of a compressed body to look at together, because zlib copies those that it has not read yet."""

MAX_MEMBERS = 4096
"""Compressed streams in one body, one after the other: each needs its own 32 KB while it is read."""

MAX_WINDOW_LOG = 23
"""The largest window of zstd, 8 MB, as RFC 9659 has it; a frame may ask for 2 GB."""


class Decompressor(Protocol):
    """Inflates one stream, as those of `compression.zstd` and `bz2` do."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Inflated:
    """Inflates a stream of zlib's or gzip's, and keeps what it has not read yet."""

    def __init__(self, wbits: int) -> None:
        self._stream = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        self.needs_input = not self._stream.unconsumed_tail and len(found) < max_length
        return found


def _gzip() -> Decompressor:
    return Inflated(31)


def _zstd() -> Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})


DECOMPRESSORS: Mapping[bytes, Callable[[], Decompressor]] = {
    b"gzip": _gzip,
    b"x-gzip": _gzip,
    b"zstd": _zstd,
    b"deflate": lambda: Inflated(15),
}
"""By the names of codings that a body may have."""

TAKEN = b"gzip, zstd, deflate"
"""The Accept-Encoding of the service itself."""


async def inflate(pieces: AsyncIterator[bytes], coding: bytes) -> AsyncIterator[bytes]:
    """What the pieces of a compressed body hold, in pieces of at most THREAD_BYTES. Raises NotJSON if they are damaged.

    Whoever iterates stops when it has had enough: nothing is inflated ahead.
    """
    stream, members = DECOMPRESSORS[coding](), 1
    async for piece in pieces:
        for start in range(0, len(piece), INPUT_BYTES):
            data, most = piece[start : start + INPUT_BYTES], PIECE_BYTES
            while data or not (stream.eof or stream.needs_input):
                if stream.eof:
                    stream, members = DECOMPRESSORS[coding](), members + 1
                    if members > MAX_MEMBERS:
                        raise NotJSON(f"the body has more than {MAX_MEMBERS} compressed streams")
                try:
                    if most == PIECE_BYTES:
                        found = stream.decompress(data, most)
                    else:
                        found = await asyncio.to_thread(stream.decompress, data, most)
                except (zlib.error, zstd.ZstdError):
                    raise NotJSON(f"the body is not valid {coding.decode()}") from None
                data = stream.unused_data if stream.eof else b""
                if found:
                    most = THREAD_BYTES
                    yield found
    if not stream.eof:
        raise NotJSON(f"the body ends before its {coding.decode()} does")


class Compressor:
    """Compresses an answer, part by part, with gzip or zstd."""

    def __init__(self, coding: bytes) -> None:
        # level 1: a third of the time of the defaults, for a few more bytes
        self._stream = zstd.ZstdCompressor(level=1) if coding == b"zstd" else zlib.compressobj(level=1, wbits=31)

    async def compress(self, message: Message) -> None:
        """Replace the body of a part."""
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if len(body) > PIECE_BYTES:
            message["body"] = await asyncio.to_thread(self._compress, body, is_last)
        else:
            message["body"] = self._compress(body, is_last)

    def _compress(self, body: bytes, is_last: bool) -> bytes:  # noqa: FBT001 - called on a thread
        done = self._stream.compress(body)
        return done + self._stream.flush() if is_last else done


def compress_well(body: bytes, coding: bytes) -> bytes:
    """Compress what is sent many times."""
    return zstd.compress(body, level=10) if coding == b"zstd" else zlib.compress(body, wbits=31)
