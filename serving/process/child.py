"""What a process gives up when it has been forked: signal handlers, descriptors, a life of its own, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Iterable
from pathlib import Path

from serving.process.kernel import rename

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Service managers send them to every process; the worker, which still drains, decides when its processes end."""

PR_SET_PDEATHSIG = 1
LOWEST = 19
PAGE = os.sysconf("SC_PAGE_SIZE")


def isolate(*, parent: int, keep: int, name: str, ignored: Iterable[signal.Signals] = IGNORED) -> None:
    """Cut this forked process off from all but its standard output, descriptor `keep` and the life of its parent.

    It ends when the parent does, however that ends (Linux; elsewhere when its socket says so). `name` is what `ps -o
    comm` and the kernel's log call it, at most 15 characters. Signals that are not `ignored` do what
    they do by default.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    rename(name)
    if os.getppid() != parent:  # it ended before it could be asked to tell
        os._exit(1)
    # Of its own group: Ctrl-C is not for it, and what it forks can be killed along with it
    os.setpgid(0, 0)
    _forget_signals(ignored)
    _forget_descriptors(keep)


def _forget_signals(ignored: Iterable[signal.Signals]) -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _forget_descriptors(keep: int) -> None:
    """Point them at nothing.

    Closed, their numbers would be given out anew, while objects that came along in the fork still mean to close them.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for entry in os.listdir("/dev/fd"):  # noqa: PTH208 - only names are wanted
        if int(entry) not in (1, 2, keep, nothing):
            os.dup2(nothing, int(entry), inheritable=False)


def be_early_out_of_memory(score: int = 1000) -> None:
    """If the kernel has to kill somebody, let it be the process with the highest score, from -1000 to 1000.

    Some sandboxes do not let a process say so.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))


def give_way() -> None:
    """Let this process compute only with what others leave, for good: the lowest priority, and no haste.

    Not SCHED_IDLE: beside a service that is busy for minutes, calls would not come to their end before their deadline.
    """
    os.nice(LOWEST)
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def limit_memory(size: int) -> None:
    """Let this process have `size` bytes more than it was forked with; after that MemoryError.

    RLIMIT_DATA counts private writable mappings, so neither shared memory nor the files of libraries. It counts the
    pages shared with the parent, too; therefore the limit is put above what is there now. Linux only.
    """
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = pages * PAGE + size
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
