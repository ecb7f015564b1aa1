"""A reload in the master: new versions on disk are tried, loaded, and served by workers that are forked after it."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from registry.store.directory import fingerprint
from serving.app import Application, renew
from serving.master import prefork
from serving.shared.reloads import ReloadOutcome

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the model directory; a change is acted on when it is the same at the next look."""


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


def reload(app: Application) -> Application:
    """The app over the models that are on disk now; `app` itself if it cannot be built.

    Never raises: in a gunicorn hook that would end the service. Workers are told the outcome.
    """
    started = time.monotonic()
    app.service.shared.reloads.begin()
    refused: tuple[str, ...]
    try:
        successor, refused = renew(app)
        prefork.warm(successor)
        prefork.check_single_thread()
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
