"""A lock of all processes of a service; one that dies gives back what it holds."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


class Lock:
    """To be made before the fork. Held within one turn of an event loop: it does not keep threads or tasks apart."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._descriptor = os.dup(file.fileno())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the lock; others hold it for some microseconds."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    @contextmanager
    def try_to_hold(self) -> Iterator[bool]:
        """Whether the lock was free, and is held now."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
