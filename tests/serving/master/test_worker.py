"""The server of a worker that is told to end at a bad moment."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any, cast

from uvicorn.config import Config

from serving.master.worker import DrainingServer
from serving.settings import Settings

PATIENCE = 30


class Worker:
    """As much of one as its server knows; an app that needs nothing."""

    settings = Settings(read_timeout_seconds=1.0)
    drain_seconds = 0.1
    ppid = os.getppid()

    def __init__(self) -> None:
        self.wsgi = self
        self.announced = 0

    def announce_end(self) -> None:
        self.announced += 1

    def tick(self) -> None: ...

    def reason_to_replace(self) -> None: ...

    async def end_streams(self) -> None: ...


def test_a_worker_that_is_told_to_end_while_it_starts_drains_all_the_same() -> None:
    worker = Worker()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        signal.raise_signal(signal.SIGTERM)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def serve() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = DrainingServer(Config(app, lifespan="on", log_config=None), worker=worker)  # type: ignore[arg-type]
            async with asyncio.timeout(PATIENCE):
                await server.serve([listener])

    asyncio.run(serve())
    assert worker.announced == 1


def test_second_ctrl_c_holds_when_the_signal_of_the_first_arrives_late() -> None:
    server = DrainingServer(Config(app=""), worker=cast("Any", Worker()))
    server.handle_exit(signal.SIGINT, None)
    assert not server.force_exit
    server.handle_exit(signal.SIGINT, None)
    server.handle_exit(signal.SIGQUIT, None)
    assert server.force_exit
