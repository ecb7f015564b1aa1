"""What came of the last training of each model: a small file beside its versions, which outlives the job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from registry.store.directory import write_whole

FILENAME = "last-training.json"
FRESH_SECONDS = 5.0


class LastTraining(msgspec.Struct, frozen=True, kw_only=True):
    """`version` is the one that was made, empty if it did not come to that."""

    outcome: Literal["promoted", "refused", "failed"]
    version: str
    finished: str


def write_last(directory: Path, outcome: Literal["promoted", "refused", "failed"], version: str) -> None:
    """Into the directory of a model. What cannot be written is not: the job knows it, too."""
    last = LastTraining(outcome=outcome, version=version, finished=datetime.now(UTC).isoformat(timespec="seconds"))
    with suppress(OSError):
        write_whole(directory / FILENAME, msgspec.json.encode(last) + b"\n")


def read_last(directory: Path) -> LastTraining | None:
    """Of the model in `directory`; None when it was never trained here, or the file is damaged."""
    try:
        return msgspec.json.decode((directory / FILENAME).read_bytes(), type=LastTraining)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


class LastTrainings:
    """Of all models, looked up now and then, not for everybody who asks."""

    def __init__(self, root: Path, names: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._names = tuple(names)
        self._clock = clock
        self._read_at = -FRESH_SECONDS
        self._last: dict[str, LastTraining] = {}

    def by_model(self) -> dict[str, LastTraining]:
        """As it was within the last seconds; models that were never trained here are left out."""
        if self._clock() - self._read_at >= FRESH_SECONDS:
            self._read_at = self._clock()
            found = {name: read_last(self._root / name) for name in self._names}
            self._last = {name: last for name, last in found.items() if last is not None}
        return self._last
