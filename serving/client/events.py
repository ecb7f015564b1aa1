"""Server-sent events as the service sends them, read from the bytes of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

RESET = "reset"
"""The kind of an event which says that the service has forgotten events before the next one."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """Something that happened; `id` is what to resume after."""

    kind: str
    data: Any
    """Decoded JSON; None for none."""
    id: str = ""

    @property
    def is_reset(self) -> bool:
        """Whether events before the next one are lost: read the state again."""
        return self.kind == RESET


class EventReader:
    """Splits the bytes of one stream into events.

    Lines end where the standard says, not at every character that Unicode takes for a line end: a text in the data may
    hold those.
    """

    def __init__(self) -> None:
        self.retry_seconds: float | None = None
        """How long the service asks to wait before a client comes back."""
        self.last_id = ""
        self._rest = b""
        self._kind = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """The events that are complete now."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if event := self._read(line.removesuffix(b"\r")):
                yield event

    def _read(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._kind = value.decode()
            case b"id":
                self.last_id = value.decode()
            case b"retry" if value.isdigit():
                self.retry_seconds = int(value) / 1000
        return None

    def _end(self) -> ServerEvent | None:
        kind, lines = self._kind or "message", self._data
        self._kind, self._data = "", []
        if not lines:
            return None
        data = b"\n".join(lines)
        return ServerEvent(kind, msgspec.json.decode(data) if data else None, self.last_id)
