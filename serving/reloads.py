"""What the master tells its workers of reloads, in memory that they share, and how a worker asks for one."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal

import msgspec

from serving.errors import CannotReload

SIZE = 64 * 1024
HEAD = 64
SLOT = (SIZE - HEAD) // 2
POLL_SECONDS = 0.02

MASTER, BEGUN, FINISHED = 0, 1, 2
LENGTHS = (4, 5)
"""Places of the numbers at the head, of 8 bytes each."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload has changed. Versions are written `{model}/{version}`, the reasons of refusals begin with it."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    live: dict[str, str] = {}
    seconds: float = 0.0


class Reloads:
    """How many reloads have begun and finished, and what came of the last one. Only the master writes.

    An outcome is written to one of two places in turn before its number is, so that a reader never sees half of it.
    """

    def __init__(self) -> None:
        """Anonymous shared memory: to be made before the fork."""
        self._memory = memoryview(mmap.mmap(-1, SIZE))
        self._numbers = self._memory[:HEAD].cast("Q")

    def open(self) -> None:
        """In the master, before it forks: this process is to be asked."""
        self._numbers[MASTER] = os.getpid()

    def begin(self) -> None:
        """In the master: whatever is on disk from now on may be missed."""
        self._numbers[BEGUN] += 1

    def finish(self, outcome: Outcome) -> None:
        """In the master: this is what came of it."""
        number = self._numbers[BEGUN]
        content = msgspec.json.encode(outcome)
        if len(content) > SLOT:
            content = msgspec.json.encode(Outcome(refused=("too much to tell; see the log",)))
        start = HEAD + number % 2 * SLOT
        self._memory[start : start + len(content)] = content
        self._numbers[LENGTHS[number % 2]] = len(content)
        self._numbers[FINISHED] = number

    @property
    def finished(self) -> int:
        """How many there were."""
        return self._numbers[FINISHED]

    def last(self) -> Outcome:
        """What came of the last one; an empty outcome when there was none."""
        number = self._numbers[FINISHED]
        if number == 0:
            return Outcome()
        start = HEAD + number % 2 * SLOT
        return msgspec.json.decode(self._memory[start : start + self._numbers[LENGTHS[number % 2]]], type=Outcome)

    async def ask(self, seconds: float) -> Outcome | None:
        """Have the master reload; what came of that, or None if it takes longer than `seconds`.

        One that had begun before is not counted: it may have missed what the caller has just changed.
        Raises CannotReload when this process has no master that has called `open`.
        """
        if self._numbers[MASTER] != os.getppid():
            raise CannotReload
        begun = self._numbers[BEGUN]
        os.kill(os.getppid(), signal.SIGHUP)
        try:
            async with asyncio.timeout(seconds):
                while self._numbers[FINISHED] <= begun:  # noqa: ASYNC110 - no event crosses processes
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return None
        return self.last()
