"""Tries a version in a forked child before it is served: one that crashes, hangs, exits or fills memory harms nothing.

The child does what a service does: it loads the version, as the master would, and forks a process that predicts and
explains the manifest's example, as a worker would.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from registry.errors import VersionRefused
from registry.model import LoadedModel
from registry.store.reload import Load
from serving.process.child import be_early_out_of_memory, describe_exit, fork, fork_isolated, limit_memory, mute
from serving.process.kernel import available_memory, lasting_threads

MAX_REASON_BYTES = 2000
"""A pipe takes as many at once, whether they are read or not."""

FIT = b"fit"
"""In place of a reason."""


def try_first(load: Load, *, seconds: float) -> Load:
    """`load`, preceded by a trial of at most `seconds`; a version that fails it is not loaded here."""

    def try_and_load(directory: Path) -> LoadedModel:
        reason = try_version(load, directory, seconds=seconds)
        if reason is not None:
            raise VersionRefused(directory, reason)
        return load(directory)

    return try_and_load


def try_version(load: Load, directory: Path, *, seconds: float) -> str | None:
    """Return None if a version is fit to serve, else the reason: its error, or the end of its process.

    It may take `seconds` and the memory that is available. What it prints is dropped. A thread that it leaves running
    is a fault, because a process with two may not fork. Call this from a process with one thread. Linux only.
    """
    reading, writing = os.pipe()
    try:
        try:
            pid = fork_isolated(lambda: _try(load, directory, writing), keep=writing, name="trial")
        finally:
            os.close(writing)
        return _await_verdict(pid, reading, seconds)
    finally:
        os.close(reading)


def _try(load: Load, directory: Path, writing: int) -> None:
    be_early_out_of_memory()
    limit_memory(available_memory())
    mute()
    _report(partial(_load_and_fork, load, directory, writing), writing)


def _report(step: Callable[[], bytes], writing: int) -> None:
    """Run a step and write its result, or the reason why it failed."""
    reason = b"needs more memory than there is"
    try:
        reason = step()
        names = lasting_threads()
        if len(names) != 1:
            reason = f"starts threads: {', '.join(sorted(names))}".encode()
    except VersionRefused as error:
        reason = f"{error.path.name} {error.reason}".encode()
    except MemoryError:
        pass
    except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever it is, the parent is told
        reason = f"{type(error).__name__}: {error}".encode()
    os.write(writing, reason[:MAX_REASON_BYTES])


def _load_and_fork(load: Load, directory: Path, writing: int) -> bytes:
    """Do as the master would; the forked process, if it comes to that, writes the verdict."""
    model = load(directory)
    if len(lasting_threads()) != 1:
        return b""  # a fault, which is named by the caller
    _, status = os.waitpid(fork(lambda: _report(partial(_answer, model), writing)), 0)
    return b"" if status == 0 else f"its process {describe_exit(status)}".encode()


def _answer(model: LoadedModel) -> bytes:
    """Predict and explain the example, as a worker would."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # they are blocked while a process is forked
    rows = model.schema.rows([model.manifest.example])
    model.predict(rows)
    if model.explainer is not None and not model.explainer.jobs_only:
        model.explain(rows)
    return FIT


def _await_verdict(pid: int, reading: int, seconds: float) -> str | None:
    descriptor = os.pidfd_open(pid)
    try:
        finished, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    if not finished:
        _kill(pid)
    _, status = os.waitpid(pid, 0)
    if not finished:
        return f"takes longer than {seconds:g} s"
    os.set_blocking(reading, False)
    try:
        verdict = os.read(reading, MAX_REASON_BYTES)
    except BlockingIOError:  # nothing was written, and a process that it forked still holds the other end
        verdict = b""
    if verdict == FIT and status == 0:
        return None
    return verdict.decode(errors="replace") or f"its process {describe_exit(status)}"


def _kill(pid: int) -> None:
    """Kill a trial and what it has forked; before it has a group of its own, it alone."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
