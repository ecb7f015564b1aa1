"""Which connections a sweep ends, and which it leaves alone."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from serving.http.protocol import JoiningTransport, LimitedProtocol

pytestmark = pytest.mark.anyio

LIMIT = 20.0


class Socket(asyncio.Transport):
    """Takes what it is given and passes on as much as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 0
        self.aborted = False
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.unsent += len(data)
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.aborted


async def silent_app(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def socket() -> Socket:
    return Socket()


@pytest.fixture
async def protocol(socket: Socket) -> LimitedProtocol:
    config = Config(silent_app, lifespan="off", log_config=None)
    protocol = LimitedProtocol(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(socket)
    protocol._reading_since = None
    return protocol


async def test_nothing_is_written_to_a_connection_that_its_client_has_reset_in_this_turn(socket: Socket) -> None:
    joining = JoiningTransport(socket, asyncio.get_running_loop())
    joining.write(b"an answer")
    socket.abort()
    await asyncio.sleep(0)
    assert socket.unsent == 0


def sweep(protocol: LimitedProtocol, *times: float) -> None:
    for time in times:
        protocol.sweep(1000.0 + time, LIMIT)


async def test_answer_that_was_written_in_this_turn_of_the_loop_is_left_alone(
    protocol: LimitedProtocol, socket: Socket
) -> None:
    protocol.transport.write(b"answer")
    sweep(protocol, 0, 1)
    assert not socket.aborted


async def test_client_that_takes_nothing_is_ended_although_more_is_written(
    protocol: LimitedProtocol, socket: Socket
) -> None:
    transport: Any = protocol.transport
    for second in range(0, 19, 5):
        transport.write(b"heartbeat")
        transport.flush()
        sweep(protocol, second)
    assert not socket.aborted
    sweep(protocol, LIMIT + 1)
    assert socket.aborted


async def test_client_that_takes_a_little_is_left_alone(protocol: LimitedProtocol, socket: Socket) -> None:
    transport: Any = protocol.transport
    transport.write(b"x" * 1000)
    transport.flush()
    for second in range(0, 100, 15):
        socket.unsent -= 1
        sweep(protocol, second)
    assert not socket.aborted


UNREADABLE = {
    "no host": b"POST %b HTTP/1.1\r\n\r\n",
    "large headers": b"POST %b HTTP/1.1\r\nhost: x\r\na: " + b"x" * 70_000,
    "a wrong header": b"\r\nPOST %b?a=b HTTP/1.1\r\nhost: x\r\na b: c\r\n\r\n",
    "wrong chunks": b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
    "half a head": b"POST %b HTTP/1.1\r\nhost: x\r\n",
    "half a body": b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab",
}


@pytest.mark.parametrize("sent", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize(
    ("path", "content_type"),
    [(b"/v2/models/m/infer", b"application/json"), (b"/v1/models/m:predict", b"application/problem+json")],
)
async def test_requests_that_cannot_be_read_are_refused_in_the_form_of_their_path(
    protocol: LimitedProtocol, socket: Socket, sent: bytes, path: bytes, content_type: bytes
) -> None:
    protocol.data_received(sent.replace(b"%b", path))
    await asyncio.sleep(0)
    protocol.sweep(protocol.loop.time() + LIMIT + 1, LIMIT)  # some wait for more
    await asyncio.sleep(0)
    head, _, body = socket.written.partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: %b\r\n" % content_type in head + b"\r\n"
    told = msgspec.json.decode(body)
    assert isinstance(told["error" if path.startswith(b"/v2") else "detail"], str)
    assert ("error" in told) is path.startswith(b"/v2")
