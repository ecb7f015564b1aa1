"""Forks child processes: clears what they inherit, limits what they use, and describes how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import NoReturn

from serving.process.kernel import rename

NUMERIC_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Service managers send these to every process; the worker, which still drains, decides when its processes end."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that end a master or a worker."""

PR_SET_PDEATHSIG = 1
LOWEST_PRIORITY = 19


def make_files_private() -> None:
    """Have nobody else read the files that this process and its children make: data, and versions that are trained."""
    os.umask(0o077)


def limit_numeric_threads(environ: MutableMapping[str, str]) -> None:
    """Keep the numeric libraries on one thread, whatever was set; call this before numpy is first imported.

    A pool of OpenMP or BLAS threads that is alive at the fork leaves the children with locks that are never released:
    histogram gradient boosting hangs in them for ever. And with several workers on few cores, many threads each are an
    order of magnitude slower than one.
    """
    environ.update(dict.fromkeys(NUMERIC_THREADS, "1"))
    # the allocator of pyarrow would start a thread as soon as it is imported
    environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"


def ending_event() -> asyncio.Event:
    """In a process that works in an event loop: an event that SIGTERM and SIGINT set."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return ending


def fork(live: Callable[[], None]) -> int:
    """Fork a process that calls `live`, then ends; returns its id. Call this with one thread. Raises OSError."""
    sys.stdout.flush()  # what is buffered would be written twice
    # until its handlers are its own, a signal to the child would be taken for one of ours
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(live)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _become(live: Callable[[], None]) -> NoReturn:
    """Live, then leave without the interpreter's own end, which would copy every shared page."""
    try:
        live()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - nothing may return into the code that has forked
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def fork_isolated(
    live: Callable[[], None],
    *,
    keep: int,
    name: str,
    ignored: Iterable[signal.Signals] = IGNORED,
    output: int | None = None,
) -> int:
    """Fork as `fork` does a process that keeps only standard output, descriptor `keep` and the life of its parent.

    It is killed when its parent ends (on Linux; elsewhere it notices at its socket). `name`, at most 15 characters, is
    shown by `ps -o comm` and in the kernel's log. Signals that are not `ignored` have their default effect. What it
    prints goes to descriptor `output`, if there is one.
    """
    parent = os.getpid()

    def live_isolated() -> None:
        _die_with(parent)
        rename(name)
        # Of its own group: Ctrl-C is not for it, and what it forks can be killed along with it
        os.setpgid(0, 0)
        _reset_signals(ignored)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        _redirect_descriptors(keep)
        live()

    return fork(live_isolated)


def _die_with(parent: int) -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the kernel was asked to watch it
        os._exit(1)


def _reset_signals(ignored: Iterable[signal.Signals]) -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect_descriptors(keep: int) -> None:
    """Point inherited descriptors at /dev/null.

    Closed, their numbers would be given out again, while objects inherited in the fork still mean to close them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for entry in os.listdir("/dev/fd"):  # noqa: PTH208 - only names are wanted
        if int(entry) not in (1, 2, keep, null):
            os.dup2(null, int(entry), inheritable=False)


def mute() -> None:
    """Drop what this process prints from now on: foreign code would print between the service's log lines."""
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def be_early_out_of_memory(score: int = 1000) -> None:
    """Set the kernel's OOM score, -1000 to 1000: the process with the highest score is killed first.

    Some sandboxes forbid this; then nothing changes.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))


def give_way() -> None:
    """Give this process the lowest priority for good, so that it computes only with what others leave.

    Not SCHED_IDLE: beside a service that is busy for minutes, calls would not finish before their deadline.
    """
    os.nice(LOWEST_PRIORITY)
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def describe_exit(status: int) -> str:
    """Say how a process ended, from its wait status; the sentence lacks its subject."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    if -code == signal.SIGKILL:
        return "was killed, perhaps because memory ran out"
    return f"was ended by signal {-code}, {signal.strsignal(-code)}"
