"""Limits the memory that this process may allocate. Linux only: elsewhere nothing is limited."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path


def available_memory() -> int:
    """Bytes that processes can still allocate on this machine without swapping; a cgroup may allow less."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return sys.maxsize
    return int(fields["MemAvailable"].split()[0]) * 1024


def limit_memory(size: int) -> None:
    """Let this process allocate `size` bytes more than it has now; beyond that it gets a MemoryError.

    RLIMIT_DATA counts private writable mappings, so neither shared memory nor the files of libraries. It also counts
    the pages shared with the parent; therefore the limit is set above what is there now.
    """
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limits = [pages * resource.getpagesize() + size, soft, hard]
        resource.setrlimit(
            resource.RLIMIT_DATA, (min(limit for limit in limits if limit != resource.RLIM_INFINITY), hard)
        )


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """Let this process allocate at most `size` bytes more in here; beyond that it gets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(size)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
