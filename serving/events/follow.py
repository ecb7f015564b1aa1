"""Follows the event log once for all clients of a worker. The log is the queue: a client is a position in it.

A client reads its topic from its own position and waits when there is nothing more. One task of the worker follows the
whole log and wakes the clients whose topic has news. Clients that are up to date find the news on the page that this
task has read last; others read from the log, and those at the same position share one read. So nothing is queued for a
client however slow it is, and a RESET event tells it if the log has forgotten what it has not seen.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import structlog

from serving.errors import StoreUnavailable, TooManyStreams
from serving.events.log import RESET, Event, EventLog, Page
from serving.shared.holdings import Holdings

log = structlog.get_logger(__name__)

PAGE_EVENTS = 50

READS_AT_ONCE = 8
"""Reads of clients; a thousand that come back together must not wait for connections until they time out."""

RETRY_SECONDS = 1.0
"""Between attempts to read a log that is unavailable."""


class _News(asyncio.Event):
    """Set when a client's topic has news."""

    since = 0
    """The position up to which there was none since the client has last read."""


class Hub:
    """The clients of one worker. Belongs to one event loop; building it starts nothing, so it may be forked."""

    def __init__(
        self,
        events: EventLog,
        *,
        held: Holdings | None = None,
        max_streams: int = 1000,
        max_streams_per_address: int = 50,
        max_streams_per_key: int = 0,
        idle_seconds: float = 600.0,
    ) -> None:
        """A `max_streams_per_address` or `max_streams_per_key` of 0 sets no limit; all workers count them in `held`.

        The stream of a client that got no event for `idle_seconds` ends, dead or alive: a client that is alive
        resumes, and nothing else notices for a quarter of an hour that a peer has vanished silently.
        """
        self._events = events
        self._max_streams = max_streams
        self._max_streams_per_address = max_streams_per_address
        self._idle_seconds = idle_seconds
        self._max_streams_per_key = max_streams_per_key
        self._held = held or Holdings(1)
        self._waiting: dict[str | None, set[_News]] = {}
        self._recent: Page | None = None
        self._reads: dict[tuple[str | None, int], asyncio.Task[Page]] = {}
        self._reading: set[asyncio.Task[Page]] = set()
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._follower: asyncio.Task[None] | None = None
        self._following = asyncio.Event()
        self._closed = False
        self.open_streams = 0

    async def latest(self) -> int:
        """Return the position of a client that wants only what happens from now on. Raises StoreUnavailable."""
        async with self._turns:
            return (await self._events.read(None, 0, 0)).latest

    @asynccontextmanager
    async def subscribe(
        self, topic: str | None, *, after: int, address: str = "", key: str = "", follow: bool = True
    ) -> AsyncIterator[AsyncGenerator[Event, None]]:
        """Stream the events of a topic, or of all topics, with an id above `after`. Raises TooManyStreams.

        Streams with the same `address`, or `key`, count together; those with an empty one do not count.
        Without `follow` the stream ends with the last event that is in the log now. It raises StoreUnavailable if the
        log cannot be read at the beginning; later it waits for the log.
        """
        self._check_limits(address, key)
        self.open_streams += 1
        clients = [client(name) for client, name in ((_address, address), (_key, key)) if name]
        for client in clients:
            self._held.add(client, 1)
        if self._follower is None:
            # in no request's context, although a request happens to start it
            self._follower = asyncio.get_running_loop().create_task(self._follow(), context=contextvars.Context())
            self._follower.add_done_callback(self._note_end)
        try:
            async with aclosing(self._stream(topic, after, self._follower, follow=follow)) as events:
                yield events
        finally:
            self.open_streams -= 1
            for client in clients:
                self._held.add(client, -1)
            if not self.open_streams and self._follower is not None:
                for task in (self._follower, *self._reading):  # a read that began later would open a closed log again
                    task.cancel()
                self._reads.clear()
                self._follower, self._following, self._recent = None, asyncio.Event(), None

    def close(self) -> None:
        """End all streams, and those to come, when the worker ends. Their clients resume at another worker."""
        self._closed = True
        self._wake_all()

    def _check_limits(self, address: str, key: str) -> None:
        if self.open_streams >= self._max_streams:
            raise TooManyStreams("too many streams are open")
        if address and 0 < self._max_streams_per_address <= self._held.of(_address(address)):
            raise TooManyStreams("too many streams are open from this address")
        if key and 0 < self._max_streams_per_key <= self._held.of(_key(key)):
            raise TooManyStreams("too many streams of this key are open")

    async def _stream(
        self, topic: str | None, position: int, follower: asyncio.Task[None], *, follow: bool
    ) -> AsyncGenerator[Event, None]:
        news, has_read = _News(), False
        self._waiting.setdefault(topic, set()).add(news)
        try:
            while not (self._closed or follower.done()):
                news.clear()  # before the read: whatever happens from here on wakes us
                wake = news if self._following.is_set() else self._following
                try:
                    page = self._recent_page(topic, position) if has_read else None
                    page = page or await self._shared_read(topic, position)
                except StoreUnavailable:
                    if not has_read:
                        raise
                    await _wait(news, RETRY_SECONDS)
                    continue
                has_read = True
                if page.is_gap(position):
                    position = page.floor
                    yield Event(position, topic or "", RESET, b"")
                    continue
                for event in page.events:
                    yield event
                    if self._closed or follower.done():
                        return
                position = page.events[-1].id if len(page.events) == PAGE_EVENTS else max(position, page.latest)
                if not page.events:
                    if not (follow and await _wait(wake, self._idle_seconds)):
                        return
                    position = max(position, news.since if wake is news else 0)
        finally:
            self._waiting[topic].discard(news)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def _recent_page(self, topic: str | None, position: int) -> Page | None:
        """Return the topic's events on the page that the follower has read last, unless the page begins too late."""
        recent = self._recent
        if recent is None or position < recent.floor:
            return None
        events = [event for event in recent.events if event.id > position and topic in (None, event.topic)]
        return Page(events, recent.floor, max(position, recent.latest))

    async def _shared_read(self, topic: str | None, after: int) -> Page:
        """Read one page for all clients at the same position that ask for it before the read begins."""
        key = topic, after
        if key not in self._reads:
            self._reads[key] = reading = asyncio.create_task(self._begin_read(topic, after))
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)
        return await asyncio.shield(self._reads[key])

    async def _begin_read(self, topic: str | None, after: int) -> Page:
        async with self._turns:
            self._reads.pop(
                (topic, after), None
            )  # a client that comes later may have been woken by what this does not find
            return await self._events.read(topic, after, PAGE_EVENTS)

    async def _follow(self) -> None:
        """Wake clients when there is something to read, until cancelled."""
        following, position, unavailable = self._following, 0, False
        while True:
            try:
                if not following.is_set():
                    position = await self.latest()
                    following.set()
                page = await self._events.read(None, position, PAGE_EVENTS)
                position = self._take(page, position)
                if len(page.events) < PAGE_EVENTS:
                    await self._events.wait(position)
                unavailable = False
            except StoreUnavailable as error:
                if not unavailable:
                    log.warning("Events cannot be read", reason=str(error))
                unavailable = True
                await asyncio.sleep(RETRY_SECONDS)

    def _take(self, page: Page, position: int) -> int:
        """Wake the clients whose topics are on a page that was read after `position`; return the next position."""
        if page.is_gap(position):
            self._recent, position = None, page.floor
            self._wake_all()
        if not page.events:
            return position
        last = page.events[-1].id
        self._recent = Page(page.events, position, last)
        for topic in {None, *(event.topic for event in page.events)}:
            for news in self._waiting.get(topic, ()):
                if not news.is_set():
                    news.since = position
                    news.set()
        return last

    def _note_end(self, follower: asyncio.Task[None]) -> None:
        """End all streams if the follower has failed; the next client starts another follower."""
        if follower.cancelled():
            return
        log.error("Event reader failed", exc_info=follower.exception())
        self._wake_all()
        if self._follower is follower:
            self._follower, self._following, self._recent = None, asyncio.Event(), None

    def _wake_all(self) -> None:
        self._following.set()
        for waiting in self._waiting.values():
            for news in waiting:
                news.set()


def _address(name: str) -> bytes:
    return b"address:" + name.encode()


def _key(name: str) -> bytes:
    return b"key:" + name.encode()


async def _wait(news: asyncio.Event, seconds: float) -> bool:
    """Return whether the event was set within that time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await news.wait()
    return False
