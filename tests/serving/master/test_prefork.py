"""Unmapping what only an import needed: less is resident, and everything is still there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.service import ROOT
from serving.master.prefork import unchanged_files

SMAPS = """\
7f0000000000-7f0000002000 r-xp 00001000 08:01 1234    /usr/lib/lib of blanks.so
Size:                  8 kB
Rss:                   8 kB
Private_Clean:         8 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000002000-7f0000003000 r--p 00003000 08:01 1234    /usr/lib/libx.so
Rss:                   4 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
7f0000003000-7f0000004000 rw-p 00000000 00:00 0
Rss:                   4 kB
"""

IMPORT_AND_UNMAP = """
import numba
from serving.master.prefork import unmap_unchanged
from serving.process.kernel import read_rss
import os
before = read_rss(os.getpid())
unmapped = unmap_unchanged()
after = read_rss(os.getpid())
assert unmapped > 20 << 20, unmapped
assert before - after > 0.8 * unmapped, (before, after, unmapped)
assert numba.njit(lambda x: x + 1)(1) == 2
import json, sqlite3
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
"""

KEEP_CHANGES = """
import ctypes, mmap, sys
from serving.master.prefork import unmap_unchanged
with open(sys.argv[1], "rb") as file:
    changed = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    untouched = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
changed[0:7] = b"changed"
assert untouched[0:7] == b"as it w"
address = ctypes.addressof(ctypes.c_char.from_buffer(changed))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 1) == 0
assert unmap_unchanged() > 0
assert changed[0:7] == b"changed"
assert untouched[0:7] == b"as it w"
"""


def run(code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_only_a_mapping_that_is_as_it_is_in_its_file_is_found() -> None:
    assert list(unchanged_files(SMAPS)) == [(0x7F0000000000, 8192, 8192)]
    for change in ("Private_Dirty:         4 kB", "Shared_Dirty:          4 kB", "Anonymous:             4 kB"):
        touched = SMAPS.replace("Private_Clean:         8 kB", change, 1).replace(
            "Private_Dirty:         0 kB\n", "", 1
        )
        assert list(unchanged_files(touched.replace("Anonymous:             0 kB\n", "", 1))) == []
    assert list(unchanged_files(SMAPS.replace("r-xp", "rwxp"))) == []
    assert list(unchanged_files(SMAPS.replace("/usr/lib/lib of", "[stack] of"))) == []


def test_code_that_was_unmapped_comes_back_when_it_is_called() -> None:
    run(IMPORT_AND_UNMAP)


def test_what_was_changed_in_memory_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "page"
    file.write_bytes(b"as it was".ljust(4096))
    run(KEEP_CHANGES, str(file))
