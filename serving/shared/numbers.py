"""Numbers in memory that processes share: anonymous, made before the fork, zero at first, gone with the last process.

A number takes 8 bytes and is read and written whole, so a reader needs no lock. Adding to one is two steps: each number
has a single process that writes it.
"""

from __future__ import annotations

import mmap

NUMBER_BYTES = 8


def shared_integers(length: int) -> memoryview[int]:
    """Unsigned integers of 64 bits."""
    return memoryview(mmap.mmap(-1, length * NUMBER_BYTES)).cast("Q")


def shared_floats(length: int) -> memoryview[float]:
    """Floats of 64 bits."""
    return memoryview(mmap.mmap(-1, length * NUMBER_BYTES)).cast("d")


class Number:
    """One field of a class derived from Numbers: an unsigned integer of 64 bits."""

    def __set_name__(self, owner: type[Numbers], name: str) -> None:
        self._index = owner.length
        owner.length += 1

    def __get__(self, numbers: Numbers, owner: type[Numbers]) -> int:
        return numbers.shared[self._index]

    def __set__(self, numbers: Numbers, value: int) -> None:
        numbers.shared[self._index] = value


class Numbers:
    """Shared numbers under names: `class Doors(Numbers): opened = Number()`, then `doors.opened += 1`."""

    length = 0

    def __init__(self) -> None:
        self.shared = shared_integers(self.length)
