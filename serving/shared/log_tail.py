"""The last warnings and errors that all processes have logged, in memory that they share."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from serving.shared.numbers import Number, Numbers

EVENTS, EVENT_BYTES = 100, 1024

MAX_FIELD_CHARACTERS = 200

_encode = msgspec.json.Encoder(enc_hook=repr).encode


class LogTail(Numbers):
    """A ring of events; to be made before the fork.

    Without a lock, that a killed process could hold for ever: of two events that are noted at the same instant, one may
    be lost. Half a one is never shown, because it is no JSON.
    """

    _noted = Number()

    def __init__(self) -> None:
        super().__init__()
        self._slots = memoryview(mmap.mmap(-1, EVENTS * EVENT_BYTES))

    def note(self, level: str, event: Mapping[str, Any]) -> None:
        """Keep an event with as many of its fields as there is room for; tracebacks and long texts are cut."""
        kept = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "pid": os.getpid()}
        content = b""
        for name, value in event.items():
            longer = _encode({**kept, name: _short(name, value)})
            if len(longer) <= EVENT_BYTES:
                kept[name], content = _short(name, value), longer
        number = self._noted
        self._noted = number + 1
        self._slot(number)[:] = content.ljust(EVENT_BYTES, b"\0")

    def events(self) -> list[dict[str, Any]]:
        """The events that are kept, the newest first."""
        noted, found = self._noted, []
        for number in range(noted - 1, max(0, noted - EVENTS) - 1, -1):
            with suppress(msgspec.DecodeError):
                found.append(msgspec.json.decode(bytes(self._slot(number)).rstrip(b"\0"), type=dict[str, Any]))
        return found

    def _slot(self, number: int) -> memoryview:
        start = number % EVENTS * EVENT_BYTES
        return self._slots[start : start + EVENT_BYTES]


def _short(name: str, value: Any) -> Any:
    if name == "exc_info":
        return "see the log" if value else None
    if isinstance(value, int | float | None):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_FIELD_CHARACTERS else f"{text[:MAX_FIELD_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
