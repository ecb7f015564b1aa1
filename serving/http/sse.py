"""Server-sent events over HTTP: frames as they come, heartbeats in between, and an end after which clients resume.

Context: sse-starlette does this too, with four tasks a stream, a copy of its own of what uvicorn knows of the server's
end, and no way to answer a refusal before the stream starts. Decision: the hundred lines below, since the worker tells
when it drains and its protocol cuts who does not read. Consequence: a stream takes three tasks and no thread.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from starlette.responses import Response

from serving.events.hub import Hub
from serving.http import problems
from serving.http.edge import Headers, Receive, Scope, Send

CONTENT_TYPE = b"text/event-stream"

HEADERS: Headers = [
    (b"content-type", CONTENT_TYPE),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back until its buffer is full
]

HEARTBEAT = b":\n\n"

RETRY_MILLISECONDS = (500, 1500)
"""How long a client waits before it comes back: each another time, since all those of a worker come back at once."""

Frames = AsyncGenerator[bytes, None]

log = structlog.get_logger(__name__)


def frame(kind: str, data: bytes, event_id: int | None = None) -> bytes:
    """One event as it goes over the wire; data of several lines are put together again by the client."""
    head = b"" if event_id is None else b"id: %d\n" % event_id
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"%sevent: %s\ndata: %s\n\n" % (head, kind.encode(), lines)


def opening(position: int | None = None) -> bytes:
    """What a stream begins with: when to come back, and from where, before there was any event."""
    head = b"" if position is None else b"id: %d\n" % position
    return b"%sretry: %d\n\n" % (head, random.randint(*RETRY_MILLISECONDS))  # noqa: S311 - spread, not secret


class Streams:
    """The event streams of one worker. Built before the fork; it starts nothing."""

    def __init__(self, hub: Hub, *, heartbeat_seconds: float = 15.0) -> None:
        self.hub = hub
        self.ending = asyncio.Event()
        """Set when streams that have no end of their own have to end."""
        self.heartbeat_seconds = heartbeat_seconds
        """How long a stream may be silent."""

    async def end(self) -> None:
        """End them all, for a worker that drains: their clients resume at another one."""
        self.ending.set()
        await self.hub.close()

    async def send(self, frames: Frames, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with frames until there are no more or the client is gone.

        What is raised before the first frame is raised here and answered as ever; later it is an event `error`.
        """
        async with aclosing(frames):
            first = await anext(frames)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await _send_some(send, first)
            pump = asyncio.create_task(_pump(frames, send, scope["state"]["request_id"]))
            gone = asyncio.create_task(_wait_until_gone(receive))
            try:
                while not await self._ended(pump, gone):
                    await _send_some(send, HEARTBEAT)
            finally:
                pump.cancel()
                gone.cancel()
                await asyncio.gather(pump, gone, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    async def _ended(self, *tasks: asyncio.Task[None]) -> bool:
        """Whether one of them has ended; waits for it as long as a stream may be silent."""
        ended, _ = await asyncio.wait(tasks, timeout=self.heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(ended)


class EventStream(Response):
    """The same as what a route of FastAPI returns."""

    def __init__(self, streams: Streams, frames: Frames) -> None:
        super().__init__()
        self._streams = streams
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._streams.send(self._frames, scope, receive, send)


async def _pump(frames: Frames, send: Send, request_id: str) -> None:
    try:
        async for some in frames:
            await _send_some(send, some)
    except Exception as error:  # the status is sent: whatever it is, only an event can say so
        if problems.status_of(error) == 500:
            log.error("Stream failed", exc_info=error)
        _, _, problem = problems.render(error, request_id)
        await _send_some(send, frame("error", problem))


async def _send_some(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of a body that nobody asked for
