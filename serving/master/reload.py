"""A reload in the master: new versions on disk are tried, loaded, and served by workers that are forked after it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import structlog

from registry.store.directory import fingerprint
from serving.app import Application, renew
from serving.master import prefork
from serving.process.child import ENDING
from serving.shared.reloads import ReloadOutcome

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the model directory; a change is acted on when it is the same at the next look."""


class Interrupted(BaseException):
    """A signal that ends the service has arrived during a reload."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class ModelWatch:
    """Notices that versions were added, promoted, rolled back or removed. A look takes less than a millisecond.

    A change is reported once it has been still for LOOK_SECONDS, so that a version that is being copied is not loaded
    by half. A version that was refused is not tried again before something changes.
    """

    def __init__(self, root: Path) -> None:
        """To be made before the models below `root` are loaded."""
        self._root = root
        self._next_look = 0.0
        self.note()

    def note(self) -> None:
        """The models are about to be loaded: only later changes count."""
        self._loaded = self._seen = fingerprint(self._root)

    def changed(self) -> bool:
        """Return whether the models should be loaded again; looks at most every LOOK_SECONDS."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        before, self._seen = self._seen, fingerprint(self._root)
        changed = self._seen == before != self._loaded
        if changed:
            log.info("Model directory changed", path=str(self._root))
        return changed


def reload(app: Application, meanwhile: Callable[[], None]) -> Application:
    """The app over the models that are on disk now; `app` itself if it cannot be built.

    `meanwhile` is called every second while a version is tried, which may take a minute: the processes of the service
    end and are replaced as ever.

    Nothing that happens to it is raised: in a gunicorn hook that would end the service. Workers are told the outcome.
    Raises Interrupted.
    """
    started = time.monotonic()
    app.service.shared.reloads.begin()
    refused: tuple[str, ...]
    try:
        with _interruptible():
            successor, refused = renew(app, meanwhile)
            prefork.warm(successor)
            prefork.check_single_thread()
    except Interrupted as stop:
        log.info("Reload interrupted", signal=stop.number.name)
        app.service.shared.reloads.finish(ReloadOutcome(refused=("the service is stopping",)))
        raise
    except BaseException as error:  # even one that is meant to end the process
        log.error("Reload failed", exc_info=error)
        successor, refused = app, (f"{type(error).__name__}: {error}",)
    outcome = _compare(app, successor, refused, time.monotonic() - started)
    for reason in refused:
        log.error("Reload refused", reason=reason)
    log.info(
        "Models reloaded", added=outcome.added, removed=outcome.removed, live=outcome.live, seconds=outcome.seconds
    )
    app.service.shared.reloads.finish(outcome)
    return successor


def _compare(old: Application, new: Application, refused: tuple[str, ...], seconds: float) -> ReloadOutcome:
    before = {f"{model.name}/{model.version}": model for model in old.service.registry}
    after = {f"{model.name}/{model.version}": model for model in new.service.registry}
    return ReloadOutcome(
        added=tuple(version for version, model in after.items() if before.get(version) is not model),
        removed=tuple(version for version in before if version not in after),
        refused=refused,
        live={model.name: model.version for model in new.service.registry.live()},
        seconds=round(seconds, 3),
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise Interrupted at the first signal of ENDING, even if it is blocked; its handler is called before, if any."""
    arrived: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in ENDING}

    def interrupt(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        arrived.append(signal.Signals(number))
        if len(arrived) == 1:  # another would cut short what is put in order now
            raise Interrupted(arrived[0])

    for number in ENDING:
        signal.signal(number, interrupt)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:  # foreign code that was being loaded may have caught it
            raise Interrupted(arrived[0])
