"""Calls to elsewhere: one pooled client a process, bounded in time, in size and in number.

Where it calls is the settings' affair, never a client's. Nothing is followed to another address, no proxy is taken from
the environment, and what goes wrong is told by the host's name alone: an address may hold a secret.

httpx 0.28 loses a connection of its pool when a call is cancelled, until none is left. So a call runs in a task of its
own that nobody cancels: who gives up waiting leaves it to its own timeouts.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import httpx
import stamina

from cache.breaker import Breaker, State
from serving.errors import OutboundFailed

PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses that another attempt may change."""

CLOSING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask of whom. One that may be repeated is tried again; a reply may have `max_bytes`."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] | None = None
    content: bytes = b""
    max_bytes: int = 1 << 20
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Passing(OutboundFailed):
    """Another attempt may succeed."""


class Outbound:
    """The calls of one process. Building it opens nothing, so it may be forked."""

    def __init__(
        self,
        *,
        timeout: float = 5.0,
        deadline: float = 20.0,
        max_connections: int = 10,
        max_calls: int = 50,
        attempts: int = 3,
        first_wait: float = 0.5,
        breaker: Callable[[], Breaker] = Breaker,
    ) -> None:
        """Connecting, each write and each read may take `timeout` seconds, an attempt in all `deadline`.

        A call is tried `attempts` times, `first_wait` seconds apart at first, then longer, with jitter. `breaker` makes
        one for each host.
        """
        self._timeout = timeout
        self._deadline = deadline
        self._max_connections = max_connections
        self._max_calls = max_calls
        self._attempts = attempts
        self._first_wait = first_wait
        self._new_breaker = breaker
        self._breakers: dict[str, Breaker] = {}
        self._running: set[asyncio.Task[Reply]] = set()
        self._client: httpx.AsyncClient | None = None
        self._process = 0

    async def fetch(self, call: Call) -> Reply:
        """The reply, whatever its status unless that is one of PASSING. Raises OutboundFailed."""
        try:
            url = httpx.URL(call.url)
        except httpx.InvalidURL:
            raise OutboundFailed("the address is none") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise OutboundFailed("only http and https are spoken")
        attempts = self._attempts if call.repeatable else 1
        async for attempt in stamina.retry_context(
            on=_Passing, attempts=attempts, timeout=None, wait_initial=self._first_wait, wait_jitter=self._first_wait
        ):
            with attempt:
                return await self._try(call, url)
        raise AssertionError("an attempt returns or raises")

    def states(self) -> dict[str, State]:
        """Of the breaker of each host."""
        return {host: breaker.state for host, breaker in self._breakers.items()}

    @property
    def connections(self) -> int:
        """That are open now, for metrics."""
        pool = getattr(getattr(self._client, "_transport", None), "_pool", None)
        return len(pool.connections) if pool is not None else 0

    @property
    def calls(self) -> int:
        """That are under way, those included that nobody waits for any more."""
        return len(self._running)

    async def settle(self) -> None:
        """Wait a moment until no call is under way."""
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSING_SECONDS)

    async def close(self) -> None:
        """Let calls come to their end for a moment, then disconnect; the next call connects again."""
        if self._client is None or self._process != os.getpid():
            return
        client, self._client = self._client, None
        await self.settle()
        await client.aclose()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _try(self, call: Call, url: httpx.URL) -> Reply:
        """One attempt."""
        breaker = self._breakers.setdefault(url.netloc.decode("ascii", "replace"), self._new_breaker())
        if len(self._running) >= self._max_calls:
            raise OutboundFailed("too many calls are under way")
        period = breaker.begin()
        if period is None:
            raise OutboundFailed(f"{url.host} has failed before and is left alone for a while")
        task = asyncio.get_running_loop().create_task(self._send(call, url))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(_look_at)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._deadline)
        except BaseException:
            breaker.abandoned(period)
            raise
        failure = task.exception() if done else _Passing(f"{url.host} does not answer in time")
        if isinstance(failure, _Passing):
            breaker.failed(period)
        else:
            breaker.succeeded(period)
        if failure is not None:
            raise failure
        return task.result()

    async def _send(self, call: Call, url: httpx.URL) -> Reply:
        ends = asyncio.get_running_loop().time() + self._deadline
        # a compressed reply would have to be inflated before its size is known
        headers = {"accept-encoding": "identity", **(call.headers or {})}
        try:
            async with self._opened().stream(call.method, url, headers=headers, content=call.content) as response:
                if response.status_code in PASSING:
                    raise _Passing(f"{url.host} answers {response.status_code}")
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise OutboundFailed(f"{url.host} sends what nobody asked for: a compressed body")
                body = await _read(response, call.max_bytes, ends)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise _Passing(f"{url.host} cannot be asked: {type(error).__name__}") from None
        return Reply(response.status_code, dict(response.headers.items()), body)

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None or self._process != os.getpid():
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(self._timeout),
                limits=httpx.Limits(max_connections=self._max_connections, max_keepalive_connections=5),
                trust_env=False,
                follow_redirects=False,
            )
            self._process = os.getpid()
        return self._client


async def _read(response: httpx.Response, max_bytes: int, ends: float) -> bytes:
    """The body, counted while it arrives; a reply that drips is not waited for after the loop's time `ends`."""
    pieces, size = [], 0
    loop = asyncio.get_running_loop()
    chunks: AsyncIterator[bytes] = response.aiter_raw()
    async with aclosing(chunks):  # type: ignore[type-var]
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise OutboundFailed(f"{response.url.host} sends more than {max_bytes} bytes")
            if loop.time() > ends:
                raise _Passing(f"{response.url.host} does not answer in time")
            pieces.append(chunk)
    return b"".join(pieces)


def _look_at(task: asyncio.Task[Reply]) -> None:
    """Somebody has to look at the error of a call that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
