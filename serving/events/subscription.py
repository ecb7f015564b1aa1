"""One client's way through the log: first what it has missed, then what happens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from serving.events.log import RESET, Event, Page

PAGE = 50


class Source(Protocol):
    """What a subscription needs of its hub."""

    async def replay(self, topic: str | None, after: int, limit: int) -> Page: ...
    async def attach(self, stream: Subscription) -> None: ...
    def remove(self, stream: Subscription) -> None: ...


class Subscription:
    """An asynchronous iterator over events, for one reader; it ends when it is closed or cut.

    Events are missing only after one of the kind RESET, whose id is where the log begins now. The way from the log to
    the queue has no gap: once a page shows that the log has been read to its end, the queue is attached, and the log is
    read again; whatever comes later than that is in the queue, and what is in both is known by its id.
    """

    __slots__ = (
        "_attached",
        "_clock",
        "_follow",
        "_hub",
        "_live",
        "_page",
        "_queue",
        "_queue_size",
        "_waiter",
        "address",
        "complete",
        "ended",
        "position",
        "topic",
        "touched",
    )

    def __init__(
        self,
        hub: Source,
        topic: str | None,
        after: int | None,
        address: str,
        *,
        follow: bool,
        queue_size: int,
        clock: Callable[[], float],
    ) -> None:
        self.topic = topic
        self.address = address
        self.position = after
        """The id of the last event that was handed over; what `Last-Event-ID` should be. None until it is opened."""
        self.ended = False
        self.complete = False
        """Whether it has ended because the log has, for who does not follow."""
        self.touched = clock()
        self._hub = hub
        self._follow = follow
        self._clock = clock
        self._queue_size = queue_size
        self._page: deque[Event] | None = None
        self._queue: deque[Event] | None = None  # an empty deque takes 700 bytes, and most streams are quiet
        self._attached = self._live = False
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Subscription:
        try:
            await self._open()
        except BaseException:
            self.cut()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """The next event; waits for it. Raises StoreUnavailable while it still reads from the log."""
        await self._open()
        while not self.ended:
            event = self._take()
            if event is not None:
                self.position = event.id
                self.touched = self._clock()
                return event
            if self._live:
                await self._wait()
            else:
                await self._replay()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it; may be called more than once."""
        self.cut()

    def put(self, event: Event) -> None:
        """What the hub's reader brings. A client whose queue is full is cut off."""
        if self._queue is None:
            self._queue = deque()
        if len(self._queue) >= self._queue_size:
            self.cut()
            return
        self._queue.append(event)
        self._wake()

    def cut(self) -> None:
        """End it, from whatever side; what is still in the queue is read from the log when the client resumes."""
        self.ended = True
        self._page = self._queue = None
        self._hub.remove(self)
        self._wake()

    async def _open(self) -> None:
        if self.position is None:
            self.position = (await self._hub.replay(self.topic, 0, 0)).latest

    def _take(self) -> Event | None:
        """The next event that is at hand and was not handed over before."""
        if self._page:
            return self._page.popleft()
        self._page = None
        while self._live and self._queue:
            event = self._queue.popleft()
            if event.id > (self.position or 0):
                return event
        if self._live:
            self._queue = None
        return None

    async def _replay(self) -> None:
        """Read one more page, and go live after the last one."""
        after = self.position or 0
        page = await self._hub.replay(self.topic, after, PAGE)
        if self.ended:
            return
        self._page = deque(page.events)
        if page.is_gap(after):
            # not live yet: what comes after the floor is read next
            self._page = deque([Event(page.floor, self.topic or "", RESET, b"")])
        elif len(page.events) < PAGE and not self._follow:
            if not page.events:
                self.complete = True
                self.cut()
        elif len(page.events) < PAGE:
            if self._attached:
                self._live = True
            else:
                await self._hub.attach(self)
                self._attached = True

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
