"""Clients that are slow, costly or broken on purpose: what they send, and how."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

import uvloop

from harness.wire import request

ROW = [13.2, 1.78, 2.14, 11.2, 100, 2.65, 2.76, 0.26, 1.28, 4.38, 1.05, 3.4, 1050]
GOOD = json.dumps(ROW).encode()
PREDICT, EXPLAIN, JOBS = "/v1/models/wine:predict", "/v1/models/wine:explain", "/v1/jobs"
CSV = f"{JOBS}?operation=predict&model=wine"
SSE = "text/event-stream"
BYTES = 4 * 1024 * 1024
PACKET_BYTES = 256 * 1024

PATIENCE_SECONDS = 5.0
BETWEEN_BYTES_SECONDS = 0.05

Send = Callable[[str, int, bytes], Awaitable[None]]


@dataclass(frozen=True)
class Attack:
    """One kind of client."""

    send: Send
    """How: connects to a host and a port, and sends the bytes."""
    data: Callable[[], bytes]
    """What: made anew for each connection."""
    clients: int = 8
    """How many come at once."""
    share: float = 1.0
    """How often it comes in a mixture of all kinds, beside the others."""


async def _connect(host: str, port: int, receive_buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connected = socket.socket()
    if receive_buffer:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setblocking(False)  # noqa: FBT003 - the signature is the library's
    await asyncio.get_running_loop().sock_connect(connected, (host, port))
    return await asyncio.open_connection(sock=connected)


async def whole(host: str, port: int, data: bytes) -> None:
    """Send everything, and read until nothing has come for a while after the first bytes of an answer."""
    reader, writer = await _connect(host, port)
    try:
        writer.write(data)
        await asyncio.wait_for(reader.read(1), PATIENCE_SECONDS)
        with suppress(TimeoutError):
            while await asyncio.wait_for(reader.read(PACKET_BYTES), 0.01):
                pass
    finally:
        writer.transport.abort()


async def dribble(host: str, port: int, data: bytes) -> None:
    """Send a byte now and then, for as long as the service takes them."""
    reader, writer = await _connect(host, port)
    ended = asyncio.ensure_future(reader.read(1))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for position in range(len(data)):
                writer.write(data[position : position + 1])
                if (await asyncio.wait((ended,), timeout=BETWEEN_BYTES_SECONDS))[0]:
                    return
    finally:
        ended.cancel()
        writer.transport.abort()


async def rush(host: str, port: int, data: bytes) -> None:
    """Send byte by byte, each in a packet of its own, as fast as they go."""
    reader, writer = await _connect(host, port)
    try:
        for position in range(len(data)):
            writer.write(data[position : position + 1])
            if position % 16 == 0:
                await asyncio.sleep(0)
            if writer.transport.is_closing():
                return
        await asyncio.wait_for(reader.read(1), PATIENCE_SECONDS)
    finally:
        writer.transport.abort()


async def unread(host: str, port: int, data: bytes) -> None:
    """Send everything, and read nothing."""
    _, writer = await _connect(host, port, receive_buffer=4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        writer.write(data)
        await asyncio.sleep(PATIENCE_SECONDS / 2)
    finally:
        writer.transport.abort()


async def reset(host: str, port: int, data: bytes) -> None:
    """Send everything, and reset the connection a moment later."""
    _, writer = await _connect(host, port)
    connected = writer.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.write(data)
    await asyncio.sleep(random.random() * 0.05)
    writer.transport.abort()


async def half_close(host: str, port: int, data: bytes) -> None:
    """Send everything, say that no more comes, and read to the end."""
    reader, writer = await _connect(host, port)
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await reader.read(PACKET_BYTES):
                pass
    finally:
        writer.transport.abort()


@cache
def filled(element: bytes, start: bytes = b'{"instances":[', end: bytes = b"]}", size: int = BYTES) -> bytes:
    """A body of some megabytes, full of one element."""
    return start + b",".join([element] * ((size - len(start) - len(end)) // (len(element) + 1))) + end


def chunked(path: str, chunks: bytes) -> bytes:
    """A request whose body is given as it goes over the wire."""
    return request(path, chunks, content_length=None, transfer_encoding="chunked")


def fuzzed() -> bytes:
    """A good request of which some bytes are others, missing or twice."""
    parts = [f"x-{number}: {number}\r\n".encode() for number in range(random.randrange(4))]
    data = bytearray(
        request(PREDICT, filled(GOOD, size=300)).replace(b"\r\n\r\n", b"\r\n" + b"".join(parts) + b"\r\n", 1)
    )
    for _ in range(random.randrange(1, 5)):
        position = random.randrange(len(data))
        match random.randrange(4):
            case 0:
                data[position] = random.randrange(256)
            case 1:
                del data[position : position + random.randrange(1, 9)]
            case 2:
                data[position:position] = data[position : position + random.randrange(1, 50)]
            case _:
                data[position:position] = random.choice((b"\r\n", b"\x00", b"[", b'"', b",", b"1e999", b"\xff", b"{}"))
    return bytes(data)


def random_name() -> str:
    """A name that nobody has asked for."""
    return f"{random.getrandbits(64):x}"


def distinct_rows(count: int) -> bytes:
    """Instances that no cache has."""
    rows = [[random.uniform(11, 14), *ROW[1:]] for _ in range(count)]
    return json.dumps({"instances": rows, "parameters": {"classes": "all"}}).encode()


def job() -> bytes:
    """A job of a thousand rows."""
    rows = [[random.uniform(11, 14), *ROW[1:]] for _ in range(1000)]
    return json.dumps({"operation": "explain", "model": "wine", "instances": rows}).encode()


def records() -> bytes:
    """A thousand records of one entity."""
    return json.dumps({"records": [{"values": {"a": number}} for number in range(1000)]}).encode()


TINY = b"1\r\nx\r\n" * (PACKET_BYTES // 6)
FIELDS = b"".join(b"%x:\r\n" % number for number in range(9000))
LIVE = request("/health/live", method="GET")

ATTACKS: Mapping[str, Attack] = {
    "heads byte by byte": Attack(dribble, lambda: request(PREDICT, x="x" * 10_000), 100),
    "heads byte by byte, in haste": Attack(rush, lambda: request(PREDICT, x="x" * 70_000)),
    "bodies byte by byte": Attack(dribble, lambda: request(PREDICT, b"[" * 10_000), 100),
    "bodies byte by byte, in haste": Attack(rush, lambda: request(PREDICT, b" " * 70_000)),
    "chunks of a byte": Attack(whole, lambda: chunked(PREDICT, TINY * 8 + b"0\r\n\r\n"), share=0.1),
    "chunks of a byte, each a packet": Attack(rush, lambda: chunked(PREDICT, TINY[:70_000])),
    "huge chunk extensions": Attack(whole, lambda: chunked(PREDICT, b"1;" + b"x" * 100_000)),
    "chunks with extensions": Attack(whole, lambda: chunked(PREDICT, b"1;x\r\nx\r\n" * 30_000)),
    "trailers": Attack(whole, lambda: chunked(PREDICT, b"0\r\nauthorization: x\r\ncontent-length: 9\r\n\r\n")),
    "many trailers": Attack(whole, lambda: chunked(PREDICT, b"0\r\n" + FIELDS)),
    "many headers": Attack(whole, lambda: LIVE[:-2] + FIELDS + b"\r\n"),
    "one header many times": Attack(whole, lambda: LIVE[:-2] + b"accept: a\r\n" * 250 + b"\r\n"),
    "long lists in headers": Attack(
        whole,
        lambda: request("/openapi.json", method="GET", accept_encoding="a;q=1," * 5000, if_none_match='"a",' * 7000),
    ),
    "pipelined requests": Attack(whole, lambda: request(PREDICT, distinct_rows(1)) * 90, share=0.3),
    "pipelined documents, unread": Attack(unread, lambda: request("/openapi.json", method="GET") * 90, 20),
    "explanations, unread": Attack(unread, lambda: request(EXPLAIN, distinct_rows(500)), 20, 0.2),
    "streams, unread": Attack(unread, lambda: request(EXPLAIN, distinct_rows(200), accept=SSE), 20, 0.4),
    "streams that are aborted": Attack(reset, lambda: request(EXPLAIN, distinct_rows(200), accept=SSE), 20, 0.4),
    "requests that are aborted": Attack(reset, lambda: request(EXPLAIN, distinct_rows(50)), 20),
    "half a request, then the end": Attack(half_close, lambda: request(PREDICT, distinct_rows(1))[:-5], 20),
    "connections without a request": Attack(reset, lambda: b"", 50),
    "unfinished bodies": Attack(unread, lambda: request(PREDICT, b" " * BYTES)[:-1], 20, 0.2),
    "deep JSON": Attack(whole, lambda: request(PREDICT, b"[" * BYTES), share=0.1),
    "nested arrays": Attack(whole, lambda: request(PREDICT, filled(b"[" * 13 + b"]" * 13)), share=0.1),
    "slow numbers": Attack(whole, lambda: request(PREDICT, filled(b"1e308")), share=0.1),
    "rows of slow numbers": Attack(
        whole, lambda: request(PREDICT, filled(b"[" + b",".join([b"1e308"] * len(ROW)) + b"]")), share=0.1
    ),
    "wrong rows": Attack(whole, lambda: request(PREDICT, filled(b'["x"]', size=100_000))),
    "wide explanations": Attack(whole, lambda: request(EXPLAIN, distinct_rows(500)), share=0.2),
    "CSV of line ends": Attack(whole, lambda: request(CSV, b"\n" * BYTES, content_type="text/csv"), share=0.1),
    "CSV of columns": Attack(whole, lambda: request(CSV, b"a," * (BYTES // 2), content_type="text/csv"), share=0.1),
    "large jobs": Attack(whole, lambda: request(JOBS, job()), share=0.2),
    "a thousand records": Attack(whole, lambda: request(f"/v1/entities/{random_name()}/records", records()), share=0.2),
    "wrong keys": Attack(whole, lambda: request(PREDICT, authorization=f"Bearer {random_name()}")),
    "names that nobody has": Attack(whole, lambda: request(f"/v1/models/{random_name()}:predict")),
    "long paths": Attack(whole, lambda: request("/v1/" + "%2f" * 20_000, method="GET")),
    "fuzzed requests": Attack(whole, fuzzed, share=20.0),
}


class Attackers:
    """Plays attacks against one service, from a process of their own."""

    def __init__(self, address: str, key: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self.played = multiprocessing.get_context("spawn").Value("Q", 0)
        """How many requests or connections there were; 0 until the attackers have started."""
        self._key = f" HTTP/1.1\r\nx-api-key: {key}\r\n".encode()

    async def play(self, attack: Attack) -> None:
        """Once."""
        data = attack.data().replace(b" HTTP/1.1\r\n", self._key)
        self.played.value += 1
        with suppress(OSError, TimeoutError):
            await attack.send(self._host, self._port, data)

    async def repeat(self, attack: Attack) -> None:
        """As many clients at once as it has, one after the other for ever."""

        async def again() -> None:
            while True:
                await self.play(attack)

        await asyncio.gather(*(again() for _ in range(attack.clients)))

    async def mix(self, rate: float, most: int = 500) -> None:
        """All kinds, so many a second at random moments for ever; none while `most` clients are still at it."""
        tasks: set[asyncio.Task[None]] = set()
        attacks = list(ATTACKS.values())
        shares = [attack.share for attack in attacks]
        due = time.monotonic()
        while True:
            due += random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(tasks) < most:
                task = asyncio.create_task(self.play(random.choices(attacks, shares)[0]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    def run(self, name: str, rate: float) -> None:
        """For ever: one kind, or a mixture of all if there is no name."""
        uvloop.run(self.repeat(ATTACKS[name]) if name else self.mix(rate))


@contextmanager
def attacked(address: str, key: str, name: str = "", *, rate: float = 0.0) -> Iterator[Attackers]:
    """Meanwhile a process plays one kind of attack, or `rate` a second of a mixture of all."""
    attackers = Attackers(address, key)
    process = multiprocessing.get_context("spawn").Process(target=attackers.run, args=(name, rate), daemon=True)
    process.start()
    try:
        while not attackers.played.value:
            assert process.is_alive(), "the attackers did not start"
            time.sleep(0.01)
        yield attackers
        assert process.is_alive(), "the attackers have ended"
    finally:
        process.kill()
        process.join()
