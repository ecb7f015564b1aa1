"""Alerts: always a line in the log, and a message to a webhook if one is configured.

Context: things go wrong in the master, in web workers and in runners; the master has no event loop and may have no
thread. Decision: an alert is a datagram on a socket pair made before the fork; any free web worker sends it on or,
where there are no web workers, a process of its own. Consequence: an alert costs microseconds, never waits and works in
every process; when no process is left to send it, the line in the log remains.
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
from serving.shared.log_tail import LogTail
from serving.shared.rate_table import Rate, RateTable
from serving.storage.http import Call, Outbound

log = structlog.get_logger(__name__)

Form = Literal["discord", "slack"]

ALERTED: Mapping[str, str] = {
    "Redis is unavailable; continuing without it": "redis",
    "Job store unavailable": "jobs",
    "Events cannot be read": "events",
    "Supabase is unavailable": "records",
    "Outcomes lost": "outcomes",
    "Runner died": "runner",
    "Scheduler died": "runner",
    "Version left out": "reload",
    "Reload refused": "reload",
    "Reload failed": "reload",
    "Fallback model in use": "fallback",
    "Inference thread is stuck": "stuck",
    "Canary has gone back": "canary",
}
"""Log events that are alerts, and the kind of each; the code that logs one knows nothing of alerts."""

RATE_PER_KIND = Rate(1, 300.0, 1)
RATE_IN_ALL = Rate(30, 3600.0, 10)
"""Both count the messages of all processes together."""

MAX_MESSAGE_CHARACTERS = 1500
"""Discord takes 2,000."""
MAX_MESSAGE_BYTES = 4 * MAX_MESSAGE_CHARACTERS

DETAILS = frozenset({"reason", "error", "code"})
"""Fields of a log event that its message repeats."""

LEVELS = frozenset({"warning", "error"})


class Alerts:
    """To be made before the fork. Any process may alert; those that `start` or `run` it send."""

    def __init__(self, outbound: Outbound, url: str, form: Form, *, name: str) -> None:
        """`url` is secret; without one alerts are only logged. Messages begin with `name`."""
        self.outbound = outbound
        self.tail = LogTail()
        self._url = url
        self._form: Form = form
        self._name = name
        self._kinds = RateTable(RATE_PER_KIND, buckets=32)
        self._all = RateTable(RATE_IN_ALL, buckets=1)
        self._outlet: socket.socket | None = None
        self._inlet: socket.socket | None = None
        if url:
            # datagrams: workers that read at once get whole messages, and one that finds the queue full is dropped
            self._outlet, self._inlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in (self._outlet, self._inlet):
                end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        self._sending: asyncio.Task[None] | None = None

    @property
    def descriptor(self) -> int | None:
        """The file descriptor that a forked process must keep open to alert."""
        return self._inlet.fileno() if self._inlet else None

    @property
    def outlet(self) -> int | None:
        """The file descriptor that a forked process must keep open to send."""
        return self._outlet.fileno() if self._outlet else None

    def alert(self, kind: str, message: str) -> None:
        """Log a message, and have it sent unless one of its `kind` was sent a short while ago."""
        log.warning("Alert", kind=kind, message=message)
        self._queue(kind, message)

    def watch(self, _logger: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A structlog processor that keeps warnings and errors, and alerts on the events of ALERTED."""
        if level in LEVELS:
            self.tail.note(level, event)
        if level in LEVELS and (kind := ALERTED.get(event["event"])) is not None:
            details = ", ".join(f"{name}={value}" for name, value in event.items() if name in DETAILS)
            self._queue(kind, f"{event['event']} ({details})" if details else event["event"])
        return event

    def _queue(self, kind: str, message: str) -> None:
        if self._inlet and self._kinds.count(kind.encode()).allowed and self._all.count(b"").allowed:
            try:
                self._inlet.send(message[:MAX_MESSAGE_CHARACTERS].encode("utf-8", "replace"))
            except OSError:
                log.warning("Alert dropped: no process is sending", kind=kind)

    def start(self) -> None:
        """In a web worker's event loop: send the alerts of all processes."""
        if self._outlet:
            self._sending = asyncio.get_running_loop().create_task(self._send(self._outlet))

    async def stop(self) -> None:
        """Stop sending; unsent alerts are left to other workers."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            self._sending = None

    def run(self) -> None:
        """In a process of its own: send the alerts of all processes, until it is killed."""
        assert self._outlet is not None
        asyncio.run(self._send(self._outlet))

    def close(self) -> None:
        """Close the sockets: from now on alerts are only logged."""
        for end in (self._outlet, self._inlet):
            if end is not None:
                end.close()
        self._outlet = self._inlet = None

    async def _send(self, outlet: socket.socket) -> None:
        while True:
            content = await asyncio.get_running_loop().sock_recv(outlet, MAX_MESSAGE_BYTES)
            try:
                reply = await self.outbound.fetch(self._call(content.decode()))
                if reply.status >= 300:
                    log.warning("Alert webhook returned an error", status=reply.status)
            except OutboundFailed:
                log.warning("Alert webhook is unavailable")  # without a reason: even the host is secret

    def _call(self, message: str) -> Call:
        content = msgspec.json.encode(body(self._form, f"{self._name}: {message}"))
        headers = {"content-type": "application/json"}
        # repeatable: the same message twice is better than none
        return Call(self._url, "POST", headers, content, max_bytes=64 * 1024, repeatable=True)


def body(form: Form, text: str) -> dict[str, Any]:
    """The JSON for a webhook; it notifies no user, even if the text contains a mention."""
    if form == "discord":
        return {"content": text, "allowed_mentions": {"parse": []}}
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def form_of(url: str, asked: str) -> Form:
    """The form `asked` for; `auto` recognizes Discord's URLs, all others get Slack's, which most services accept."""
    if asked in ("discord", "slack"):
        return "discord" if asked == "discord" else "slack"
    host = urlsplit(url).hostname or ""
    known = ("discord.com", "discordapp.com")
    return "discord" if host in known or host.endswith(tuple(f".{name}" for name in known)) else "slack"
