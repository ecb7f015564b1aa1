"""A SQLite file that several processes share: each opens it for itself, on a thread of its own, when first used.

Context: a file is the default that needs no service, and web workers, job runners and their successors all write it.
Decision: write-ahead logging, so that readers never wait; every change in BEGIN IMMEDIATE, so that no process learns
half-way that another was first; `synchronous=normal`: a commit survives the death of any process, and only a power
cut may undo the last ones, but never tears the file. One connection on one thread, so that the event loop never waits
for a disk and the statements of one process are never mixed.
Consequence: each call takes about 100 us longer, on its way to the thread and back.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import structlog

from serving.errors import StoreUnavailable
from serving.storage.guard import PerProcess

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700

WAL_BYTES = 16 << 20
"""Size to which a checkpoint cuts the write-ahead log; without it the log keeps its largest size."""

ROOM_BYTES = 1 << 20
"""Less free space than this is a full disk to a probe: what it writes itself may fit where no job does."""

ERASE_ATTEMPTS, ERASE_SECONDS = 50, 0.1
"""Attempts to empty a write-ahead log, and the seconds between two: nobody may be reading it."""

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Store")
Migration = str | Callable[[sqlite3.Connection], None]


Identity = tuple[tuple[int, int] | None, ...]
"""The device and the inode of a database and of its write-ahead log; None for one that is not there."""


@dataclass(slots=True, eq=False)
class _OpenFile:
    """The state of one process: its thread, and the connection that only this thread uses."""

    thread: ThreadPoolExecutor
    connection: sqlite3.Connection | None = None
    identity: Identity = ()
    process: int = field(default_factory=os.getpid)

    def __del__(self) -> None:
        """Close the connection of a call that ran after `Database.close`, but never an inherited one."""
        if self.process == os.getpid():
            self.disconnect()

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


class Database:
    """One file and the steps that lead to its present schema. Building it opens nothing, so it may be forked."""

    def __init__(self, path: Path, migrations: Sequence[Migration], *, busy_seconds: float = 5.0) -> None:
        """`migrations[n]` leads from schema n to n + 1: a script or a function. A released step is never changed.

        A call waits up to `busy_seconds` for other processes that write.
        """
        self._path = path
        self._log_path = path.with_name(f"{path.name}-wal")
        self._migrations = migrations
        self._busy_seconds = busy_seconds
        self._file = PerProcess(lambda: _OpenFile(ThreadPoolExecutor(1, thread_name_prefix=path.stem)))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one consistent state of the file. Raises StoreUnavailable."""
        return await self._run("begin", work)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` alone among all processes: all of its changes are kept, or none if it raises.

        Raises StoreUnavailable.
        """
        return await self._run("begin immediate", work)

    async def probe(self) -> None:
        """Raise StoreUnavailable unless the file can be written now and its disk has ROOM_BYTES left."""
        await self.write(self._probe)

    def _probe(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"pragma user_version = {len(self._migrations)}")  # a page, though nothing changes
        with tempfile.TemporaryFile(dir=self._path.parent) as scratch:
            os.posix_fallocate(scratch.fileno(), 0, ROOM_BYTES)

    async def erase(self) -> None:
        """Empty the write-ahead log, so that no byte of what was deleted is left. Raises StoreUnavailable.

        In the file itself deleted bytes are overwritten with zeros.
        """
        for _ in range(ERASE_ATTEMPTS):
            if await self._run("", _empty_log):
                return
            await asyncio.sleep(ERASE_SECONDS)
        raise StoreUnavailable(f"{self._path.name}: deleted, but others who read it keep its log from being erased")

    async def close(self) -> None:
        """Close the file and end the thread; the next call opens it again."""
        file = self._file.release()
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(file.thread, file.disconnect)
            file.thread.shutdown()

    async def _run(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        file = self._file.get()
        return await asyncio.get_running_loop().run_in_executor(file.thread, self._attempt, file, begin, work)

    def _attempt(self, file: _OpenFile, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        if file.connection is not None and file.identity != self._identity():
            log.warning("Database file was removed or replaced", file=self._path.name)
            file.disconnect()  # SQLite leaves the files alone that are there now
        try:
            if file.connection is None:
                file.connection = self._connect()
                file.identity = self._identity()
            return _transact(file.connection, begin, work) if begin else work(file.connection)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except (sqlite3.DatabaseError, OSError) as error:
            file.disconnect()  # a file that is repaired or replaced is used without a restart
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise StoreUnavailable(f"{self._path.name}: {reason}") from error

    def _identity(self) -> Identity:
        """What lies under our names now: others may have removed or replaced the files that are open."""
        found: list[tuple[int, int] | None] = []
        for path in (self._path, self._log_path):
            try:
                state = path.stat()
                found.append((state.st_dev, state.st_ino))
            except OSError:
                found.append(None)
        return tuple(found)

    def _connect(self) -> sqlite3.Connection:
        make_private(self._path)
        connection = sqlite3.connect(
            self._path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        self._switch_to_wal(connection)
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma foreign_keys = on")
        connection.execute("pragma secure_delete = on")  # people may ask to be forgotten
        connection.execute(f"pragma journal_size_limit = {WAL_BYTES}")
        if _schema(connection) != len(self._migrations):
            _transact(connection, "begin immediate", self._migrate)

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to write-ahead logging, once in the life of a file; for this SQLite does not wait by itself."""
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                connection.execute("pragma journal_mode = wal")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _migrate(self, connection: sqlite3.Connection) -> None:
        present = _schema(connection)
        if present > len(self._migrations):
            raise StoreUnavailable(f"{self._path.name}: written by a newer version")
        for step in self._migrations[present:]:
            if callable(step):
                step(connection)
            else:
                run_script(connection, step)
        connection.execute(f"pragma user_version = {len(self._migrations)}")


def make_private(path: Path) -> None:
    """Make a file and its directory if they are missing, and have nobody but their owner read them. Raises OSError.

    SQLite gives its other files the mode of this one. None is opened that exists: closing it would drop the locks of
    other connections of this process.
    """
    path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE))
    if not path.parent.stat().st_mode & stat.S_ISVTX:  # it is everybody's, such as /tmp
        _tighten(path.parent, PRIVATE_DIRECTORY)
    for file in path.parent.glob("*.db*"):  # those of an older version, too
        _tighten(file, PRIVATE_FILE)


def _tighten(path: Path, mode: int) -> None:
    """Take from others what they may do with it, if it is ours."""
    with suppress(FileNotFoundError):
        state = path.lstat()
        is_ours = state.st_uid == os.geteuid() and not stat.S_ISLNK(state.st_mode)
        if is_ours and stat.S_IMODE(state.st_mode) & ~mode:
            path.chmod(mode & state.st_mode)


class Store(Protocol):
    """The attributes that `reads` and `writes` need of the class whose methods they make."""

    _database: Database


Method = Callable[Concatenate[S, sqlite3.Connection, P], T]
Made = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def reads(work: Method[S, P, T]) -> Made[S, P, T]:
    """Make a store's coroutine of a method that takes a connection: it runs in `Database.read`."""
    return _within(Database.read, work)


def writes(work: Method[S, P, T]) -> Made[S, P, T]:
    """Make a store's coroutine of a method that takes a connection: it runs in `Database.write`."""
    return _within(Database.write, work)


def _within(transaction: Callable[..., Coroutine[Any, Any, T]], work: Method[S, P, T]) -> Made[S, P, T]:
    @functools.wraps(work)
    async def run(self: S, /, *arguments: P.args, **named: P.kwargs) -> T:
        return await transaction(self._database, lambda connection: work(self, connection, *arguments, **named))

    return run


def _transact(connection: sqlite3.Connection, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute(begin)
    try:
        result = work(connection)
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # SQLite has already rolled back when the disk is full
            connection.execute("rollback")
        raise
    return result


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Whether the write-ahead log could be copied into the file, and cut to nothing."""
    is_busy, _, _ = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
    return not is_busy


def _schema(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("pragma user_version").fetchone()[0]
    return version


def run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run a script within the present transaction; `executescript` would commit before it."""
    current = ""
    for part in script.split(";"):
        current += part + ";"
        if sqlite3.complete_statement(current):
            if current.strip(" \n;"):
                connection.execute(current)
            current = ""
