"""Reads large JSON arrays in pieces, so that one request's body does not keep the event loop from other clients."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from registry.rows.schema import MAX_LEVELS

TURN_SECONDS = 0.005
"""Seconds that one request may keep the event loop at a stretch."""

PIECE_BYTES = 8 * 1024
"""Bytes of JSON that are decoded without looking at the clock: at most some milliseconds, whatever they are."""

ELEMENT_LEVELS = MAX_LEVELS - 2
"""Levels of arrays and objects within an element of an array in a body."""

SLOW_NUMBER = re.compile(rb"[eE][-+]?0*[1-9][0-9]{2}")
"""The exponent of a number such as 1e308, for which msgspec takes 13 us: 4 MB of them would take 9 s."""


class Turns:
    """Long work is cut into pieces, far smaller than TURN_SECONDS; `pause` comes between them."""

    def __init__(self, check_client: Callable[[], None] = lambda: None) -> None:
        """`check_client` raises an error, which ends the work, when there is nobody left to answer."""
        self._check_client = check_client
        self._since = time.perf_counter()

    async def pause(self) -> None:
        """Let others have their turn if the last time was TURN_SECONDS ago. Raises what `check_client` raises."""
        if time.perf_counter() - self._since >= TURN_SECONDS:
            await asyncio.sleep(0)
            self._check_client()
            self._since = time.perf_counter()


class ElementTooLarge(Exception):
    """An element of an array is larger, or nested deeper, than any that fits; `rest` begins with it."""

    def __init__(self, index: int, rest: bytes, limit: int) -> None:
        self.is_deep = len(rest) <= limit
        super().__init__("is nested too deeply" if self.is_deep else f"has more than {limit} bytes")
        self.index = index
        self.rest = rest


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring elements of an array, as an array of their own."""

    content: bytes
    first: int
    """The index of its first element."""
    count: int

    @property
    def kind(self) -> bytes:
        """The byte with which its first element begins."""
        return self.content[1:].lstrip()[:1]


def split(array: bytes | msgspec.Raw, max_element_bytes: int) -> Iterator[Piece]:
    """Pieces of about PIECE_BYTES, or of one element that is larger, of a valid JSON array.

    Raises ElementTooLarge for an element that is larger than `max_element_bytes`, or nested deeper than ELEMENT_LEVELS.
    """
    text = memoryview(array)
    end = len(text) - 1
    position = start = 1
    first = count = 0
    while position < end:
        found = _ELEMENT.match(text, position, min(end, position + max_element_bytes))
        if found is None or (found.end() < end and not found[2]):
            rest = text[position:end].tobytes().strip()
            if not rest:
                return  # an empty array
            raise ElementTooLarge(first + count, rest, max_element_bytes)
        position, count = found.end(), count + 1
        if position - start >= PIECE_BYTES or position >= end:
            yield Piece(b"".join((b"[", text[start : found.end(1)], b"]")), first, count)
            start, first, count = position, first + count, 0


def _element() -> str:
    """A regular expression of one JSON value; possessive, so that it takes a time proportional to its length."""
    string, plain = r'"(?:[^"\\]++|\\.)*+"', r'[^"\[\]{}]++'
    container = r"(?!)"
    for _ in range(ELEMENT_LEVELS):
        container = rf"[\[{{](?:{string}|{plain}|{container})*+[\]}}]"
    return rf'{container}|{string}|[^"\[\]{{}},\s]++'


_ELEMENT = re.compile(rf"\s*+({_element()})\s*+(,?)".encode(), re.DOTALL)


def finite_number(text: str) -> float:
    """The `float_hook` of a decoder: reads any number in less than a microsecond. Raises DecodeError."""
    number = float(text)
    if math.isinf(number):
        raise msgspec.DecodeError("Number out of range")
    return number
