"""Tells people what they have to know at once: a line in the log always, and a message to a webhook where there is one.

Context: what goes wrong does so in the master, in a web worker or in a runner; the master has no event loop and may
have no thread. Decision: an alert is a datagram on a socket pair made before the fork, and whichever web worker is free
sends it on, or, where none are, a process of its own. Consequence: telling costs microseconds, never waits and works
everywhere; where nobody is left to send it, the line in the log remains.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import structlog

from serving.errors import OutboundFailed
from serving.shared.rate_table import Rate, SharedTable
from serving.storage.http import Call, Outbound

log = structlog.get_logger(__name__)

Form = Literal["discord", "slack"]

ALERTED: Mapping[str, str] = {
    "Redis is unavailable; continuing without it": "redis",
    "Jobs are out of reach": "jobs",
    "Events cannot be read": "events",
    "Supabase is unavailable": "records",
    "Outcomes lost": "outcomes",
    "Runner died": "runner",
    "Scheduler died": "runner",
    "Reload refused": "reload",
    "Reload failed": "reload",
    "Fallback model in use": "fallback",
    "Inference thread is stuck": "stuck",
}
"""The lines of the log that are alerts, and of which kind. Whoever logs one need not know of it."""

REPEAT = Rate(1, 300.0, 1)
"""Of one kind, all processes together."""

ALTOGETHER = Rate(30, 3600.0, 10)

LONGEST = 1500
"""Characters of a message; Discord takes 2,000."""

DETAILS = frozenset({"reason", "error", "code"})
"""What else of a line people are told."""

LEVELS = frozenset({"warning", "error"})


class Alerts:
    """To be made before the fork. `start` and `stop`, or `run`, are for who sends; all else is for any process."""

    def __init__(
        self,
        outbound: Outbound,
        url: str,
        form: Form,
        *,
        name: str = "forkserve",
        repeat: Rate = REPEAT,
        altogether: Rate = ALTOGETHER,
    ) -> None:
        """`url` is a secret; without one there is nothing but the log. `name` says who speaks."""
        self.outbound = outbound
        self._url = url
        self._form: Form = form
        self._name = name
        self._kinds = SharedTable(repeat, buckets=32)
        self._all = SharedTable(altogether, buckets=1)
        self._pair = _pair() if url else None
        self._sending: asyncio.Task[None] | None = None

    @property
    def descriptor(self) -> int | None:
        """What a forked process has to keep that closes all others, to tell."""
        return self._pair[1].fileno() if self._pair else None

    @property
    def outlet(self) -> int | None:
        """The same, to send on."""
        return self._pair[0].fileno() if self._pair else None

    def alert(self, kind: str, message: str) -> None:
        """Log a message, and tell people unless one of its `kind` has been told of a short while ago."""
        log.warning("Alert", kind=kind, message=message)
        self._tell(kind, message)

    def watch(self, _logger: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A structlog processor: what is logged and stands in ALERTED is an alert."""
        if level in LEVELS and (kind := ALERTED.get(event["event"])) is not None:
            details = ", ".join(f"{name}={value}" for name, value in event.items() if name in DETAILS)
            self._tell(kind, f"{event['event']} ({details})" if details else event["event"])
        return event

    def _tell(self, kind: str, message: str) -> None:
        if self._pair and self._kinds.count(kind.encode()).allowed and self._all.count(b"").allowed:
            try:
                self._pair[1].send(message[:LONGEST].encode("utf-8", "replace"))
            except OSError:
                log.warning("Alert is dropped", kind=kind)  # nobody sends them on at the moment

    def start(self) -> None:
        """In a web worker's event loop: send on what anybody tells."""
        if self._pair:
            self._sending = asyncio.get_running_loop().create_task(self._send_on(self._pair[0]))

    async def stop(self) -> None:
        """Send no more; what is not yet sent is another worker's."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            self._sending = None

    def run(self) -> None:
        """In a process of its own: send on what anybody tells, until it is ended."""
        assert self._pair is not None
        asyncio.run(self._send_on(self._pair[0]))

    def close(self) -> None:
        """Tell nobody any more."""
        for end in self._pair or ():
            end.close()
        self._pair = None

    async def _send_on(self, outlet: socket.socket) -> None:
        while True:
            message = await _next(outlet)
            try:
                reply = await self.outbound.fetch(self._call(message))
                if reply.status >= 300:
                    log.warning("Alert is not taken", status=reply.status)
            except OutboundFailed:
                log.warning("Alert cannot be sent")  # not why: not even the host is for everybody who reads logs

    def _call(self, message: str) -> Call:
        content = msgspec.json.encode(body(self._form, f"{self._name}: {message}"))
        headers = {"content-type": "application/json"}
        # twice the same message is better than none
        return Call(self._url, "POST", headers, content, max_bytes=64 * 1024, repeatable=True)


def body(form: Form, text: str) -> dict[str, Any]:
    """What a webhook takes. Nobody is called by name, whatever the text holds."""
    if form == "discord":
        return {"content": text, "allowed_mentions": {"parse": []}}
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def form_of(url: str, asked: str) -> Form:
    """The form that is `asked` for; `auto` goes by the address, and Slack's is what most others understand."""
    if asked in ("discord", "slack"):
        return "discord" if asked == "discord" else "slack"
    host = urlsplit(url).hostname or ""
    known = ("discord.com", "discordapp.com")
    return "discord" if host in known or host.endswith(tuple(f".{name}" for name in known)) else "slack"


def _pair() -> tuple[socket.socket, socket.socket]:
    """Where alerts come out, and where they go in.

    As datagrams: workers that read at the same time get whole messages, and what finds no room is not waited for.
    """
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in pair:
        end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    return pair


async def _next(outlet: socket.socket) -> str:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return outlet.recv(8 * LONGEST).decode()
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(outlet.fileno(), _wake, readable)
            try:
                await readable
            finally:
                loop.remove_reader(outlet.fileno())


def _wake(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
