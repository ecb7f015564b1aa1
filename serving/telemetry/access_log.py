"""The access log: one line for each request, made without a chain of processors and written in blocks."""

from __future__ import annotations

import select
import sys
import time
from datetime import UTC, datetime
from typing import Any

from serving.shared.turn import Turn
from serving.telemetry.logs import Render, of_request


class AccessLog:
    """Collects the lines of one turn of the event loop, and writes them together.

    Blocks have at most PIPE_BUF bytes, which a pipe takes whole or not at all: lines of other processes come between
    blocks, never into one.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._turn = Turn(_write)
        self._second = 0
        self._second_text = ""

    def add(self, line: dict[str, Any]) -> None:
        """Complete a line with what is known of the current request, and write it at the end of this turn."""
        of_request(line)
        line["level"] = "info"
        line["timestamp"] = self._now()
        self._turn.add(self._render(line) + b"\n")

    def _now(self) -> str:
        """The time as the rest of the log has it; all but its fraction is formatted once a second."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
        return f"{self._second_text}.{int((now - second) * 1e6):06}Z"


def _write(lines: list[bytes]) -> None:
    start, size = 0, 0
    for place, line in enumerate(lines):
        if size + len(line) > select.PIPE_BUF and place > start:
            sys.stdout.buffer.write(b"".join(lines[start:place]))
            start, size = place, 0
        size += len(line)
    sys.stdout.buffer.write(b"".join(lines[start:]))
    sys.stdout.buffer.flush()
