"""Versions that harm the process that loads or asks them: a trial says why, and the process that tries goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.estimators import start_thread
from harness.processes import gone
from harness.service import ROOT
from registry.errors import VersionRefused
from serving.process import trial
from serving.process.kernel import child_pids
from serving.process.trial import try_first, try_version

DIRECTORY = Path("/models/odd/1")
SECONDS = 2.0
MB = 1 << 20


def model(
    *, predict: Callable[[Any], object] = lambda _rows: None, explain: Any = None, jobs_only: bool = False
) -> Any:
    """Stands for a loaded version."""
    return SimpleNamespace(
        schema=SimpleNamespace(rows=lambda instances: instances),
        manifest=SimpleNamespace(example=[1.0]),
        predict=predict,
        explain=explain,
        explainer=None if explain is None else SimpleNamespace(jobs_only=jobs_only),
    )


def hang(*_: object) -> None:
    while True:
        time.sleep(600)


def fill_memory(*_: object) -> None:
    taken = []
    while True:
        taken.append(bytes(MB))


def fork_and_hang(*_: object) -> None:
    """Leave word of a process of one's own that would live on."""
    pid = os.fork()
    if pid:
        Path(os.environ["FORKED"]).write_text(str(pid))
    hang()


def fork_and_come_back(*_: object) -> None:
    """Both processes go on; the one that is new at once, the other a little later."""
    pid = os.fork()
    if pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def leave_a_process(*_: object) -> None:
    if not os.fork():
        hang()


def print_much(*_: object) -> None:
    for _number in range(100):
        os.write(1, b"x" * MB)


def print_without_end(*_: object) -> None:
    while True:
        print("x" * 1000, file=sys.stderr)  # noqa: T201 - what foreign code does


def refuse(*_: object) -> None:
    raise VersionRefused(DIRECTORY / "model.joblib", "is not a file")


def raise_error(*_: object) -> None:
    raise ValueError("no such thing")


HARM: dict[str, tuple[Callable[..., object], str]] = {
    "refused": (refuse, "model.joblib is not a file"),
    "raises": (raise_error, "ValueError: no such thing"),
    "quits": (sys.exit, "SystemExit"),
    "exits": (lambda *_: os._exit(3), "its process exited with status 3"),
    "exits as if all were well": (lambda *_: os._exit(0), "its process exited with status 0"),
    "crashes": (lambda *_: os.kill(os.getpid(), signal.SIGSEGV), "its process was ended by signal 11, Segmentation"),
    "hangs": (hang, "takes longer than 2 s"),
    "fills memory": (fill_memory, "needs more memory than there is"),
    "forks and comes back": (fork_and_come_back, "starts processes"),
    "leaves a process": (leave_a_process, "starts processes"),
    "prints 100 MB": (print_much, "prints more than 10 MB"),
    "prints without end": (print_without_end, "prints more than 10 MB"),
    "starts a thread": (lambda *_: start_thread(), "starts threads: "),
}


def harmful(when: str, harm: Callable[..., object]) -> Callable[[Path], Any]:
    """Loads a version that does harm then."""
    loads: dict[str, Callable[[Path], Any]] = {
        "load": lambda _directory: harm(),
        "predict": lambda _directory: model(predict=harm),
        "explain": lambda _directory: model(explain=harm),
    }
    return loads[when]


def try_harm(when: str, *names: str) -> None:
    """In a process with one thread: print what each trial says."""
    trial.available_memory = lambda: 64 * MB  # type: ignore[attr-defined]
    for name in names:
        harm = HARM[name][0] if name in HARM else fork_and_hang
        print(try_version(harmful(when, harm), DIRECTORY, seconds=SECONDS))  # noqa: T201 - to the test


def play(call: str, **environ: str) -> str:
    code = f"import {__name__} as here; here.{call}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("when", ["load", "predict", "explain"])
def test_version_that_harms_its_process_is_refused_with_a_reason(when: str) -> None:
    said = play(f"try_harm({when!r}, *here.HARM)").splitlines()
    wanted = {name: reason for name, (_, reason) in HARM.items()}
    assert {name: line[: len(wanted[name])] for name, line in zip(HARM, said, strict=True)} == wanted


def try_ahead() -> None:
    """The second version's trial has begun, and ended, when the first one is loaded."""
    first, second = DIRECTORY, DIRECTORY.with_name("2")
    home = os.getpid()

    def load(directory: Path) -> Any:
        if os.getpid() != home:
            return model(predict=raise_error if directory == second else lambda _rows: None)
        assert directory == first
        assert len(child_pids(home)) == 1, "the next one is being tried"
        return directory

    tried: Any = try_first(load, seconds=60, order=[first, second])
    assert tried(first) == first
    with pytest.raises(VersionRefused, match="no such thing"):
        tried(second)
    assert child_pids(home) == []


def test_the_next_version_is_tried_while_one_is_loaded() -> None:
    assert play("try_ahead()") == ""


@pytest.mark.parametrize("when", ["load", "predict"])
def test_what_a_version_has_forked_ends_with_its_trial(when: str, tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    assert play(f"try_harm({when!r}, 'forks')", FORKED=str(noted)) == "takes longer than 2 s"
    assert gone([int(noted.read_text())])


def try_good_ones() -> None:
    home = os.getpid()

    def load(_directory: Path) -> Any:
        print("a version that prints")  # noqa: T201 - is not seen
        os.write(1, b"anything")
        return model(explain=lambda _rows: None)

    slow = model(explain=raise_error, jobs_only=True)
    loader = os.getpid()

    def note_process(_rows: Any) -> None:
        assert os.getpid() not in (home, loader), "a worker is another process than the master"

    def load_here(_directory: Path) -> Any:
        nonlocal loader
        loader = os.getpid()
        return model(predict=note_process)

    reasons = [try_version(each, DIRECTORY, seconds=60) for each in (load, lambda _directory: slow, load_here)]
    assert reasons == [None] * 3, reasons
    assert try_first(lambda _directory: slow, seconds=60)(DIRECTORY) is slow
    with pytest.raises(VersionRefused, match=r"^/models/odd/1: ValueError: no such thing$"):
        try_first(lambda _directory: model(predict=raise_error), seconds=60)(DIRECTORY)
    order = [DIRECTORY.with_name(name) for name in "123"]
    tried = try_first(load_here, seconds=60, order=order)
    assert [tried(directory) is not None for directory in order] == [True] * 3


def test_version_that_is_fit_passes_whatever_it_prints() -> None:
    assert play("try_good_ones()") == ""
