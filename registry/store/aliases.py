"""Which version of a model is live, was before, or is tried: `aliases.json` beside the versions; and their removal.

Without the file the newest version is live. It is replaced atomically, so a reader, or a machine that restarts, finds
the old content or the new. A lock on the directory lets one process at a time change it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from registry.errors import CannotRemove, CannotTry, ModelNotFound, VersionNotFound, VersionRefused
from registry.store.directory import ALIASES_FILE, directories, read_json, write_whole
from registry.store.history import note

MAX_ALIASES_BYTES = 64 << 10


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that answers a share of the requests that name none."""

    version: str
    percent: float
    since: float
    """When it began, in seconds since the epoch: what was counted before counts no more."""
    ended: str = ""
    """Why it has gone back to the live version by itself; empty while it answers."""


class Shadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that predicts the rows of the live one, and answers nobody."""

    version: str
    since: float
    """When it began, in seconds since the epoch."""


class Aliases(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The version that answers when none is named, and the one that a rollback makes live, if there is one.

    A version may be tried beside the live one, in two ways.
    """

    live: str
    previous: str | None = None
    canary: Canary | None = None
    shadow: Shadow | None = None

    def used(self) -> frozenset[str]:
        """The versions that are needed."""
        tried = (one.version for one in (self.canary, self.shadow) if one is not None)
        return frozenset(filter(None, (self.live, self.previous, *tried)))

    def then_live(self, version: str) -> Aliases:
        """With this version live, which is not tried any more; the live one becomes the previous one."""
        if version == self.live:
            return self
        return replace(self, live=version, previous=self.live).among([version, *self.used()])

    def among(self, versions: Sequence[str]) -> Aliases:
        """Without what is said of versions that are not among these; nor is one tried beside itself."""
        others = [version for version in versions if version != self.live]
        return Aliases(
            self.live,
            self.previous if self.previous in versions else None,
            self.canary if self.canary is not None and self.canary.version in others else None,
            self.shadow if self.shadow is not None and self.shadow.version in others else None,
        )


def newest(versions: Sequence[str]) -> Aliases:
    """The aliases of a model without a file; `versions` are sorted."""
    return Aliases(versions[-1], versions[-2] if len(versions) > 1 else None)


def read_aliases(directory: Path, versions: Sequence[str]) -> Aliases:
    """The aliases of the model kept in `directory`, which has these sorted `versions`, at least one.

    A previous version that no longer exists is None. Raises VersionRefused for a file that is damaged or names a live
    version that does not exist: which version should answer is then for a person to say.
    """
    path = directory / ALIASES_FILE
    try:
        aliases = read_json(path, Aliases, "does not say which version is live", max_bytes=MAX_ALIASES_BYTES)
    except FileNotFoundError:
        return newest(versions)
    if aliases.live not in versions:
        raise VersionRefused(path, f"says that version {aliases.live!r} is live, which does not exist")
    return aliases.among(versions)


def current(directory: Path) -> Aliases:
    """The aliases of the model kept in `directory`. Raises VersionRefused."""
    return read_aliases(directory, [path.name for path in directories(directory)])


def promote(directory: Path, version: str) -> Aliases:
    """Make `version` live and the live version the previous one; promoting the live version changes nothing.

    It is not tried any more. The caller must know that the version is fit to serve. A damaged file is replaced.
    Raises ModelNotFound, VersionNotFound.
    """
    with alone(directory):
        _check_version(directory, version)
        before = None
        with contextlib.suppress(VersionRefused):
            before = current(directory)
        after = Aliases(version) if before is None else before.then_live(version)
        write_aliases(directory, after)
        if after != before:
            note(directory, "promoted", version)
    return after


def rollback(directory: Path) -> Aliases:
    """Exchange the live and the previous version; a second rollback undoes the first.

    Raises ModelNotFound, VersionNotFound when there is no previous version, VersionRefused.
    """
    with alone(directory):
        before = current(directory)
        if before.previous is None:
            raise VersionNotFound(f"model {directory.name!r} has no previous version")
        after = before.then_live(before.previous)
        write_aliases(directory, after)
        note(directory, "rolled back", after.live)
    return after


def begin_canary(directory: Path, version: str, percent: float) -> Aliases:
    """Have `version` answer `percent` of the requests that name none, instead of any other canary.

    Raises ModelNotFound, VersionNotFound, CannotTry for the live version, VersionRefused.
    """
    return _try(directory, version, canary=Canary(version, percent, time.time()))


def begin_shadow(directory: Path, version: str) -> Aliases:
    """Have `version` predict beside the live one, instead of any other shadow. Raises what `begin_canary` raises."""
    return _try(directory, version, shadow=Shadow(version, time.time()))


def _try(directory: Path, version: str, **tried: Canary | Shadow) -> Aliases:
    with alone(directory):
        _check_version(directory, version)
        before = current(directory)
        if before.live == version:
            raise CannotTry(f"version {version} of {directory.name} is live: it can be tried beside another only")
        after = replace(before, **tried)
        write_aliases(directory, after)
    return after


def end_canary(directory: Path) -> Aliases:
    """Have the live version answer all requests that name none. Raises ModelNotFound, VersionRefused."""
    return _change(directory, canary=None)


def end_shadow(directory: Path) -> Aliases:
    """Have no version predict beside the live one. Raises ModelNotFound, VersionRefused."""
    return _change(directory, shadow=None)


def _change(directory: Path, **changed: None) -> Aliases:
    with alone(directory):
        after = replace(current(directory), **changed)
        write_aliases(directory, after)
    return after


def give_up_canary(directory: Path, canary: Canary, reason: str) -> bool:
    """Record why this canary has gone back; False if another process was first, or it is no canary any more.

    Raises ModelNotFound, VersionRefused, OSError.
    """
    with alone(directory):
        before = current(directory)
        if before.canary != canary:
            return False
        write_aliases(directory, replace(before, canary=replace(canary, ended=reason)))
    return True


def remove(directory: Path, version: str, *, force: bool = False) -> Aliases | None:
    """Remove one version; the aliases afterwards, None if the model is gone or its file is damaged.

    With `force` it may be the live one although others are there: the previous version becomes live, or the newest.
    Raises ModelNotFound, VersionNotFound, CannotRemove.
    """
    with alone(directory):
        others = [path.name for path in directories(directory)]
        if version not in others:
            raise VersionNotFound(f"model {directory.name!r} has no version {version!r}")
        others.remove(version)
        if not others:
            _discard(directory)
            return None
        after = None
        with contextlib.suppress(VersionRefused):
            before = current(directory)
            if before.live == version and not force:
                name = f"version {version} of {directory.name}"
                raise CannotRemove(f"{name} is live: promote another version first, or use --force")
            after = _without(before, version, others)
        if after is not None and (directory / ALIASES_FILE).exists():
            write_aliases(directory, after)  # before the version goes: what is live always exists
        _discard(directory / version)
        note(directory, "removed", version)
    return after


def remove_model(directory: Path) -> None:
    """Remove a model with all of its versions. Raises ModelNotFound, CannotRemove."""
    with alone(directory):
        _discard(directory)


def _without(before: Aliases, version: str, others: Sequence[str]) -> Aliases:
    """The aliases once a version is gone and `others`, sorted, are left."""
    if before.live != version:
        return before.among(others)
    live = before.previous if before.previous is not None and before.previous in others else others[-1]
    return replace(before, live=live, previous=None).among(others)


def _check_version(directory: Path, version: str) -> None:
    """Raises VersionNotFound."""
    if version not in (path.name for path in directories(directory)):
        raise VersionNotFound(f"model {directory.name!r} has no version {version!r}")


def _discard(directory: Path) -> None:
    """Remove a directory at once for readers: it gets a name that is none, and then goes. Raises CannotRemove."""
    try:
        gone = Path(tempfile.mkdtemp(prefix=".removed-", dir=directory.parent))
        directory.rename(gone / directory.name)
        shutil.rmtree(gone)
    except OSError as error:
        raise CannotRemove(f"{directory}: {error.strerror}") from error


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Lock the directory against other processes; the lock ends with its holder. Raises ModelNotFound."""
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
    """Replace the file; the caller holds the lock."""
    write_whole(directory / ALIASES_FILE, msgspec.json.encode(aliases) + b"\n")
