"""The kernel's view of processes: their memory, age, threads, children and names."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

WEB, RUNNER, SCHEDULER, MESSENGER, RECORDER = "web", "runner", "scheduler", "messenger", "recorder"
"""The names in `ps -o comm` of the processes that answer requests, run jobs, fire schedules, send alerts
and log predictions."""

PR_SET_NAME = 15

ENDING_SECONDS = 0.5
LOOK_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process in bytes. PSS divides shared pages among processes, so that the PSS of all adds up."""

    rss: int
    pss: int
    private: int
    held: int
    """The part of the PSS that cannot be dropped and read again: all but the pages of files."""

    @property
    def shared(self) -> int:
        return self.rss - self.private


def read_memory(pid: int) -> Memory:
    """Measure a process exactly: about 7 ms for one of 150 MB. Raises OSError when the process is gone."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    held = fields.get("Pss_Anon", fields["Pss"]) + fields.get("Pss_Shmem", 0)
    return Memory(fields["Rss"], fields["Pss"], fields["Private_Clean"] + fields["Private_Dirty"], held)


def read_rss(pid: int) -> int:
    """Resident bytes, shared ones included; 0.01 ms. Raises OSError when the process is gone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def read_age(pid: int) -> float:
    """Seconds since the process started. Raises OSError when it is gone."""
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / TICKS_PER_SECOND
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def child_pids(pid: int) -> list[int]:
    """The direct children of a process. Raises OSError when it is gone."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def drain_worker(pid: int) -> bool:
    """Have a web worker beside this process drain and end; False if there is none of that id.

    The descriptor comes first: by now the id may be that of another process.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if name_of(os.getpid()) != WEB or pid not in child_pids(os.getppid()) or name_of(pid) != WEB:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def descendants(pid: int) -> list[int]:
    """The live processes below a process; none where the system has no /proc."""
    found, waiting = [], [pid]
    while waiting:
        with suppress(OSError):  # it has ended meanwhile
            below = child_pids(waiting.pop())
            found += below
            waiting += below
    return found


def rename(name: str) -> None:
    """Change the kernel's name of this process; at most 15 characters, Linux only."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_NAME, name.encode())


def name_of(pid: int) -> str:
    """The kernel's name of a process. Raises OSError when it is gone."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def thread_names(pid: int) -> list[str]:
    """The kernel's names of all threads of a process, including those that Python has not started."""
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names.append(task.joinpath("comm").read_text().strip())
    return names


def lasting_threads() -> list[str]:
    """The names of this process's threads, once those that are just ending are gone; at least one.

    Python takes a thread for ended a little earlier than the kernel does. A thread that stays is reported after
    ENDING_SECONDS.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while len(names := thread_names(os.getpid())) > 1 and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return names
