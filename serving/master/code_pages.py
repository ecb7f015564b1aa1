"""Lets go of the pages of libraries that were needed to import them, and are not any more.

Context: importing numba alone touches 68 MB of LLVM's code; the master, which only forks and watches from then on,
would keep such pages mapped for as long as it lives, and a fork does not hand them on: each worker maps what it calls.
Decision: before the fork, all pages of files that nobody has written to are unmapped; what is called again comes back
from the page cache. Consequence: 110 MB less of the master, and what nobody calls is the first that a kernel short of
memory can do without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MADV_DONTNEED = 4
SMAPS = Path("/proc/self/smaps")


@dataclass(slots=True)
class Mapping:
    """Some of the address space of this process; sizes in bytes."""

    start: int
    size: int
    permissions: str
    path: str
    resident: int = 0
    changed: int = 0
    """Pages that are not the file's any more: relocated, or written to."""

    @property
    def is_unchanged_file(self) -> bool:
        return self.path.startswith("/") and "w" not in self.permissions and not self.changed and self.resident > 0


def unmap_unchanged() -> int:
    """Unmap what is as it is in its file, and give the bytes. Linux only, elsewhere nothing; needs a single thread."""
    if not SMAPS.exists():
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    unmapped = 0
    for mapping in list(mappings(SMAPS.read_text().splitlines())):
        # locked pages are refused, and stay
        if mapping.is_unchanged_file and madvise(mapping.start, mapping.size, MADV_DONTNEED) == 0:
            unmapped += mapping.resident
    return unmapped


def mappings(lines: Iterable[str]) -> Iterator[Mapping]:
    """Those that the lines of an `smaps` file tell of."""
    mapping: Mapping | None = None
    for line in lines:
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            if mapping is not None:
                yield mapping
            start, _, end = first.partition("-")
            permissions, _, _, _, *path = rest.split(maxsplit=4)
            name = path[0] if path else ""
            mapping = Mapping(int(start, 16), int(end, 16) - int(start, 16), permissions, name)
        elif mapping is not None and first == "Rss:":
            mapping.resident = _bytes(rest)
        elif mapping is not None and first in ("Anonymous:", "Private_Dirty:", "Shared_Dirty:"):
            mapping.changed += _bytes(rest)
    if mapping is not None:
        yield mapping


def _bytes(field: str) -> int:
    return int(field.split(maxsplit=1)[0]) * 1024
