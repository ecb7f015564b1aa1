"""Tries what may crash, hang or eat all memory in a forked child first, so that this process goes on."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

from serving.process.child import be_early_out_of_memory, fork, isolate
from serving.process.kernel import thread_names

LONGEST = 2000
"""Bytes of a reason; a pipe takes as many at once, whether somebody reads or not."""


def try_in_child(work: Callable[[], str | None], *, seconds: float) -> str | None:
    """None if `work` went well in a forked child, else why not: what it says, raises, or how the child ended.

    What it prints is not seen. A thread that it leaves running is a fault, because a process with two may not fork.
    To be called from a process with one thread. Linux only.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    try:
        try:
            pid = fork(lambda: _try(work, writing, parent))
        finally:
            os.close(writing)
        return _judge(pid, reading, seconds)
    finally:
        os.close(reading)


def _try(work: Callable[[], str | None], writing: int, parent: int) -> None:
    isolate(parent=parent, keep=writing, name="trial")
    be_early_out_of_memory()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        reason = work()
        names = thread_names(os.getpid())
        if reason is None and len(names) != 1:
            reason = f"starts threads: {', '.join(sorted(names))}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
        reason = f"{type(error).__name__}: {error}"
    os.write(writing, b"+" if reason is None else b"-" + reason.encode()[:LONGEST])


def _judge(pid: int, reading: int, seconds: float) -> str | None:
    descriptor = os.pidfd_open(pid)
    try:
        finished, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    if not finished:
        _kill(pid)
    _, status = os.waitpid(pid, 0)
    if not finished:
        return f"takes longer than {seconds:g} s"
    os.set_blocking(reading, False)
    try:
        said = os.read(reading, LONGEST + 1)
    except BlockingIOError:  # something that it forked still holds the other end
        said = b""
    if said == b"+" and status == 0:
        return None
    if said.startswith(b"-"):
        return said[1:].decode(errors="replace")
    return describe(status)


def _kill(pid: int) -> None:
    """It, and what it has forked; before it has a group of its own, it alone."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)


def describe(status: int) -> str:
    """How a process ended, from its wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ends the process with status {code}"
    if -code == signal.SIGKILL:
        return "was killed, perhaps because memory ran out"
    return f"crashes the process: signal {-code}, {signal.strsignal(-code)}"
