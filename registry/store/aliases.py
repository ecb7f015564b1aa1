"""Which version of a model is live, and which was before: a small file beside the versions, whole or not there.

Without the file the newest version is live. It is written aside, brought to the disk and renamed, so that whoever reads
it, or the machine that starts again, finds the old one or the new one. Changes take turns by a lock on the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from registry.errors import ModelNotFound, VersionNotFound, VersionRefused
from registry.store.directory import ALIASES_FILE, directories, write_whole


class Aliases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version that answers when none is named, and the one to go back to, if there is one."""

    live: str
    previous: str | None = None


def newest(versions: Sequence[str]) -> Aliases:
    """What holds without a file, `versions` being sorted: the newest, and the one before it."""
    return Aliases(versions[-1], versions[-2] if len(versions) > 1 else None)


def read_aliases(directory: Path, versions: Sequence[str]) -> Aliases:
    """Those of the model kept in `directory`, which has these sorted `versions`, at least one.

    A previous version that is not there any more is none. Raises VersionRefused for a file that is damaged, or that
    names a live version which is not there: what should answer is then for a person to say.
    """
    path = directory / ALIASES_FILE
    try:
        aliases = msgspec.json.decode(path.read_bytes(), type=Aliases)
    except FileNotFoundError:
        return newest(versions)
    except OSError as error:
        raise VersionRefused(path, error.strerror or str(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VersionRefused(path, f"does not say which version is live: {error}") from error
    if aliases.live not in versions:
        raise VersionRefused(path, f"says that version {aliases.live!r} is live, which is not there")
    return aliases if aliases.previous in versions else Aliases(aliases.live)


def current(directory: Path) -> Aliases:
    """Those of the model kept in `directory`. Raises VersionRefused."""
    return read_aliases(directory, _versions(directory))


def promote(directory: Path, version: str) -> Aliases:
    """Make `version` live and what was live the previous one; the same again changes nothing.

    It is for the caller to know that the version is fit to serve. A damaged file is replaced. Raises ModelNotFound,
    VersionNotFound.
    """
    with alone(directory):
        if version not in _versions(directory):
            raise VersionNotFound(f"model {directory.name!r} has no version {version!r}")
        before = _readable(directory)
        if before is None:
            after = Aliases(version)
        else:
            after = before if before.live == version else Aliases(version, before.live)
        write_aliases(directory, after)
    return after


def rollback(directory: Path) -> Aliases:
    """Make the previous version live and the live one previous, so that twice is not at all.

    Raises ModelNotFound, VersionNotFound when there is no previous version, VersionRefused.
    """
    with alone(directory):
        before = current(directory)
        if before.previous is None:
            raise VersionNotFound(f"model {directory.name!r} has no previous version")
        after = Aliases(before.previous, before.live)
        write_aliases(directory, after)
    return after


def _versions(directory: Path) -> list[str]:
    return [path.name for path in directories(directory)]


def _readable(directory: Path) -> Aliases | None:
    try:
        return current(directory)
    except VersionRefused:
        return None


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """No other process changes the aliases meanwhile; the lock ends with its holder. Raises ModelNotFound."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ModelNotFound(f"there is no model {directory.name!r} in {directory.parent}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_aliases(directory: Path, aliases: Aliases) -> None:
    """To be called by who is alone with the directory."""
    write_whole(directory / ALIASES_FILE, msgspec.json.encode(aliases) + b"\n")
