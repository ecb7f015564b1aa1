"""Clients of other people's protocols, each group in an environment of its own, made when it is first needed.

Their requirements contradict ours, or each other. So an environment holds what `judges_locks/NAME.txt` pins, and
nothing that a test does not need, in front of the packages of the environment that runs the tests. To lock anew, or to
add one, write the names into `judges_locks/NAME.in`, dependencies too where the shared packages lack them, and

    uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-header --no-annotate harness/judges_locks/NAME.in -o harness/judges_locks/NAME.txt
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).with_name("judges_locks")
JUDGES = Path(sys.prefix).resolve() / "judges"


def programs(judge: str) -> Path:
    """The directory of `python` and the other programs of a judge's environment, which is made unless it is there."""
    pinned = (LOCKS / f"{judge}.txt").read_bytes()
    directory = JUDGES / judge
    marker = directory / ".installed"
    JUDGES.mkdir(exist_ok=True)
    with (JUDGES / f"{judge}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process at a time makes it
        if not (marker.exists() and marker.read_bytes() == pinned):
            _install(directory, LOCKS / f"{judge}.txt")
            marker.write_bytes(pinned)
    return directory / "bin"


def _install(directory: Path, requirements: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, symlinks=True, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "--disable-pip-version-check"]
    # some forbid a new Python that they work with
    options = ["--quiet", "--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--require-hashes"]
    done = subprocess.run(
        [*pip, "install", *options, "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"cannot install {requirements.name}:\n{done.stdout}{done.stderr}")


def ask_judge(judge: str, script: str, *arguments: str) -> Any:
    """What a Python script prints as JSON in its last line, run in a judge's environment with `arguments`."""
    command = [str(programs(judge) / "python"), "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{judge}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def promtool() -> Path | None:
    """Prometheus' own judge of metrics: on PATH, or taken out of Debian's package; None where there are no packages."""
    on_path = shutil.which("promtool")
    if on_path:
        return Path(on_path)
    program = JUDGES / "prometheus" / "usr" / "bin" / "promtool"
    JUDGES.mkdir(exist_ok=True)
    with (JUDGES / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            if not shutil.which("apt-get"):
                return None
            _extract_package("prometheus", JUDGES / "prometheus")
    return program


def _extract_package(name: str, directory: Path) -> None:
    """Download a package of Debian's and take its files out, without installing it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    download = ["apt-get", "download", "--quiet", name]
    if subprocess.run(download, cwd=directory, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update", "--quiet"], capture_output=True, check=True)  # a new machine has no lists
        subprocess.run(download, cwd=directory, capture_output=True, check=True)
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, directory], check=True)
    package.unlink()
