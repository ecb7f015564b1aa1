"""Alerts from the master, which may not wait and may not have threads: a child tells them."""

from __future__ import annotations

import os
import signal
import sys

import structlog

from serving.executor.forking import become
from serving.executor.isolation import isolate
from serving.memory.watchdog import Alert

log = structlog.get_logger(__name__)

SECONDS = 30
"""For one alert; then its process is ended by the kernel."""


def tell_in_child(alert: Alert | None) -> Alert:
    """An alert for a process with one thread that reaps its children: the log, and `alert` in a child of its own."""

    def tell(kind: str, message: str) -> None:
        log.error("Alert", kind=kind, message=message)
        if alert is not None:
            _fork(alert, kind, message)

    return tell


def _fork(alert: Alert, kind: str, message: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if os.fork() == 0:
            become(lambda: _live(alert, kind, message, parent))
    except OSError as error:
        log.warning("Alert cannot be sent", kind=kind, error=str(error))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _live(alert: Alert, kind: str, message: str, parent: int) -> None:
    isolate(parent=parent, keep=sys.stdout.fileno(), name="alert")
    signal.alarm(SECONDS)
    alert(kind, message)
    sys.stdout.flush()
