"""A good request to the wine model, and ways to spoil it."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Mapping

from harness.wire import request
from serving.predict.pieces import Turns

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PATH = "/v1/models/wine:predict"
ROW = (
    b"13.2",
    b"1.78",
    b"2.14",
    b"11.2",
    b"100",
    b"2.65",
    b"2.76",
    b"0.26",
    b"1.28",
    b"4.38",
    b"1.05",
    b"3.4",
    b"1050",
)
PACK: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}
"""Content codings of bodies."""
UNPACK: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "zstd": zstd.decompress}
"""Content codings of answers."""
MARKER = "Zq7marker"
"""Stands in hostile input, and never in an answer."""


def body(value: bytes = ROW[0]) -> bytes:
    """One positional instance, with this JSON as its first value."""
    return b'{"instances":[[' + b",".join([value, *ROW[1:]]) + b"]]}"


GOOD = request(PATH, body())
GOOD_ROW = b"[" + b",".join(ROW) + b"]"

COSTLY_BYTES = 4 * 1024 * 1024


def fill(element: bytes, start: bytes = b'{"instances":[', end: bytes = b"]}") -> bytes:
    """A body of COSTLY_BYTES, full of one element."""
    return start + b",".join([element] * ((COSTLY_BYTES - len(start) - len(end)) // (len(element) + 1))) + end


class CountedTurns(Turns):
    """Turns that are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = 0

    async def pause(self) -> None:
        self.pauses += 1
        await super().pause()


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A request whose body comes in chunks, ended with `end`."""
    encoded = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request(PATH, content_length=None, transfer_encoding="chunked") + encoded + end
