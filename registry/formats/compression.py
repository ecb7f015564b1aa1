"""Compressed bytes as a stream that ends with an error instead of filling memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from registry.errors import CannotRead

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_RATIO = 200
FLOOR_BYTES = 1 << 30
"""A file may decompress to MAX_RATIO times its size, and to this in any case: weights are seldom as regular."""

MAX_LAYERS = 3
"""Compressions inside one another: a joblib file that was compressed, and compressed again by its user."""

TRUNCATED = "is truncated: the file ends in the middle of its content; copy it again"


def open_content(content: bytes) -> BinaryIO:
    """A stream of what `content` holds when it is decompressed; of itself if it is not compressed.

    Reading raises CannotRead for damaged or truncated content, and where the content becomes too large.
    """
    stream: BinaryIO = io.BytesIO(content)
    for _ in range(MAX_LAYERS):
        opener = _opener(_first_bytes(stream))
        if opener is None:
            break
        # buffered, so that small reads are quick; joblib and `_first_bytes` peek into it
        stream = cast("BinaryIO", io.BufferedReader(_Bounded(opener(stream), len(content))))
    return stream


def head_of(content: bytes, size: int) -> bytes:
    """The first bytes of what `content` holds when it is decompressed. Raises CannotRead."""
    return open_content(content).read(size)


def check_size(size: int, compressed: int) -> None:
    """Raise CannotRead if content becomes so large that it was made for that."""
    if size > max(FLOOR_BYTES, MAX_RATIO * compressed):
        raise CannotRead("becomes more than 1 GB and 200 times as large when it is decompressed; refused")


class _Bounded(io.RawIOBase):
    """Reads from a stream that decompresses, up to a limit of bytes."""

    def __init__(self, stream: Any, compressed: int) -> None:
        super().__init__()
        self.stream = stream
        self.compressed = compressed
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self.stream.read(len(buffer))
        except EOFError as error:
            raise CannotRead(TRUNCATED) from error
        except (OSError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
            raise CannotRead(f"is damaged: {error}") from error
        self.size += len(found)
        check_size(self.size, self.compressed)
        buffer[: len(found)] = found
        return len(found)


class _Zlib:
    """Decompresses a zlib stream, as joblib writes it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.decompressor = zlib.decompressobj()

    def read(self, size: int) -> bytes:
        while not self.decompressor.eof:
            given = self.decompressor.unconsumed_tail or self.stream.read(1 << 16)
            if not given:
                raise EOFError
            found = self.decompressor.decompress(given, size)
            if found:
                return found
        return b""


def _lz4(_stream: BinaryIO) -> Any:
    raise CannotRead("is compressed with lz4; write it with another compression, such as joblib.dump(..., compress=3)")


MAGIC: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
    (b"\x5d\0\0", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", zstd.ZstdFile),
    (b"\x04\x22\x4d\x18", _lz4),
    (b"x\x01", _Zlib),
    (b"x\x5e", _Zlib),
    (b"x\x9c", _Zlib),
    (b"x\xda", _Zlib),
)


def _opener(first: bytes) -> Callable[[BinaryIO], Any] | None:
    return next((opener for magic, opener in MAGIC if first.startswith(magic)), None)


def _first_bytes(stream: Any) -> bytes:
    if isinstance(stream, io.BytesIO):
        return bytes(stream.getbuffer()[:8])
    found: bytes = stream.peek(8)[:8]
    return found
