"""Requests of workers to reload the models, and the master's answers, in shared memory."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal

import msgspec

from serving.errors import CannotReload
from serving.shared.numbers import Number, Numbers

SLOT_BYTES = 32 * 1024
POLL_SECONDS = 0.02


class ReloadOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The changes of a reload. Versions are written `{model}/{version}`; the reasons of refusals begin with it."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    live: dict[str, str] = {}
    seconds: float = 0.0


class Reloads(Numbers):
    """The numbers of reloads that have begun and finished, and the outcome of the last one. Only the master writes.

    Outcomes alternate between two slots, and the number of a reload is written last: no reader sees half of one.
    """

    _master = Number()
    _begun = Number()
    finished = Number()
    """The number of finished reloads."""

    def __init__(self) -> None:
        """To be made before the fork."""
        super().__init__()
        self._slots = memoryview(mmap.mmap(-1, 2 * SLOT_BYTES))

    def open(self) -> None:
        """In the master, before it forks: its children may ask this process."""
        self._master = os.getpid()

    def begin(self) -> None:
        """In the master: changes on disk from now on may be missed."""
        self._begun += 1

    def finish(self, outcome: ReloadOutcome) -> None:
        """In the master: publish the outcome of the reload that has begun."""
        number = self._begun
        content = msgspec.json.encode(outcome)
        if len(content) > SLOT_BYTES:
            content = msgspec.json.encode(ReloadOutcome(refused=("the outcome is too long; see the log",)))
        self._slot(number)[:] = content.ljust(SLOT_BYTES, b"\0")
        self.finished = number

    def last(self) -> ReloadOutcome:
        """The outcome of the last reload; an empty one if there was none."""
        content = bytes(self._slot(self.finished)).rstrip(b"\0")
        return msgspec.json.decode(content, type=ReloadOutcome) if content else ReloadOutcome()

    def _slot(self, number: int) -> memoryview:
        start = number % 2 * SLOT_BYTES
        return self._slots[start : start + SLOT_BYTES]

    def request(self) -> int:
        """Have the master reload; gives the number of the reload that takes in every change made so far.

        A reload that has begun already does not count: it may have missed the latest change. Raises CannotReload when
        the parent of this process is not a master.
        """
        if self._master != os.getppid():
            raise CannotReload
        number = self._begun + 1
        os.kill(self._master, signal.SIGHUP)
        return number

    async def ask(self, seconds: float) -> ReloadOutcome | None:
        """Have the master reload; the outcome, or None if it takes longer than `seconds`. Raises CannotReload."""
        number = self.request()
        try:
            async with asyncio.timeout(seconds):
                while self.finished < number:  # noqa: ASYNC110 - an event cannot cross processes
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return None
        return self.last()
