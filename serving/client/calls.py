"""Sends requests until they are answered: deadlines, retries, and streams that go on where they were cut off."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx
import msgspec

from serving.client.errors import (
    ForkserveError,
    RateLimitedError,
    TimedOutError,
    UnavailableError,
    UnreachableError,
    error_of,
)
from serving.client.events import EventReader, ServerEvent
from serving.client.request import Request
from serving.client.transport import Transport

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0

GRACE_SECONDS = 1.0
"""How much longer than the deadline that was sent an answer is waited for: the service says itself that it is late."""

MIN_SECONDS = 0.001

SILENT_SECONDS = 60.0
"""After so long without a byte, heartbeats included, a stream is taken for lost."""

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Failures before a request is sent: whatever it is, it may be sent again."""

LATE = (httpx.ReadTimeout, httpx.WriteTimeout)

CONNECT_SECONDS = 5.0

PAUSE_SECONDS = 1.0
"""Before a client comes back to a stream that ended and did not say when."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer that is no refusal."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Patience:
    """How long a call may take, and how often it may be tried again."""

    def __init__(self, timeout: float, retries: int) -> None:
        self._ends = time.monotonic() + timeout
        self._retries = retries
        self._timeout = timeout
        self._failures = 0

    def renew(self) -> None:
        """Begin anew: the service has answered."""
        self._ends = time.monotonic() + self._timeout
        self._failures = 0

    def left(self) -> float:
        """Seconds until the deadline. Raises TimedOutError."""
        seconds = self._ends - time.monotonic()
        if seconds <= 0:
            raise TimedOutError(f"no answer within {self._timeout:g} s")
        return max(seconds, MIN_SECONDS)

    def pause(self, error: ForkserveError, *, repeatable: bool) -> float:
        """Seconds to wait before the next try. Raises `error` if there is none, or none in time."""
        self._failures += 1
        seconds = error.retry_after
        if seconds is None:
            longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._failures)
            seconds = random.uniform(longest / 2, longest)  # noqa: S311 - spread, not secret
        if not repeatable or self._failures > self._retries or time.monotonic() + seconds >= self._ends:
            raise error
        return seconds


class Calls:
    """Requests over one transport."""

    def __init__(self, transport: Transport, *, timeout: float, retries: int) -> None:
        self._transport = transport
        self._timeout = timeout
        self._retries = retries

    def patience(self, timeout: float | None = None) -> Patience:
        """That of a call; None for what the client has."""
        return Patience(self._timeout if timeout is None else timeout, self._retries)

    async def sleep(self, seconds: float) -> None:
        await self._transport.sleep(seconds)

    async def send(self, request: Request, timeout: float | None = None) -> Answer:
        """The whole answer to a request. Raises ForkserveError."""
        patience = self.patience(timeout)
        while True:
            try:
                async with self._open(request, patience.left()) as response:
                    content = await self._transport.read(response)
                    return Answer(response.status_code, response.headers, content)
            except ForkserveError as error:
                pause = patience.pause(error, repeatable=_may_repeat(error, request))
            await self.sleep(pause)

    async def stream(
        self, ask_next: Callable[[], Request], timeout: float | None = None
    ) -> AsyncGenerator[ServerEvent, None]:
        """The events of a stream over as many answers as it takes, until the service says that there are no more (204).

        `ask_next` makes the request for what is still missing. Raises ForkserveError.
        """
        patience = self.patience(timeout)
        while True:
            request, reader = ask_next(), EventReader()
            try:
                async with self._open(request, patience.left()) as response:
                    if response.status_code == 204:
                        return
                    async for piece in self._transport.pieces(response):
                        patience.renew()
                        for event in reader.feed(piece):
                            if event.kind == "error":
                                raise error_of(event.data["status"], {}, msgspec.json.encode(event.data))
                            yield event
                pause = PAUSE_SECONDS if reader.retry_seconds is None else reader.retry_seconds
            except ForkserveError as error:
                pause = patience.pause(error, repeatable=_may_repeat(error, request))
            await self.sleep(pause)

    @asynccontextmanager
    async def _open(self, request: Request, seconds: float) -> AsyncIterator[httpx.Response]:
        """The answer to a request that is sent once, unless it is a refusal. Raises ForkserveError."""
        if request.has_deadline:
            request = replace(request, headers={**request.headers, "x-request-timeout": f"{seconds:.3f}"})
            seconds += GRACE_SECONDS
        silent = max(seconds, SILENT_SECONDS) if request.follows else seconds
        try:
            timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS), read=silent)
            async with self._transport.send(request, timeout) as response:
                if response.status_code >= 300:
                    raise error_of(response.status_code, response.headers, await self._transport.read(response))
                yield response
        except LATE as late:
            raise TimedOutError(f"{request.path}: no answer within {silent:g} s") from late
        except httpx.HTTPError as failure:
            raise UnreachableError(f"{request.path}: {failure or type(failure).__name__}") from failure


def _may_repeat(error: ForkserveError, request: Request) -> bool:
    """Return whether a request may be sent again after this error.

    A refusal for its rate has done nothing. A service that is unavailable, and a lost connection, may have done it.
    """
    match error:
        case RateLimitedError():
            return error.retry_after is not None or request.follows
        case UnavailableError():
            return request.repeatable and (error.retry_after is not None or request.follows)
        case UnreachableError():
            return request.repeatable or isinstance(error.__cause__, NOT_SENT)
        case TimedOutError():  # a stream that was silent
            return request.follows and not error.status
        case _:
            return False
