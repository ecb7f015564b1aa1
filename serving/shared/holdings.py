"""What the clients of a box hold at a time, such as open streams or bytes: a number by client, over all processes.

Context: with a count in each of n workers a client may hold n times as much, and what a process had counted when it was
killed must come back. Decision: a count-min sketch (Cormode and Muthukrishnan, 2005) in anonymous memory made before
the fork, with a row for each process, which alone writes it; the master clears the row of one that has ended.
Consequence: no lock and a fixed size. Nobody is counted too low; a client is counted too high only if two others, or
one in four million, share its cells. Two that ask in the same microsecond may both find the last place free.
"""

from __future__ import annotations

import os

import numpy as np

from serving.shared.numbers import shared_integers

WIDTH = 1 << 11
"""Cells in each half of a row: 32 KB a process, of which the pages that nobody uses take no memory."""

TOTAL = 2 * WIDTH
"""The cell after both halves is for all clients."""


class Holdings:
    """Made by the `Book` of processes, before the fork."""

    def __init__(self, slots: int) -> None:
        """With a row for each of so many slots."""
        self._rows = np.frombuffer(shared_integers(slots * (TOTAL + 1)), np.int64).reshape(slots, TOTAL + 1)
        self._own = self._rows[0]
        # clients must not be able to choose their cells; the hash of bytes is the same in all forked processes
        self._salt = os.urandom(16)

    def of(self, client: bytes) -> int:
        """What a client holds in all processes."""
        first, second = self._cells(client)
        return int(min(self._rows[:, first].sum(), self._rows[:, second].sum()))

    def total(self) -> int:
        """What all clients hold in all processes."""
        return int(self._rows[:, TOTAL].sum())

    def add(self, client: bytes, amount: int) -> None:
        """Count more for a client in this process; a negative amount gives back."""
        for cell in (*self._cells(client), TOTAL):
            self._own[cell] += amount

    def enter(self, slot: int) -> None:
        """From now on this process counts in this slot."""
        self._own = self._rows[slot]

    def clear(self, slot: int) -> None:
        """In the master: give back all that the process of this slot, which has ended, still held."""
        self._rows[slot] = 0

    def _cells(self, client: bytes) -> tuple[int, int]:
        number = hash(self._salt + client)
        return number % WIDTH, WIDTH + (number >> 32) % WIDTH
