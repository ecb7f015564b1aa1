"""HTTP as bytes over a plain socket, for what a client library would normalise, refuse or hide."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from harness.service import Service

SECONDS = 30
"""Longer than anything takes that works."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One TCP connection to a service."""

    def __init__(self, service: Service, *, receive_buffer: int | None = None) -> None:
        parts = urlsplit(service.address)
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(SECONDS)
        self._socket.connect((parts.hostname, parts.port))
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """False when the server no longer listens; it may have answered already."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self, *, to_head: bool = False) -> Answer | None:
        """The next answer, None when the connection was ended instead."""
        try:
            line = self._reader.readline()
            if not line:
                return None
            status, headers = int(line.split()[1]), self._headers()
            if to_head or status == 100:
                return Answer(status, headers, b"")
            return Answer(status, headers, self._reader.read(int(headers["content-length"])))
        except ConnectionResetError:
            return None

    def status(self) -> int:
        """The status of an answer whose body is not of interest, or has no end."""
        line = self._reader.readline()
        self._headers()
        return int(line.split()[1])

    def _headers(self) -> dict[str, str]:
        headers = {}
        while (line := self._reader.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return headers

    def is_closed(self) -> bool:
        """True when the server ends the connection without a further answer; waits for either."""
        with suppress(ConnectionResetError):
            return self._reader.read(1) == b""
        return True

    def says_something(self, within: float) -> bool:
        """True as soon as there is an answer or the end of the connection, False after `within` seconds."""
        return bool(select.select([self._socket], [], [], within)[0])

    def refuses_more(self, within: float) -> bool:
        """True as soon as the server no longer takes what is sent; what it sent itself is left unread."""
        deadline = time.monotonic() + within
        ended = select.poll()
        ended.register(self._socket, 0)  # errors are told without being asked for
        while time.monotonic() < deadline:
            if ended.poll(100) or not self.send(b"\r\n"):
                return True
        return False


def request(path: str | bytes, body: bytes = b"", method: str = "POST", **headers: str | None) -> bytes:
    """A request for JSON as it goes over the wire; `content_type=None` leaves that header out."""
    raw = path if isinstance(path, bytes) else path.encode()
    lines: dict[str, str | None] = {
        "host": "localhost",
        "content_type": "application/json",
        "content_length": str(len(body)),
        **headers,
    }
    head = b"".join(
        f"{name.replace('_', '-')}: {value}\r\n".encode() for name, value in lines.items() if value is not None
    )
    return method.encode() + b" " + raw + b" HTTP/1.1\r\n" + head + b"\r\n" + body


def ask(service: Service, data: bytes) -> Answer:
    """The answer to what is sent on a connection of its own."""
    with Connection(service) as connection:
        connection.send(data)
        answer = connection.answer()
    assert answer is not None, "closed without an answer"
    return answer


def check_refusal(answer: Answer, *statuses: int) -> dict[str, Any]:
    """Check that an answer is one of these refusals, in the form that every refusal has, and give the problem."""
    assert answer.status in statuses, (answer.status, answer.body[:500])
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.body) <= 8 * 1024
    problem: dict[str, Any] = answer.json()
    assert problem.keys() - {"errors"} == {"type", "title", "status", "detail", "request_id"}
    assert problem["status"] == answer.status
    assert problem["request_id"]
    assert len(problem.get("errors", [])) <= 20
    return problem
