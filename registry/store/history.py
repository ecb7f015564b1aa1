"""What was done to the versions of a model: `history.json` beside them.

The file only tells a story: it decides nothing, and one that is damaged or missing tells none.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from registry.errors import VersionRefused
from registry.store.directory import read_json, write_whole

HISTORY_FILE = "history.json"
MAX_CHANGES = 200
"""The newest changes are kept."""

MAX_HISTORY_BYTES = 64 << 10

Act = Literal["promoted", "rolled back", "removed"]


class VersionChange(msgspec.Struct, frozen=True):
    """What was done, to which version, and when, in ISO 8601: a rollback made `version` live again."""

    time: str
    act: Act
    version: str


def note(directory: Path, act: Act, version: str) -> None:
    """Add a change of the model in `directory` to its history; the caller holds the lock of the directory.

    A change that was made is not undone because nothing can be noted of it.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    changes = [*read_changes(directory), VersionChange(now, act, version)][-MAX_CHANGES:]
    with contextlib.suppress(OSError):
        write_whole(directory / HISTORY_FILE, msgspec.json.encode(changes) + b"\n")


def read_changes(directory: Path) -> list[VersionChange]:
    """What was done to the versions of the model in `directory`, oldest first."""
    try:
        return read_json(directory / HISTORY_FILE, list[VersionChange], "is no history", max_bytes=MAX_HISTORY_BYTES)
    except (FileNotFoundError, VersionRefused):
        return []
