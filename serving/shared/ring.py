"""Rings of bytes from each process of the service to one reader: nobody waits, and what is full refuses.

Context: what workers note of every answer is to be written to a disk or a server, which may be slow or away, and a
request must not wait for that; a worker may be killed at any moment, and so may the reader. Decision: a ring for each
slot of the `Book`, in anonymous memory made before the fork. Its process alone moves the head, when a record is whole;
the reader alone moves the tail, when it has stored what it has read. Consequence: no lock; a killed worker loses the
record that it was writing, a killed reader loses nothing, and its successor reads again what was not released. A
process that takes over a slot goes on where the last one ended.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from struct import Struct

from serving.shared.numbers import shared_integers

RING_BYTES = 2 << 20
"""Of one process, for records that are not read yet: 5,000 rows of 30 columns."""

HEAD, TAIL = 0, 8
"""The numbers of a ring; each on a cache line of its own. Both count all bytes that there ever were."""
NUMBERS = 16

LENGTH = Struct("<Q")
"""Before each record; SKIP where the rest of the memory is not used."""
SKIP = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class RingRecord:
    """One record; `ring` and `position` are never those of another one, on no instance."""

    ring: int
    position: int
    content: bytes


class Ring:
    """One process writes, one reads."""

    def __init__(self, size: int) -> None:
        """Of `size` bytes, a multiple of 8. A record has at most half of them."""
        self.id = int.from_bytes(os.urandom(4))
        self.max_record = size // 2 - LENGTH.size
        self._size = size
        self._numbers = shared_integers(NUMBERS)
        self._memory = memoryview(mmap.mmap(-1, size))

    @property
    def head(self) -> int:
        """Bytes that were ever written."""
        return self._numbers[HEAD]

    @property
    def tail(self) -> int:
        """How many of them were released."""
        return self._numbers[TAIL]

    def put(self, record: bytes) -> bool:
        """Write a record; False if there is no room for it. Takes a microsecond."""
        numbers = self._numbers
        head, tail, length = numbers[HEAD], numbers[TAIL], len(record)
        needed = (length + 15) & ~7
        start = head % self._size
        left = self._size - start
        skipped = left if needed > left else 0
        if length > self.max_record or head + skipped + needed - tail > self._size:
            return False
        memory = self._memory
        if skipped:
            LENGTH.pack_into(memory, start, SKIP)
            start = 0
        LENGTH.pack_into(memory, start, length)
        memory[start + 8 : start + 8 + length] = record
        numbers[HEAD] = head + skipped + needed
        return True

    def read(self, max_bytes: int) -> tuple[list[RingRecord], int]:
        """The oldest records, at least one if there is any, and the end to `release` once they are kept."""
        position, head = self._numbers[TAIL], self._numbers[HEAD]
        records: list[RingRecord] = []
        end = position + max_bytes
        while position < head and (position < end or not records):
            start = position % self._size
            (length,) = LENGTH.unpack_from(self._memory, start)
            if length == SKIP:
                position += self._size - start
                continue
            records.append(RingRecord(self.id, position, bytes(self._memory[start + 8 : start + 8 + length])))
            position += (length + 15) & ~7
        return records, position

    def release(self, end: int) -> None:
        """The reader needs nothing before `end` any more."""
        self._numbers[TAIL] = end


class Rings:
    """A ring for each slot of a book but the last, which processes share; made by the `Book`, before the fork."""

    def __init__(self, slots: int, size: int = RING_BYTES) -> None:
        self.all = tuple(Ring(size) for _ in range(slots - 1))
        self.own: Ring | None = None
        """That of this process; None in the master, and where there are too many processes."""

    def enter(self, slot: int) -> None:
        """From now on this process writes to the ring of this slot."""
        self.own = self.all[slot] if slot < len(self.all) else None

    def clear(self, slot: int) -> None:
        """The process of this slot has ended; what it has written stays there for the reader."""
