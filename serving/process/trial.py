"""Tries a version in a forked child before it is served: one that crashes, hangs, exits or fills memory harms nothing.

The child does what a service does: it loads the version, as the master would, and forks a process that predicts and
explains the manifest's example, as a worker would.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from registry.errors import VersionRefused
from registry.memory import available_memory, limit_memory
from registry.model import LoadedModel
from registry.store.manifest import Manifest
from registry.store.reload import Load
from serving.process.apart import MAX_VERDICT_BYTES, Apart, EndedBadly, nothing, what_is_left
from serving.process.child import be_early_out_of_memory, describe_exit, fork
from serving.process.kernel import thread_names

FIT = b"fit"
"""In place of a reason."""

SEPARATOR = "\0"
"""Between the path of a file and what is wrong with it."""


class Trial:
    """One version that is tried, from now on."""

    def __init__(self, load: Load, directory: Path) -> None:
        """To be made in a process with one thread; Linux only. Raises OSError."""
        self._directory = directory
        self._apart = Apart(partial(_try, load, directory), "trial")

    def refusal(self, seconds: float, meanwhile: Callable[[], None] = nothing) -> VersionRefused | None:
        """Return None if the version is fit to serve, else the reason: its error, or the end of its process.

        From now on it may take `seconds`; `meanwhile` is as in `Apart.wait`. What it prints is dropped, unless it is
        too much. A thread or a process that it leaves running is a fault. Call this once.
        """
        try:
            verdict = self._apart.wait(seconds, meanwhile=meanwhile)
        except EndedBadly as error:
            return VersionRefused(self._directory, str(error))
        if verdict == FIT:
            return None
        path, _, reason = verdict.decode(errors="replace").rpartition(SEPARATOR)
        return VersionRefused(Path(path) if path else self._directory, reason)


def try_version(load: Load, directory: Path, *, seconds: float) -> str | None:
    """Return None if a version is fit to serve, else the reason in words that name no directory; see `Trial`."""
    refusal = Trial(load, directory).refusal(seconds)
    if refusal is None:
        return None
    return refusal.reason if refusal.path == directory else f"{refusal.path.name} {refusal.reason}"


def try_first(
    load: Callable[..., LoadedModel],
    *,
    seconds: float,
    order: Sequence[Path] = (),
    read: Callable[[Path], Manifest] | None = None,
    meanwhile: Callable[[], None] = nothing,
) -> Load:
    """`load`, preceded by a trial of at most `seconds`; a version that fails it is not loaded here.

    While a version is loaded, the one that follows it in `order` is tried already. A manifest that is `read` before the
    trial is handed to `load` both times: with its hashes, what was tried is what is loaded. While a trial is waited
    for, `meanwhile` is called every second.
    """
    begun: dict[Path, tuple[Load, Trial]] = {}
    following = dict(itertools.pairwise(order))

    def begin(directory: Path) -> tuple[Load, Trial]:
        same = load if read is None else partial(load, manifest=read(directory))
        return same, Trial(same, directory)

    def try_and_load(directory: Path) -> LoadedModel:
        same, trial = begun.pop(directory) if directory in begun else begin(directory)
        refusal = trial.refusal(seconds, meanwhile)
        if (then := following.get(directory)) is not None:
            with suppress(VersionRefused):  # it is read again in its turn
                begun[then] = begin(then)
        if refusal is not None:
            raise refusal
        return same(directory)

    return try_and_load


def can_try() -> bool:
    """Return whether this process can fork a trial: on Linux, with a single thread."""
    return hasattr(os, "pidfd_open") and len(thread_names(os.getpid())) == 1


def _try(load: Load, directory: Path, writing: int) -> None:
    be_early_out_of_memory()
    limit_memory(available_memory())
    _report(partial(_load_and_fork, load, directory, writing), writing)


def _report(step: Callable[[], bytes], writing: int) -> None:
    """Run a step and write its result, or the reason why it failed."""
    home = os.getpid()
    reason = b"needs more memory than there is"
    try:
        reason = step()
        if home != os.getpid():  # a process that the version has forked, and that has come back from it
            os._exit(0)
        reason = (what_is_left() or "").encode() or reason
    except VersionRefused as error:
        reason = f"{error.path}{SEPARATOR}{error.reason}".encode(errors="backslashreplace")
    except MemoryError:
        pass
    except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever it is, the parent is told
        reason = f"{type(error).__name__}: {error}".encode(errors="backslashreplace")
    os.write(writing, reason[:MAX_VERDICT_BYTES])


def _load_and_fork(load: Load, directory: Path, writing: int) -> bytes:
    """Do as the master would; the forked process, if it comes to that, writes the verdict."""
    home = os.getpid()
    model = load(directory)
    if home != os.getpid() or what_is_left() is not None:
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
