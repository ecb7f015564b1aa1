"""What the kernel tells of processes: their memory, age, threads and children."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

WEB, RUNNER, SCHEDULER, MESSENGER = "web", "runner", "scheduler", "messenger"
"""The names of processes that answer requests, run jobs, watch the time, send alerts, as `ps -o comm` shows them."""

PR_SET_NAME = 15


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process in bytes. PSS counts shared pages in parts, so that the PSS of all processes adds up."""

    rss: int
    pss: int
    private: int
    held: int
    """Of the PSS, what cannot be thrown out and read again: no page of a file."""

    @property
    def shared(self) -> int:
        return self.rss - self.private


def read_memory(pid: int) -> Memory:
    """Exact, at about 7 ms for a process of 150 MB. Raises OSError when the process is gone."""
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


def rename(name: str) -> None:
    """What the kernel calls this process from now on; at most 15 characters, on Linux alone."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_NAME, name.encode())


def name_of(pid: int) -> str:
    """What the kernel calls a process. Raises OSError when it is gone."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def thread_names(pid: int) -> list[str]:
    """The kernel's names of all threads of a process, those that Python knows nothing of included."""
    return [task.joinpath("comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]
