"""The two ways to the service: one blocks, the other suspends. Both speak the same coroutines.

Context: a client for threads and one for event loops would be every operation twice. Decision: an operation is one
coroutine that awaits only its transport. `Blocking` never suspends, so the coroutine runs to its end in one step
(`finish`); `Suspending` is awaited as usual. Consequence: nothing in between may await anything else.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

import anyio
import httpx

from serving.client.request import Request

T = TypeVar("T")


class Transport(Protocol):
    """What operations await."""

    def send(self, request: Request, timeout: httpx.Timeout) -> AbstractAsyncContextManager[httpx.Response]:
        """The answer to a request, with its body unread. Raises httpx.HTTPError."""
        ...

    async def read(self, response: httpx.Response) -> bytes:
        """The whole body of an answer."""
        ...

    def pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body of an answer as it arrives."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class Blocking:
    """Blocks its thread; none of its coroutines ever suspends."""

    def __init__(self, **options: Any) -> None:
        self.http = httpx.Client(**options)

    @asynccontextmanager
    async def send(self, request: Request, timeout: httpx.Timeout) -> AsyncIterator[httpx.Response]:
        content = request.content() if callable(request.content) else request.content
        with self.http.stream(request.method, request.path, content=content, **_options(request, timeout)) as response:
            yield response

    async def read(self, response: httpx.Response) -> bytes:
        return response.read()

    async def pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        for piece in response.iter_bytes():
            yield piece

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - this is the transport that blocks


class Suspending:
    """Suspends its task, on asyncio or trio."""

    def __init__(self, **options: Any) -> None:
        self.http = httpx.AsyncClient(**options)

    @asynccontextmanager
    async def send(self, request: Request, timeout: httpx.Timeout) -> AsyncIterator[httpx.Response]:
        content = _read_apart(request.content()) if callable(request.content) else request.content
        async with self.http.stream(
            request.method, request.path, content=content, **_options(request, timeout)
        ) as response:
            yield response

    async def read(self, response: httpx.Response) -> bytes:
        return await response.aread()

    async def pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for piece in response.aiter_bytes():
            yield piece

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def _options(request: Request, timeout: httpx.Timeout) -> dict[str, Any]:
    return {
        "params": {name: value for name, value in request.query.items() if value is not None},
        "headers": request.headers,
        "timeout": timeout,
    }


async def _read_apart(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces that may come from a disk, which the event loop should not wait for."""
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece


def finish(coroutine: Awaitable[T]) -> T:
    """The result of a coroutine that never suspends."""
    steps = coroutine.__await__()
    try:
        next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a blocking client awaited something other than its transport")
