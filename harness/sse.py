"""A client of server-sent events that shows what comes over the wire, and one that resumes as a browser does."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

Frame = dict[str, str]
"""Its fields by name; `data` of several lines in one text, a comment under the empty name."""

FRAME_END = re.compile(r"\A:\n|\n\n")
"""A heartbeat, which belongs to no event, or the empty line after an event."""


class Stream:
    """One answer of a stream. Use it as `async with Stream(...) as stream: async for frame in stream: ...`."""

    def __init__(
        self,
        address: str,
        path: str,
        *,
        method: str = "GET",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        given = {"host": parts.netloc, "accept": "text/event-stream"} | dict(headers or {})
        if body:
            given |= {"content-type": "application/json", "content-length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self._request = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
        self._receive_buffer = receive_buffer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        """True if the answer has ended regularly, not by a lost connection."""

    async def __aenter__(self) -> Stream:
        connection = socket.socket()
        if self._receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        connection.settimeout(0)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (self._host, self._port))
        except BaseException:
            connection.close()
            raise
        self._reader, self._writer = await asyncio.open_connection(sock=connection)
        self._writer.write(self._request)
        self.status = int((await self._reader.readuntil(b"\r\n")).split()[1])
        while (line := await self._reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def text(self) -> str:
        """The whole answer to a request that was refused."""
        return (await self._reader.readexactly(int(self.headers["content-length"]))).decode()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        rest = ""
        async for chunk in self._chunks():
            rest += chunk.decode()
            while end := FRAME_END.search(rest):
                yield _parse(rest[: end.end()].rstrip("\n"))
                rest = rest[end.end() :]

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return
        self.complete = True


def _parse(text: str) -> Frame:
    frame: Frame = {}
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        frame[name] = f"{frame[name]}\n{value}" if name in frame else value
    return frame


async def follow(address: str, path: str, *, last_id: str = "", patient: bool = False) -> AsyncGenerator[Frame, None]:
    """The events of a stream over as many answers as it takes, until the server says that there are no more (204).

    Who is `patient` waits before it comes back as long as it is told to.
    """
    while True:
        retry = random.uniform(0.5, 1.5)
        try:
            headers = {"last-event-id": last_id} if last_id else {}
            async with Stream(address, path, headers=headers) as stream:
                if stream.status == 204:
                    return
                if stream.status == 200:
                    async for frame in stream:
                        last_id = frame.get("id", last_id)
                        retry = float(frame.get("retry", retry * 1000)) / 1000
                        if "event" in frame:
                            yield frame
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # refused or dropped: it comes back
        await asyncio.sleep(retry if patient else 0)
