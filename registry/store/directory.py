"""The model directory: `{root}/{model}/{version}`, the names that it may hold, and files that are written whole."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from registry.errors import ModelNotFound, VersionRefused

# A name is a directory, a dictionary key and a part of a URL; no other characters are allowed.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

ALIASES_FILE = "aliases.json"

Kind = TypeVar("Kind")

FileState = tuple[str, int, int, int]
Fingerprint = tuple[FileState, ...]
"""Path below the model directory, inode, size in bytes, time of the last change in nanoseconds."""


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts "2" before "10" and "1.9" before "1.10"."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[._-]", version))


def directories(path: Path) -> list[Path]:
    """The directories inside `path` whose names a model or a version may have, in the order of versions.

    Others (`.git`, a half-written `.new-...`) are ignored. Raises VersionRefused if it cannot be read.
    """
    if not path.is_dir():
        return []
    try:
        inside = [inner for inner in path.iterdir() if NAME.fullmatch(inner.name) and inner.is_dir()]
    except OSError as error:
        raise VersionRefused(path, error.strerror or str(error)) from error
    return sorted(inside, key=lambda inner: version_order(inner.name))


def model_directories(root: Path) -> list[Path]:
    """Every `{name}` directory below `root` that has versions, by name. Raises VersionRefused when there is none.

    One that cannot be read is there, too, and is refused when its versions are asked for.
    """
    found = sorted(path for path in directories(root) if _may_have_versions(path))
    if not found:
        raise VersionRefused(root, "contains no model; create one with `forkserve train` or `forkserve add`")
    return found


def is_empty(root: Path) -> bool:
    """Whether there is neither a model nor anything that might be one. False if the directory cannot be read."""
    try:
        return not root.exists() or not any(map(_may_have_versions, directories(root)))
    except VersionRefused:
        return False


def _may_have_versions(path: Path) -> bool:
    try:
        return bool(directories(path))
    except VersionRefused:
        return True


def find_model(root: Path, name: str) -> Path:
    """The directory of a model. Raises ModelNotFound, or VersionRefused when `root` contains no model at all."""
    for directory in model_directories(root):
        if directory.name == name:
            return directory
    raise ModelNotFound(f"there is no model {name!r} in {root}")


def fingerprint(root: Path) -> Fingerprint:
    """A value that changes when a version below `root` is added, changed, promoted, rolled back or removed.

    It holds the state of each `aliases.json` and of all files of each version, nothing else: scratch directories and
    `train.py` do not count. No file is opened, so pipes do not block; a file that vanishes meanwhile is left out.
    Never raises OSError; a root that is missing or unreadable gives (). Costs less than a millisecond for 50 versions.
    """
    found: list[FileState] = []
    for model in _named_entries(str(root)):
        _add_state(found, f"{model}/{ALIASES_FILE}", root)
        for version in _named_entries(f"{root}/{model}"):
            inside = f"{model}/{version}"
            for file in _entries(f"{root}/{inside}"):
                _add_state(found, f"{inside}/{file}", root)
    return tuple(found)


def read_file(path: Path, *, max_bytes: int | None = None, flags: int = 0) -> bytes:
    """The bytes of a regular file of at most `max_bytes`; `flags` are further ones of `os.open`.

    Raises OSError, also for a pipe, whose reader would wait for ever; a file that is too large is not read.
    """
    no_file = OSError(errno.EINVAL, "is not a file", str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except OSError as error:
        raise no_file if error.errno == errno.ENXIO else error from None  # it is a socket
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise no_file
        if max_bytes is not None and state.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"is larger than {max_bytes} bytes", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(state.st_size)  # and not what is appended meanwhile
    finally:
        os.close(descriptor)


def read_json(path: Path, kind: type[Kind], fault: str, *, max_bytes: int) -> Kind:
    """What a JSON file of ours states; `fault` says what is wrong with a file that does not.

    Raises FileNotFoundError, VersionRefused.
    """
    try:
        return msgspec.json.decode(read_file(path, max_bytes=max_bytes, flags=os.O_NOFOLLOW), type=kind)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise VersionRefused(path, reason) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VersionRefused(path, f"{fault}: {error}") from error
    except RecursionError as error:
        raise VersionRefused(path, f"{fault}: it is nested too deep") from error
    except MemoryError as error:
        raise VersionRefused(path, "needs more memory than there is") from error


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 - Path.iterdir takes three times as long
    except OSError:
        return []


def _named_entries(directory: str) -> list[str]:
    return [name for name in _entries(directory) if NAME.fullmatch(name)]


def _add_state(found: list[FileState], path: str, root: Path) -> None:
    try:
        state = os.stat(f"{root}/{path}")  # noqa: PTH116 - Path.stat takes twice as long
    except OSError:
        return
    found.append((path, state.st_ino, state.st_size, state.st_mtime_ns))


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers, and a machine that restarts, find the old content or the new.

    One process at a time may write a path: scratch files of a writer that was killed are removed. Raises OSError.
    """
    scratch_prefix = f".{path.name}-"
    for left_over in path.parent.glob(f"{scratch_prefix}*"):
        left_over.unlink()
    scratch = path.with_name(f"{scratch_prefix}{os.getpid()}")
    try:
        with scratch.open("xb") as file:  # who may read it is for the umask to say: a service's keeps it private
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
