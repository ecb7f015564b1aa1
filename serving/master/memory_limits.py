"""How much memory this box has and how much of it is used: from its cgroup, version 1 or 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

UNLIMITED = 1 << 60
"""Version 1 says so by a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The cgroup whose limit is the first to be reached."""

    path: Path
    v2: bool
    limit: int

    def used(self) -> int:
        """Bytes that cannot be thrown out: the page cache fills any limit and says nothing. Raises OSError."""
        wanted = ("anon", "shmem") if self.v2 else ("total_rss", "total_shmem")
        found = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return sum(int(found.get(name, 0)) for name in wanted)


def find_cgroup(own: Path = OWN, root: Path = CGROUPS) -> Cgroup | None:
    """The tightest of the cgroups around this process; None where there is no limit, or none that can be seen."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    found = [cgroup for line in lines for cgroup in _limited(line, root)]
    return min(found, key=lambda cgroup: cgroup.limit, default=None)


def _limited(line: str, root: Path) -> list[Cgroup]:
    """Those that a line of /proc/self/cgroup, `number:controllers:path`, leads through."""
    _, _, rest = line.partition(":")
    controllers, _, inside = rest.partition(":")
    v2 = controllers == ""
    if not v2 and "memory" not in controllers.split(","):
        return []
    top = root if v2 else root / "memory"
    # a container may see its own cgroup as the top, while the path is the one outside
    here = top / inside.lstrip("/")
    found = []
    for path in dict.fromkeys((here, *here.parents)):
        limit = _read_limit(path / ("memory.max" if v2 else "memory.limit_in_bytes"))
        if limit is not None:
            found.append(Cgroup(path, v2, limit))
        if path == top:
            break
    return found


def _read_limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < UNLIMITED else None
