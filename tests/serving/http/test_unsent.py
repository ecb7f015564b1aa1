"""Answers that clients do not read, over real sockets: how many bytes of them a server keeps."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serving.http import unsent
from serving.http.keys import ANY, Key
from serving.http.protocol import LimitedProtocol
from serving.http.unsent import UnsentBytes
from serving.shared.book import Book
from serving.shared.holdings import Holdings
from tests.serving.conftest import PATIENCE

MB = 1 << 20
ANSWER_BYTES = 12 * MB
MAX_CLIENT_BYTES, MAX_BYTES = 24 * MB, 40 * MB


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers 12 MB to the key that the path names."""
    scope["state"]["key"] = Key(scope["path"].removeprefix("/"), b"", ANY)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % ANSWER_BYTES)]})
    await send({"type": "http.response.body", "body": bytes(ANSWER_BYTES)})


@pytest.fixture
def held() -> Holdings:
    return Book(1).holdings()


@pytest.fixture(params=["uvloop", "asyncio"])
def port(request: pytest.FixtureRequest, held: Holdings, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server whose clients may leave 24 MB unread, 40 MB in all."""
    monkeypatch.setattr(unsent, "MAX_CLIENT_BYTES", MAX_CLIENT_BYTES)
    monkeypatch.setattr(unsent, "MAX_BYTES", MAX_BYTES)
    http = partial(LimitedProtocol, unsent=UnsentBytes(held))
    config = uvicorn.Config(app, loop=request.param, http=http, lifespan="off", log_config=None)  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join()
    listener.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def ask(port: int, client: str) -> socket.socket:
    """A connection that has sent a request and reads nothing."""
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % client.encode())
    return connection


def read(connection: socket.socket) -> int:
    """Bytes of the body that can be read, until all is there or the connection ends."""
    content = bytearray()
    try:
        while len(content) < ANSWER_BYTES and (piece := connection.recv(1 << 20)):
            content += piece
    except ConnectionResetError:
        pass
    finally:
        connection.close()
    return len(content) - (content.find(b"\r\n\r\n") + 4)


def is_ended(connection: socket.socket) -> bool:
    """Whether the server has ended it in the middle of the answer: it then refuses what is sent."""
    try:
        connection.send(b"\r\n")
    except (BrokenPipeError, ConnectionResetError):
        return True
    poll = select.poll()
    poll.register(connection, 0)  # errors are told without being asked for
    return bool(poll.poll(0))


def test_a_client_that_reads_nothing_is_cut_and_others_are_answered(port: int, held: Holdings) -> None:
    greedy = [ask(port, "greedy") for _ in range(8)]
    assert eventually(lambda: sum(map(is_ended, greedy)) >= 5)
    assert 0 < held.of(b"key:greedy") <= MAX_CLIENT_BYTES
    assert read(ask(port, "other")) >= ANSWER_BYTES - 4096
    left = [connection for connection in greedy if not is_ended(connection)]
    assert left
    assert all(read(connection) >= ANSWER_BYTES - 4096 for connection in left)
    for connection in greedy:
        connection.close()
    assert eventually(lambda: held.total() == 0)


class Fake:
    """A connection that only remembers whether it was ended."""

    def __init__(self) -> None:
        self.transport: Any = self
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def test_the_connection_that_exceeds_what_its_client_may_have_is_ended(held: Holdings) -> None:
    here, elsewhere = UnsentBytes(held), UnsentBytes(held)
    first, second, third, other = (Fake() for _ in range(4))
    here.hold(first, b"a", unsent.MAX_CLIENT_BYTES // 2)
    elsewhere.hold(second, b"a", unsent.MAX_CLIENT_BYTES // 2)
    here.hold(other, b"b", 1)
    here.hold(third, b"a", 1)
    assert [one.aborted for one in (first, second, third, other)] == [False, False, True, False]
    here.hold(first, b"a", 1)  # it has sent something
    here.hold(third, b"a", 1)
    for worker, one in ((here, first), (elsewhere, second), (here, third), (here, other)):
        worker.release(one)
    assert held.total() == 0


def test_of_too_much_in_all_the_one_that_holds_most_goes_first(held: Holdings) -> None:
    bytes_of = UnsentBytes(held)
    share = unsent.MAX_CLIENT_BYTES
    modest, large, larger, largest = (Fake() for _ in range(4))
    bytes_of.hold(modest, b"modest", 1000)
    bytes_of.hold(large, b"large", share - 2000)
    bytes_of.hold(larger, b"larger", share - 500)
    assert not larger.aborted
    bytes_of.hold(largest, b"largest", share // 2)
    assert [one.aborted for one in (modest, large, larger, largest)] == [False, False, True, False]
    assert held.total() <= unsent.MAX_BYTES
