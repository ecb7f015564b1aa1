"""What the master tells its workers of reloads, in memory that they share, and how a worker asks for one."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import secrets
import signal
import tempfile
import time

import msgspec

from serving.errors import CannotReload

SIZE = 64 * 1024
HEAD = 128
SLOT = (SIZE - HEAD) // 2
POLL_SECONDS = 0.02

MASTER, BEGUN, FINISHED = 0, 1, 2
LENGTHS = (4, 5)
HEARD, TOLD, SAID, OWN = 6, 7, 8, 9
"""Places of the numbers at the head, of 8 bytes each."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload has changed. Versions are written `{model}/{version}`, the reasons of refusals begin with it."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    live: dict[str, str] = {}
    seconds: float = 0.0


class Reloads:
    """How many reloads have begun and finished, and what came of the last one. Only the master writes that.

    An outcome is written to one of two places in turn before its number is, so that a reader never sees half of it.
    Who listens for the other instances keeps here what it has heard and said, so that its successor goes on from there.
    """

    def __init__(self) -> None:
        """Anonymous shared memory: to be made before the fork."""
        self._memory = memoryview(mmap.mmap(-1, SIZE))
        self._numbers = self._memory[:HEAD].cast("Q")
        with tempfile.TemporaryFile() as file:
            self._lock = os.dup(file.fileno())  # open as long as this process lives
        self.instance = secrets.token_hex(8)
        """What this master and its workers are called among instances."""
        self.made = time.time()
        """When the models were about to be loaded, in seconds since the epoch."""

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
        """Have the master reload; what came of that, or None if it takes longer than `seconds`. Raises CannotReload."""
        return await self.wait(self.request(), seconds)

    def request(self, *, told: bool = False) -> int:
        """Have the master reload; the number of the reload that counts. `told` if another instance wants it.

        One that had begun before does not count: it may have missed what the caller has just changed.
        Raises CannotReload when this process has no master that has called `open`.
        """
        if not self.has_master:
            raise CannotReload
        number = self._numbers[BEGUN] + 1
        self._numbers[TOLD if told else OWN] = number
        os.kill(os.getppid(), signal.SIGHUP)
        return number

    async def wait(self, number: int, seconds: float) -> Outcome | None:
        """What came of that reload, or of one after it; None if it takes longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self._numbers[FINISHED] < number:  # noqa: ASYNC110 - no event crosses processes
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return None
        return self.last()

    @property
    def has_master(self) -> bool:
        """Whether the parent of this process is a master that can be asked."""
        return self._numbers[MASTER] == os.getppid()

    @property
    def unsaid(self) -> int | None:
        """The number of the last reload, if other instances have to be told of it: not if one of them wanted it."""
        finished, said = self._numbers[FINISHED], self._numbers[SAID]
        if finished <= said:
            return None
        # a signal on top of one that waits to be handled is lost: one reload may be for both
        if finished - said == 1 and finished == self._numbers[TOLD] and not said < self._numbers[OWN] <= finished:
            self._numbers[SAID] = finished
            return None
        return finished

    def note_said(self, number: int) -> None:
        """Other instances have been told of the reloads up to this one."""
        self._numbers[SAID] = number

    @property
    def heard(self) -> int:
        """The id of the event up to which other instances were listened to; 0 for none."""
        return self._numbers[HEARD]

    @heard.setter
    def heard(self, event_id: int) -> None:
        self._numbers[HEARD] = event_id

    def lead(self) -> bool:
        """Whether this process alone, of those that share this, is the one to listen; it is until it ends."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, a forked process has not got it
        except OSError:
            return False
        return True
