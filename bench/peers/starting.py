"""Starts a peer from an interpreter that has it installed, asks it what it is asked, and ends all of its processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.wrk import Shot
from harness.service import ROOT
from serving.process.kernel import child_pids

START_SECONDS = 60
STOP_SECONDS = 10

Instance = dict[str, Any]
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The place of a peer: its interpreter, a directory of its own, the model directory and the model, a free port."""

    python: str
    directory: Path
    models: Path
    name: str
    port: int


@dataclass(frozen=True)
class Peer:
    """A server of the joblib model, and how it is asked.

    `ready` is a path that answers 200 once it serves. `MODEL` in a path stands for the model's name.
    """

    who: str
    path: str
    ready: str
    body: Callable[[Instance, Manifest], Any]
    command: Callable[[Place], list[str]]

    def shot(self, models: Path, name: str) -> Shot:
        """The model's example with one number that is new in every request."""
        return aim(models, name, self.path.replace("MODEL", name), self.body)

    @contextmanager
    def running(self, python: str, models: Path, name: str) -> Iterator[str]:
        """Its address, once it serves; afterwards none of its processes is left."""
        with tempfile.TemporaryDirectory() as directory, Path(directory, "log").open("w+b") as log:
            place = Place(python, Path(directory), models, name, free_port())
            address = f"http://127.0.0.1:{place.port}"
            process = subprocess.Popen(
                self.command(place),
                cwd=directory,
                env=os.environ | environment(place),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                wait_for(address + self.ready.replace("MODEL", name), process)
                yield address
            except TimeoutError:
                log.seek(0)
                raise SystemExit(f"{self.who} did not start:\n{log.read().decode()[-4000:]}") from None
            finally:
                stop(process)


def environment(place: Place) -> dict[str, str]:
    """Variables of a peer's process: its model, one numeric thread a worker as here, and nothing told to anybody."""
    return {
        "MODEL": place.name,
        "MODEL_DIR": str(place.models),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(place.directory),
    }


def aim(models: Path, name: str, path: str, body: Callable[[Instance, Manifest], Any]) -> Shot:
    """A shot at a model with what `body` makes of its example, in which one number is new in every request."""
    manifest = json.loads((models / name / "1" / "manifest.json").read_text())
    feature = next(feature for feature in manifest["features"] if feature["kind"] == "number")
    instance = manifest["example"] | {feature["name"]: "@@"}
    return Shot(path, json.dumps(body(instance, manifest)).replace('"@@"', "@@"), *feature["seen"])


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until it answers 200, and its second worker has had the time to start as well. Raises TimeoutError."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise TimeoutError(url) from None
            time.sleep(0.1)
        else:
            time.sleep(3)
            return


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started, whatever process groups they are in."""
    family = {pid: birth(pid) for pid in (process.pid, *descendants(process.pid))}
    process.terminate()
    if not ended(process, family):
        for pid in survivors(family):
            os.kill(pid, signal.SIGKILL)
        ended(process, family)


def ended(process: subprocess.Popen[bytes], family: dict[int, str]) -> bool:
    """Wait for all of them to end; return whether they did in time."""
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None or any(True for _ in survivors(family)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def survivors(family: dict[int, str]) -> Iterator[int]:
    """Those who live; an id whose process has another birth is somebody else's by now."""
    return (pid for pid, born in family.items() if born and birth(pid) == born)


def descendants(pid: int) -> Iterator[int]:
    """Children, their children, and so on; none of a process that is gone."""
    try:
        children = child_pids(pid)
    except OSError:
        return
    for child in children:
        yield child
        yield from descendants(child)


def birth(pid: int) -> str:
    """The start time of the process, in ticks; empty if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
