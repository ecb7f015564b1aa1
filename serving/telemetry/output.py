"""Standard output and error that never hold up the service: what nobody reads is dropped and counted.

Context: all processes write their log to one pipe, and whoever should read it may stop or end, as in `forkserve serve |
head`. A blocking write then stops every process within some hundred requests, one by one. Decision: `sys.stdout` and
`sys.stderr` write through a description of the pipe of their own that does not block; a shared one would change the
terminal of whoever started the service. Consequence: logging, prints and tracebacks always return, and lines are lost
only if the reader is slower than a pipe's 64 KB are filled.
"""

from __future__ import annotations

import io
import json
import os
import select
import stat
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

WAIT_MILLISECONDS = 5
"""A reader that is only busy for a moment loses nothing."""

WAIT_AGAIN_SECONDS = 1.0
"""Between two such waits of a process."""


class Output(io.RawIOBase):
    """Writes whole lines to a descriptor, or drops them."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._process = os.getpid()
        self._next_wait = 0.0
        self._unreported = 0
        self._is_torn = False
        self.dropped = 0
        """Lines that this process has dropped."""

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, content: ReadableBuffer, /) -> int:
        """Write, or drop and count; never raises, and never waits longer than WAIT_MILLISECONDS."""
        if self._process != os.getpid():  # forked: the parent reports what it has dropped itself
            self._process, self._unreported, self.dropped = os.getpid(), 0, 0
        data = bytes(content)
        notice = self._notice() if self._unreported else b""
        if not self._send(notice + data):
            lines = max(1, data.count(b"\n"))
            self._unreported += lines
            self.dropped += lines
        elif notice:
            self._unreported = 0
        return len(data)

    def _notice(self) -> bytes:
        """The line that says how many are missing before it."""
        notice = {
            "event": "Log lines dropped",
            "lines": self._unreported,
            "pid": self._process,
            "level": "warning",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        return json.dumps(notice).encode() + b"\n"

    def _send(self, data: bytes) -> bool:
        """Return whether all was written; a line that was cut is at least ended before the next."""
        if self._is_torn:
            data = b"\n" + data
        sent = self._attempt(data)
        if 0 < sent < len(data) or (not sent and self._has_waited()):
            sent += self._attempt(data[sent:])
        if sent:
            self._is_torn = sent < len(data)
        return sent == len(data)

    def _attempt(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError:  # full, closed by its reader, or on a disk that is full
            return 0

    def _has_waited(self) -> bool:
        """Wait for the reader, now and then; return whether it has read."""
        now = time.monotonic()
        if now < self._next_wait:
            return False
        self._next_wait = now + WAIT_AGAIN_SECONDS
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLOUT)
        with suppress(OSError):
            return bool(waiting.poll(WAIT_MILLISECONDS))
        return False


def protect_output() -> None:
    """Have this process, and those that it forks, write without waiting; may be called again.

    Nothing changes where standard output is no descriptor of the process, as under a test.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            if stream.fileno() != descriptor or isinstance(stream.buffer, Output):
                continue
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
        _make_unblocking(descriptor)
        protected = io.TextIOWrapper(
            cast("BinaryIO", Output(descriptor)),  # unbuffered, as under `python -u`
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, protected)


def dropped_lines() -> int:
    """Lines that this process has dropped."""
    buffers = (getattr(stream, "buffer", None) for stream in (sys.stdout, sys.stderr))
    return sum(buffer.dropped for buffer in buffers if isinstance(buffer, Output))


def _make_unblocking(descriptor: int) -> None:
    """Replace the descriptor of a pipe or terminal by one of its own; a file never blocks for long.

    A socket cannot be opened anew: it is set not to block, which is of its nature less shared.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        os.set_blocking(descriptor, False)
    if not (stat.S_ISFIFO(mode) or os.isatty(descriptor)):
        return
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # of another user, or no /proc: better shared than blocked
        os.set_blocking(descriptor, False)
        return
    os.dup2(own, descriptor, inheritable=True)
    os.close(own)
