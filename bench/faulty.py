"""A TCP proxy that makes a server look refused, black-holed, slow or mad to whoever connects through it."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from types import TracebackType
from typing import Literal

Fault = Literal["none", "refused", "black-holed", "slow", "garbage"]

SLOW_SECONDS = 5.0
CHUNK = 65536


class FaultyProxy:
    """Listens on `port` in front of `target`; an asynchronous context manager. It runs on the caller's event loop."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._fault: Fault = "none"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._blocked: list[socket.socket] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> FaultyProxy:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._unblock()
        await self._deafen()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def be(self, fault: Fault) -> None:
        """From now on; connections that are there already are spoilt, too."""
        self._unblock()
        self._fault = fault
        if fault in ("refused", "black-holed"):
            await self._deafen(drop=fault == "refused")
            if fault == "black-holed":
                self._block()
        else:
            self._drop()  # who was left hanging begins anew
            await self._listen()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _deafen(self, *, drop: bool = True) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
        if drop:
            self._drop()

    def _drop(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    def _block(self) -> None:
        """The port takes no connection any more, and does not say so either: its queue of them is full."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(0)
        self._blocked = [listener]
        for _ in range(8):
            client = socket.socket()
            client.settimeout(0)
            client.connect_ex(listener.getsockname())
            self._blocked.append(client)

    def _unblock(self) -> None:
        for blocked in self._blocked:
            blocked.close()
        self._blocked = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        pumps = [
            asyncio.create_task(self._pump(reader, back, writer)),
            asyncio.create_task(self._pump(there, writer)),
        ]
        self._pumps.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        self._pumps.difference_update(pumps)
        self._open -= {writer, back}
        writer.transport.abort()
        back.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asker: asyncio.StreamWriter | None = None
    ) -> None:
        """Pass on what comes; `asker` is who has sent it, if it is a client."""
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                while self._fault == "black-holed":  # noqa: ASYNC110 - once in a while, in a benchmark
                    await asyncio.sleep(0.05)
                if self._fault == "slow" and asker is None:
                    await asyncio.sleep(SLOW_SECONDS)
                if self._fault == "garbage" and asker is not None:
                    asker.write(os.urandom(64))
                else:
                    writer.write(data)
                    await writer.drain()
