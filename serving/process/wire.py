"""The frames in which calls and their outcomes cross a socket: two lengths, a head, raw bytes. Never pickle."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal

import msgspec

LENGTHS = struct.Struct("<IQ")
"""Bytes of the head and of the body."""


class CallOutcome(msgspec.Struct, frozen=True):
    """How a call ended: the head of the frame whose body is the result."""

    status: Literal["done", "failed", "out of memory"]
    error: str = ""
    traceback: str = ""


def pack_call(name: str, payload: bytes) -> bytes:
    """A frame for the process that runs the function `name`."""
    return _pack(name.encode(), payload)


def pack_outcome(outcome: CallOutcome, result: bytes) -> bytes:
    """A frame for the process that made the call."""
    return _pack(msgspec.json.encode(outcome), result)


def _pack(head: bytes, body: bytes) -> bytes:
    return b"".join((LENGTHS.pack(len(head), len(body)), head, body))


def receive_call(sock: socket.socket) -> tuple[str, bytes]:
    """Wait for a call: the name of a function and its payload. Raises EOFError when the caller is gone."""
    head, body = LENGTHS.unpack(_receive(sock, LENGTHS.size))
    return _receive(sock, head).decode(), bytes(_receive(sock, body))


def _receive(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = sock.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


async def send_call(sock: socket.socket, frame: bytes) -> tuple[CallOutcome, int]:
    """Send a call and wait for its outcome; returns that and the size of the result, which is still to be received.

    Raises EOFError or OSError when the other process is gone.
    """
    await asyncio.get_running_loop().sock_sendall(sock, frame)
    head, body = LENGTHS.unpack(await receive(sock, LENGTHS.size))
    return msgspec.json.decode(await receive(sock, head), type=CallOutcome), body


async def receive(sock: socket.socket, size: int) -> bytearray:
    """Receive exactly `size` bytes on the event loop. Raises EOFError."""
    loop = asyncio.get_running_loop()
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = await loop.sock_recv_into(sock, rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data
