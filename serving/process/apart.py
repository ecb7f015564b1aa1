"""Runs foreign code in a forked process: how long it takes, what it prints and how it ends harms nobody."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from serving.process.child import describe_exit, fork_isolated
from serving.process.kernel import child_pids, lasting_threads

MAX_VERDICT_BYTES = 4096
"""A pipe takes as many at once, whether they are read or not."""

WELL, FAULT = b"well", b"!"
"""The verdicts of `tell`; what is wrong follows the latter."""

MAX_OUTPUT_BYTES = 10 << 20
READ_BYTES = 1 << 16

LATE = "late"

LOOK_SECONDS = 1.0
"""Between two times that others have their turn while a process is waited for."""


def nothing() -> None:
    """There is nothing else to do meanwhile."""


class EndedBadly(Exception):
    """The process did not end by itself, or said nothing; the sentence that says so lacks its subject."""


class Apart:
    """A forked process that calls a function with the descriptor to write its verdict to. Linux only."""

    def __init__(self, work: Callable[[int], None], name: str) -> None:
        """To be made in a process with one thread. `name` is that of the process. Raises OSError."""
        self._verdict, writing = os.pipe()
        self._output, printing = os.pipe()
        try:
            self._pid = fork_isolated(lambda: work(writing), keep=writing, name=name, output=printing)
        except BaseException:
            self._close(self._verdict, self._output)
            raise
        finally:
            self._close(writing, printing)

    def wait(
        self, seconds: float, show: Callable[[bytes], object] = len, meanwhile: Callable[[], None] = nothing
    ) -> bytes:
        """The verdict, once the process has ended; whatever it has forked ends with it. Raises EndedBadly.

        From now on it may take `seconds`. What it prints is handed to `show`, at most MAX_OUTPUT_BYTES; `meanwhile` is
        called every LOOK_SECONDS, and must not reap this process. Call this once.
        """
        fault = "was interrupted"
        try:
            fault = self._follow(time.monotonic() + seconds, show, meanwhile) or ""
            if fault == LATE:
                fault = f"takes longer than {seconds:g} s"
        finally:
            status = self._end()
            os.set_blocking(self._verdict, False)
            verdict = b""
            with suppress(BlockingIOError):
                verdict = os.read(self._verdict, MAX_VERDICT_BYTES)
            self._close(self._verdict, self._output)
        if fault:
            raise EndedBadly(fault)
        if status == signal.SIGALRM:  # see `time_limit`
            raise EndedBadly("takes too long to be read")
        if status or not verdict:
            raise EndedBadly(verdict.decode(errors="replace") or f"its process {describe_exit(status)}")
        return verdict

    def _follow(self, deadline: float, show: Callable[[bytes], object], meanwhile: Callable[[], None]) -> str | None:
        """Read what it prints until it ends; what is wrong with it, or None."""
        ended = os.pidfd_open(self._pid)
        waited, printed = [ended, self._output], 0
        look_at = time.monotonic() + LOOK_SECONDS
        try:
            while True:
                ready, _, _ = select.select(waited, [], [], max(0.0, min(look_at, deadline) - time.monotonic()))
                if self._output in ready:
                    content = os.read(self._output, READ_BYTES)
                    printed += len(content)
                    if not content:
                        waited.remove(self._output)
                    elif printed > MAX_OUTPUT_BYTES:
                        return f"prints more than {MAX_OUTPUT_BYTES >> 20} MB"
                    show(content)
                elif ended in ready:
                    return None
                now = time.monotonic()
                if now >= deadline:
                    return LATE
                if now >= look_at:
                    meanwhile()
                    look_at = time.monotonic() + LOOK_SECONDS
        finally:
            os.close(ended)

    def _end(self) -> int:
        """Kill what is left of its group, and reap it; its wait status."""
        with suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(self._pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        return os.waitpid(self._pid, 0)[1]

    @staticmethod
    def _close(*descriptors: int) -> None:
        for descriptor in descriptors:
            os.close(descriptor)


def tell(writing: int, fault: str | None = None) -> None:
    """Write the verdict of a process apart: it has done its work, or what was wrong with it."""
    verdict = WELL if fault is None else FAULT + fault.encode(errors="backslashreplace")
    os.write(writing, verdict[:MAX_VERDICT_BYTES])


def told_fault(verdict: bytes) -> str | None:
    """What was wrong, for a verdict of `tell`; None if nothing was."""
    return verdict.removeprefix(FAULT).decode(errors="replace") if verdict.startswith(FAULT) else None


def what_is_left() -> str | None:
    """What foreign code has left in this process that may not be there at a fork: threads, processes."""
    names = lasting_threads()
    if len(names) != 1:
        return f"starts threads: {', '.join(sorted(names))}"
    with suppress(OSError):
        if child_pids(os.getpid()):
            return "starts processes"
    return None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End this process by SIGALRM if what is done meanwhile takes longer."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
