"""Server-sent events: streams of frames, with heartbeats in between, that end when the worker does.

Context: sse-starlette does this too, with four tasks a stream, a copy of its own of what uvicorn knows of the server's
end, and no way to refuse a request before the stream starts. Decision: the lines below, because the worker says when it
drains and its protocol cuts off clients that do not read. Consequence: a stream takes three tasks and no thread.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Annotated, TypeAlias

import structlog
from fastapi import Depends, Header, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.errors import InvalidRequest
from serving.events.follow import Hub
from serving.http import problems
from serving.http.body import Headers
from serving.http.edge import network_of
from serving.http.keys import key_of

CONTENT_TYPE = b"text/event-stream"

HEADERS: Headers = [
    (b"content-type", CONTENT_TYPE),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back until its buffer is full
]

HEARTBEAT = b":\n"
"""A comment; an empty line after it would let some clients hand out an event without data."""

RETRY_MILLISECONDS = (500, 1500)
"""Between a stream's end and its client's return; drawn at random, because all clients of a worker return at once."""

EVENT_ID = re.compile(r"[0-9]{1,19}")
MAX_EVENT_ID = 2**63 - 1

Frames = AsyncGenerator[bytes, None]

log = structlog.get_logger(__name__)


def frame(kind: str, data: bytes, event_id: int | None = None) -> bytes:
    """One event as it is sent; the client puts data of several lines together again."""
    head = b"" if event_id is None else b"id: %d\n" % event_id
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"%sevent: %s\ndata: %s\n\n" % (head, kind.encode(), lines)


def opening(position: int | None = None) -> bytes:
    """The first frame of a stream: after how long to return, and from where if no event has come by then."""
    head = b"" if position is None else b"id: %d\n" % position
    return b"%sretry: %d\n\n" % (head, random.randint(*RETRY_MILLISECONDS))  # noqa: S311 - spread, not secret


async def last_event_id(
    header: Annotated[str | None, Header(alias="last-event-id", description="The last event that was seen")] = None,
    query: Annotated[
        str | None, Query(alias="last_event_id", description="Last-Event-ID, for clients that cannot set the header")
    ] = None,
) -> int | None:
    """The id of the event after which a client resumes; the header wins. Raises InvalidRequest."""
    text = header or query
    if not text:
        return None
    if not EVENT_ID.fullmatch(text) or int(text) > MAX_EVENT_ID:
        raise InvalidRequest("Last-Event-ID is not the id of an event")
    return int(text)


LastEventId: TypeAlias = Annotated[int | None, Depends(last_event_id)]


class Streams:
    """The event streams of one worker. Built before the fork; it starts nothing."""

    def __init__(self, hub: Hub, *, heartbeat_seconds: float = 15.0) -> None:
        """`heartbeat_seconds` is the time between heartbeats on an idle stream."""
        self.hub = hub
        self.ending = asyncio.Event()
        """Set when streams without an end of their own have to end."""
        self._heartbeat_seconds = heartbeat_seconds

    async def end(self) -> None:
        """End all streams when the worker drains; their clients resume at another worker."""
        self.ending.set()
        self.hub.close()

    async def follow(
        self, topic: str, after: int | None, scope: Scope, *, last: Collection[str] = (), follow: bool = True
    ) -> Frames:
        """The frames of a topic's events after an id, or from now on, up to one of a kind in `last`.

        They count as a stream of the address and of the key in `scope`; see `Hub.subscribe`. Raises StoreUnavailable,
        TooManyStreams.
        """
        position = await self.hub.latest() if after is None else after
        client, key = network_of(scope).hex(), key_of(scope).name
        async with self.hub.subscribe(topic, after=position, address=client, key=key, follow=follow) as events:
            yield opening(position)
            async for event in events:
                yield frame(event.kind, event.data, event.id)
                if event.kind in last:
                    return

    async def send(self, frames: Frames, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with frames until there are no more or the client has disconnected.

        An error before the first frame is raised here and answered like that of any request; a later one becomes an
        event `error`.
        """
        async with aclosing(frames):
            first = await anext(frames)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await _send_part(send, first)
            pump = asyncio.create_task(_pump(frames, send, scope["state"]["request_id"]))
            disconnected = asyncio.create_task(_wait_for_disconnect(receive))
            try:
                while not await self._has_ended(pump, disconnected):
                    await _send_part(send, HEARTBEAT)
            finally:
                pump.cancel()
                disconnected.cancel()
                await asyncio.gather(pump, disconnected, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    async def _has_ended(self, *tasks: asyncio.Task[None]) -> bool:
        """Return whether one of the tasks has ended before the next heartbeat is due."""
        ended, _ = await asyncio.wait(tasks, timeout=self._heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(ended)


class EventStream(Response):
    """Frames as the answer of a FastAPI route."""

    media_type = CONTENT_TYPE.decode()

    def __init__(self, streams: Streams, frames: Frames) -> None:
        super().__init__()
        self._streams = streams
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["endless"] = True  # the protocol ends it when its client has closed its side
        await self._streams.send(self._frames, scope, receive, send)


async def _pump(frames: Frames, send: Send, request_id: str) -> None:
    try:
        async for part in frames:
            await _send_part(send, part)
    except Exception as error:  # the status has been sent: only an event can report any failure now
        if problems.status_of(error) == 500:
            log.error("Stream failed", exc_info=error)
        _, _, problem = problems.render(error, request_id)
        await _send_part(send, frame("error", problem))


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of a body that nothing reads
