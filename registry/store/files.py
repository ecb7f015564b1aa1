"""Small files that are whole or not there, whenever whoever writes them is killed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Written aside, brought to the disk and renamed: readers, and a machine that starts again, find old or new.

    One process at a time may write a path: what one that was killed has left aside is removed. Raises OSError.
    """
    aside_prefix = f".{path.name}-"
    for left_over in path.parent.glob(f"{aside_prefix}*"):
        left_over.unlink()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=aside_prefix, delete=False) as aside:
        try:
            aside.write(content)
            aside.flush()
            os.fchmod(aside.fileno(), 0o644)
            os.fsync(aside.fileno())
            Path(aside.name).rename(path)
        except BaseException:
            Path(aside.name).unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Bring new names in it to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
