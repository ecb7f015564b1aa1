"""Follows the log once for all clients of a worker, and hands each what is for it.

However many clients there are, a worker has one reader, and none at all while nobody listens. A client first reads
from the log what it has missed; then what the reader brings is put into its queue. A queue is bounded: a client that
does not keep up is cut off and comes back with the last id that it saw.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import Counter
from collections.abc import Callable

import structlog

from serving.errors import StoreUnavailable, TooManyStreams
from serving.events.log import EventLog, Page
from serving.events.subscription import Subscription

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
"""Between attempts to read a log that is not available."""

READS_AT_ONCE = 8
"""Of clients that replay: a thousand that come back together shall not wait for connections until they time out."""

SWEEPS = 10
"""In the time after which an idle client is cut off."""


class Hub:
    """The clients of one worker. Belongs to one event loop; building it starts nothing, so it may be forked."""

    def __init__(
        self,
        events: EventLog,
        *,
        queue_size: int = 100,
        max_streams: int = 1000,
        max_streams_per_address: int | None = 50,
        idle_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A client to which nothing was handed for `idle_seconds` is cut off, dead or alive: who is alive comes back.

        A peer that has vanished without a word is seen by nobody else for a quarter of an hour.
        """
        self._events = events
        self._queue_size = queue_size
        self._max_streams = max_streams
        self._max_streams_per_address = max_streams_per_address
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._open: set[Subscription] = set()
        self._by_address: Counter[str] = Counter()
        self._live: dict[str | None, set[Subscription]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._replays = asyncio.Semaphore(READS_AT_ONCE)
        self._position = 0
        self._closed = False

    @property
    def open_streams(self) -> int:
        """For metrics."""
        return len(self._open)

    def subscribe(
        self, topic: str | None, *, after: int | None = None, address: str = "", follow: bool = True
    ) -> Subscription:
        """The events of a topic, or of all: those with an id above `after`, or those from now on.

        Use it as `async with hub.subscribe(...) as stream: async for event in stream: ...`. `address` is whose streams
        are counted together; an empty one is not counted. Who does not `follow` gets what the log holds and no more.
        Raises TooManyStreams. After `close` it ends at once.
        """
        if len(self._open) >= self._max_streams:
            raise TooManyStreams("too many streams are open")
        most = self._max_streams_per_address
        if most is not None and address and self._by_address[address] >= most:
            raise TooManyStreams("too many streams are open from this address")
        stream = Subscription(
            self,
            topic,
            after,
            address,
            follow=follow,
            queue_size=self._queue_size,
            clock=self._clock,
        )
        if self._closed:
            stream.cut()
            return stream
        self._open.add(stream)
        if address:
            self._by_address[address] += 1
        if self._reader is None:
            # of no request's context, although a request happens to start it
            self._reader = asyncio.get_running_loop().create_task(self._read(), context=contextvars.Context())
            self._reader.add_done_callback(self._note_end)
        return stream

    async def replay(self, topic: str | None, after: int, limit: int) -> Page:
        """What a stream reads from the log. Raises StoreUnavailable."""
        async with self._replays:
            return await self._events.read(topic, after, limit)

    async def attach(self, stream: Subscription) -> None:
        """Come back when all events from now on are put into the stream's queue."""
        self._live.setdefault(stream.topic, set()).add(stream)
        await self._begun.wait()

    def remove(self, stream: Subscription) -> None:
        """Forget a stream that has ended; when it was the last one, the reader stops."""
        if stream not in self._open:
            return
        self._open.discard(stream)
        if stream.address:
            self._by_address[stream.address] -= 1
            if not self._by_address[stream.address]:
                del self._by_address[stream.address]
        same = self._live.get(stream.topic, set())
        same.discard(stream)
        if not same:
            self._live.pop(stream.topic, None)
        if not self._open and self._reader is not None:
            self._reader.cancel()
            self._reader = None
            self._begun.set()  # who was cut while it waited for this sees that it has ended
            self._begun = asyncio.Event()

    async def close(self) -> None:
        """End all streams, and those to come: for a worker that ends. Its clients resume at another one."""
        self._closed = True
        reader = self._reader
        self._cut_all()
        if reader is not None:
            await asyncio.gather(reader, return_exceptions=True)

    def _cut_all(self) -> None:
        for stream in list(self._open):
            stream.cut()

    async def _read(self) -> None:
        """The reader: until it is cancelled."""
        begun, away, swept = self._begun, False, self._clock()
        page_size = max(1, self._queue_size // 2)  # a client that keeps up can empty its queue between two pages
        while True:
            try:
                if not begun.is_set():
                    self._position = (await self._events.read(None, 0, 0)).latest
                    begun.set()
                page = await self._events.read(None, self._position, page_size)
                self._hand_out(page)
                if len(page.events) < page_size:
                    await self._events.wait(self._position)
                away = False
            except StoreUnavailable as error:
                if not away:
                    log.warning("Events cannot be read", reason=str(error))
                away = True
                await asyncio.sleep(RETRY_SECONDS)
            if self._clock() - swept > self._idle_seconds / SWEEPS:
                swept = self._clock()
                self._cut_idle(swept)

    def _note_end(self, reader: asyncio.Task[None]) -> None:
        """The reader never ends by itself; should it fail, the clients' return starts another."""
        if not reader.cancelled():
            log.error("Event reader failed", exc_info=reader.exception())
            self._cut_all()

    def _hand_out(self, page: Page) -> None:
        if self._position and page.floor > self._position:
            self._cut_all()  # the log has forgotten what was not yet read; resuming tells each client so
        for event in page.events:
            self._position = event.id
            for topic in (event.topic, None):
                for stream in list(self._live.get(topic, ())):
                    stream.put(event)

    def _cut_idle(self, now: float) -> None:
        for stream in list(self._open):
            if now - stream.touched > self._idle_seconds:
                stream.cut()
