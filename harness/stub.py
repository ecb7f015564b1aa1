"""An HTTP server of a few lines in the test's own event loop: it counts connections, and answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Stub:
    """`answer` gives the bytes to send for the n-th request, counted from 0; None is silence."""

    answer: Callable[[int, bytes], bytes | None]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: set[asyncio.Transport] = field(default_factory=set)


class _Connection(asyncio.Protocol):
    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._stub.connections.add(transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._stub.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, rest = self._data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        if b"\r\n\r\n" not in self._data or len(rest) < length:
            return
        self._data = rest[length:]
        self._stub.requests.append(head + b"\r\n\r\n" + rest[:length])
        said = self._stub.answer(len(self._stub.requests) - 1, head)
        if said is not None:
            self._transport.write(said)


def reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer."""
    lines = {"content_length": str(len(body))} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Words\r\n{head}\r\n".encode() + body


@asynccontextmanager
async def serving(answer: Callable[[int, bytes], bytes | None]) -> AsyncIterator[Stub]:
    """A stub that listens; at the end its clients are disconnected."""
    stub = Stub(answer)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(stub), "127.0.0.1", 0)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret-path"
    yield stub
    server.close()
    for transport in list(stub.connections):
        transport.close()
    await server.wait_closed()
