"""Calls to other servers: one pooled client per process, limited in time, in size and in number.

The settings say which URLs are called, a client of the service never does. Redirects are not followed, no proxy is
taken from the environment, and errors name the host alone: a URL may contain a secret.

httpx 0.28 loses a connection of its pool when a call is cancelled, until none is left; so calls go through `Guard.run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import httpx
import stamina

from serving.errors import OutboundFailed
from serving.storage.guard import Guard, NotTried, PerProcess, ServerUnavailable

TEMPORARY_STATUSES = frozenset({429, 500, 502, 503, 504})
"""Statuses after which another attempt may succeed."""

CLOSING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request. It is tried again if it is `repeatable`; its reply may have `max_bytes`."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] | None = None
    content: bytes = b""
    max_bytes: int = 1 << 20
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Temporary(Exception):
    """The server is unwell; another attempt may succeed."""


class Outbound:
    """The calls of one process. Building it opens nothing, so it may be forked."""

    def __init__(
        self,
        *,
        timeout: float = 5.0,
        deadline: float = 20.0,
        max_connections: int = 10,
        max_calls: int = 50,
        first_wait: float = 0.5,
    ) -> None:
        """Connecting, each write and each read may take `timeout` seconds, one attempt in all `deadline`.

        Three attempts are made, `first_wait` seconds apart at first, then longer, with jitter.
        """
        self._deadline = deadline
        self._max_calls = max_calls
        self._first_wait = first_wait
        self._guards: dict[str, Guard] = {}
        self._client = PerProcess(
            lambda: httpx.AsyncClient(
                timeout=httpx.Timeout(timeout),
                limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=5),
                trust_env=False,
                follow_redirects=False,
            )
        )

    async def fetch(self, call: Call) -> Reply:
        """Return the reply, whatever its status unless that is one of TEMPORARY_STATUSES. Raises OutboundFailed."""
        url = http_url(call.url)
        try:
            async for attempt in stamina.retry_context(
                on=ServerUnavailable,
                attempts=3 if call.repeatable else 1,
                timeout=None,
                wait_initial=self._first_wait,
                wait_jitter=self._first_wait,
            ):
                with attempt:
                    if self.calls >= self._max_calls:
                        raise OutboundFailed("too many calls are running")
                    return await self._guard(url).run(partial(self._send, call, url))
        except NotTried:
            raise OutboundFailed(f"{url.host} has failed several times and is not called for a while") from None
        except ServerUnavailable as error:
            raise OutboundFailed(f"{url.host}: {error}") from None
        raise AssertionError("an attempt returns or raises")

    @property
    def calls(self) -> int:
        """Running calls, including those that nobody waits for any more."""
        return sum(guard.running for guard in self._guards.values())

    async def settle(self) -> None:
        """Wait until no call is running, for CLOSING_SECONDS at most."""
        await asyncio.gather(*(guard.settle(CLOSING_SECONDS) for guard in self._guards.values()))

    async def close(self) -> None:
        """Let calls finish, for CLOSING_SECONDS at most, then disconnect; the next call connects again."""
        client = self._client.release()
        if client is not None:
            await self.settle()
            await client.aclose()
            await self.settle()

    def _guard(self, url: httpx.URL) -> Guard:
        host = url.netloc.decode("ascii", "replace")
        if host not in self._guards:
            self._guards[host] = Guard(
                self._deadline,
                unwell=(_Temporary, httpx.HTTPError, httpx.StreamError, OSError),
                refused=(OutboundFailed,),
                reason=lambda error: str(error) if isinstance(error, _Temporary) else type(error).__name__,
            )
        return self._guards[host]

    async def _send(self, call: Call, url: httpx.URL) -> Reply:
        ends = asyncio.get_running_loop().time() + self._deadline
        # a compressed reply would have to be inflated before its size is known
        headers = {"accept-encoding": "identity", **(call.headers or {})}
        async with self._client.get().stream(call.method, url, headers=headers, content=call.content) as response:
            if response.status_code in TEMPORARY_STATUSES:
                raise _Temporary(f"answers {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise OutboundFailed(f"{url.host} sent a compressed body, which was not asked for")
            body = await _read(response, call.max_bytes, ends)
        return Reply(response.status_code, dict(response.headers.items()), body)


def http_url(text: str) -> httpx.URL:
    """A URL that can be called. Raises OutboundFailed."""
    try:
        urlsplit(text)  # it refuses brackets that httpx lets through
        url = httpx.URL(text)
    except (ValueError, httpx.InvalidURL):
        raise OutboundFailed("invalid URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise OutboundFailed("the URL must start with http:// or https:// and a host")
    return url


async def _read(response: httpx.Response, max_bytes: int, ends: float) -> bytes:
    """Return the body, counted while it arrives; a reply that trickles in is given up at the loop's time `ends`."""
    pieces, size = [], 0
    loop = asyncio.get_running_loop()
    chunks: AsyncIterator[bytes] = response.aiter_raw()
    async with aclosing(chunks):  # type: ignore[type-var]
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise OutboundFailed(f"{response.url.host} sent more than {max_bytes} bytes")
            if loop.time() > ends:
                raise _Temporary("no answer in time")
            pieces.append(chunk)
    return b"".join(pieces)
