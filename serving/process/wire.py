"""How a call and its outcome cross a socket: two lengths, a head in JSON, then raw bytes. Never pickle."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Rows: TypeAlias = npt.NDArray[np.float64]

LENGTHS = struct.Struct("<IQ")
"""Of the head and of the body."""


class Call(msgspec.Struct, frozen=True):
    """Which function is asked; the rows are the body."""

    key: str
    shape: tuple[int, int]
    parameters: Mapping[str, Any]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a call; the result is the body."""

    status: Literal["done", "failed", "out of memory"]
    error: str = ""
    traceback: str = ""


def pack(head: Call | Outcome, body: bytes) -> bytes:
    """A whole frame."""
    encoded = msgspec.json.encode(head)
    return b"".join((LENGTHS.pack(len(encoded), len(body)), encoded, body))


def receive_call(sock: socket.socket) -> tuple[Call, Rows]:
    """Wait for a call, in the process that will run it. Raises EOFError when there will be none."""
    head, body = LENGTHS.unpack(_receive(sock, LENGTHS.size))
    call = msgspec.json.decode(_receive(sock, head), type=Call)
    return call, np.frombuffer(_receive(sock, body), np.float64).reshape(call.shape)


def _receive(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = sock.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


async def send_call(sock: socket.socket, frame: bytes) -> tuple[Outcome, int]:
    """Send a call, wait for its outcome and for the size of its result, which is still to be received.

    Raises EOFError or OSError when the other process is gone.
    """
    await asyncio.get_running_loop().sock_sendall(sock, frame)
    head, body = LENGTHS.unpack(await receive(sock, LENGTHS.size))
    return msgspec.json.decode(await receive(sock, head), type=Outcome), body


async def receive(sock: socket.socket, size: int) -> bytearray:
    """Exactly `size` bytes, on the event loop. Raises EOFError."""
    loop = asyncio.get_running_loop()
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = await loop.sock_recv_into(sock, rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data
