"""SQLite as a store: what goes wrong is said, undone, and over when its cause is."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from sqlite3 import Connection

import pytest
import structlog

from harness.service import ROOT
from serving.errors import StoreUnavailable
from serving.storage.sqlite import Database
from tests.serving.conftest import PATIENCE

pytestmark = pytest.mark.anyio

FIRST = "create table t (n integer unique);"
SECOND = """
alter table t add column doubled integer;
create trigger t_doubled after insert on t begin
    update t set doubled = 2 * new.n where n = new.n;
end;
insert into t (n) values (21);
"""

FULL_DIRECTORY = """
import asyncio, os, subprocess, sys
from pathlib import Path
from serving.entities.sqlite import SQLiteEntityStore
from serving.errors import StoreUnavailable
from serving.jobs.sqlite import SQLiteJobStore

async def main(directory, left):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", directory], check=True)
    stores = SQLiteJobStore(Path(directory)), SQLiteEntityStore(Path(directory), keep_records=9, keep_outcomes=9)
    for store in stores:
        await store.probe()
    disk = os.statvfs(directory)
    Path(directory, "filling").write_bytes(bytes(disk.f_bavail * disk.f_frsize - left))
    for store in stores:
        try:
            await store.probe()
        except StoreUnavailable as error:
            print(error)
    Path(directory, "filling").unlink()
    for store in stores:
        await store.probe()
        await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from serving.errors import StoreUnavailable
from serving.jobs.job import JobRequest
from serving.jobs.sqlite import SQLiteJobStore

async def main(directory):
    store = SQLiteJobStore(Path(directory))
    request = JobRequest(operation="toy", inputs=(b"x" * 1_000_000,))
    kept = [(await store.submit(request)).id]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, resource.RLIM_INFINITY))
    try:
        while True:
            kept.append((await store.submit(request)).id)
    except StoreUnavailable as error:
        print(error)
    assert 1 <= len(kept) <= 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (await store.counts()).queued == len(kept)
    await store.submit(request)
    assert len(await store.input(kept[-1], 0)) == 1_000_000
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "data" / "t.db", [FIRST], busy_seconds=PATIENCE)
    yield database
    await database.close()


def insert(number: int, connection: Connection) -> None:
    connection.execute("insert into t (n) values (?)", (number,))


def numbers(connection: Connection) -> list[int]:
    return [row["n"] for row in connection.execute("select n from t order by n")]


async def test_what_was_written_is_read_also_by_the_next(database: Database, tmp_path: Path) -> None:
    await database.write(partial(insert, 1))
    await database.close()
    await database.write(partial(insert, 2))
    other = Database(tmp_path / "data" / "t.db", [FIRST])
    assert await other.read(numbers) == [1, 2]
    await other.close()


async def test_change_that_fails_half_way_is_undone(database: Database) -> None:
    def half(connection: Connection) -> None:
        insert(1, connection)
        insert(1, connection)

    with pytest.raises(sqlite3.IntegrityError):
        await database.write(half)
    assert await database.read(numbers) == []


async def test_all_is_done_on_one_thread_that_ends_with_the_store(database: Database) -> None:
    names = {await database.read(lambda _: threading.current_thread().name) for _ in range(5)}
    assert names == {"t_0"}
    await database.close()
    assert "t_0" not in {thread.name for thread in threading.enumerate()}


async def test_file_of_an_older_version_is_brought_up_to_date(database: Database, tmp_path: Path) -> None:
    await database.write(partial(insert, 1))
    newer = Database(tmp_path / "data" / "t.db", [FIRST, SECOND])
    select = "select n, doubled from t order by n"
    assert await newer.read(lambda connection: [tuple(row) for row in connection.execute(select)]) == [
        (1, None),
        (21, 42),
    ]
    await newer.close()


async def test_step_that_fails_leaves_the_file_as_it_was(database: Database, tmp_path: Path) -> None:
    await database.write(partial(insert, 1))
    broken = Database(tmp_path / "data" / "t.db", [FIRST, SECOND + "insert into nowhere values (1);"])
    with pytest.raises(StoreUnavailable, match="no such table"):
        await broken.read(numbers)
    fixed = Database(tmp_path / "data" / "t.db", [FIRST, SECOND])
    assert await fixed.read(numbers) == [1, 21]
    await fixed.close()
    await broken.close()


async def test_file_of_a_newer_version_is_left_alone(database: Database, tmp_path: Path) -> None:
    newer = Database(tmp_path / "data" / "t.db", [FIRST, SECOND])
    await newer.read(numbers)
    with pytest.raises(StoreUnavailable, match=r"t\.db: written by a newer version"):
        await database.read(numbers)
    await newer.close()


async def test_locked_file_is_said_after_its_time_and_used_again_when_it_is_free(tmp_path: Path) -> None:
    """And the event loop goes on meanwhile."""
    database = Database(tmp_path / "t.db", [FIRST], busy_seconds=0.2)
    await database.write(partial(insert, 1))
    other = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    other.execute("begin immediate")
    writing = asyncio.create_task(database.write(partial(insert, 2)))
    turns = 0
    while not writing.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 2
    with pytest.raises(StoreUnavailable, match=r"t\.db: database is locked"):
        await writing
    assert await database.read(numbers) == [1]
    other.execute("rollback")
    other.close()
    await database.write(partial(insert, 2))
    assert await database.read(numbers) == [1, 2]
    await database.close()


async def test_corrupt_file_is_said_and_its_replacement_is_used(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "data" / "t.db"
    file.parent.mkdir()
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreUnavailable, match=r"t\.db: file is not a database"):
        await database.read(numbers)
    file.unlink()
    assert await database.read(numbers) == []


async def test_torn_file_is_said_and_its_replacement_is_used(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "data" / "t.db"
    for number in range(2000):
        await database.write(partial(insert, number))
    await database.close()
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StoreUnavailable, match=r"t\.db: database disk image is malformed"):
        await database.read(numbers)
    for left in file.parent.iterdir():
        left.unlink()
    assert await database.read(numbers) == []


def remove(directory: Path, names: str) -> None:
    for file in directory.glob(names):
        file.unlink()


@pytest.mark.parametrize("gone", ["*", "t.db"])
async def test_files_that_are_removed_are_made_anew_by_all_who_have_them_open(tmp_path: Path, gone: str) -> None:
    path = tmp_path / "data" / "t.db"
    here, there = (Database(path, [FIRST]) for _ in range(2))
    await here.write(partial(insert, 1))
    assert await there.read(numbers) == [1]
    remove(path.parent, gone)
    with structlog.testing.capture_logs() as lines:
        await here.write(partial(insert, 2))
        before = await here.read(numbers)
        assert await there.read(numbers) == before
        await there.write(partial(insert, 3))
        assert await here.read(numbers) == [*before, 3]
    assert [(line["event"], line["file"]) for line in lines] == [("Database file was removed or replaced", "t.db")] * 2
    for database in (there, here):
        await database.close()
    assert await Database(path, [FIRST]).read(numbers) == [*before, 3]


async def test_log_of_a_database_that_is_removed_alone_is_said(tmp_path: Path) -> None:
    """What is in it is lost; SQLite goes on once all who had it open have noticed."""
    path = tmp_path / "t.db"
    here, there = (Database(path, [FIRST]) for _ in range(2))
    await here.write(partial(insert, 1))
    assert await there.read(numbers) == [1]
    remove(tmp_path, "t.db-*")
    with structlog.testing.capture_logs() as lines:
        for database in (here, there):
            with suppress(StoreUnavailable):
                await database.read(numbers)
        await here.write(partial(insert, 2))
        assert 2 in await there.read(numbers)
    assert {(line["event"], line["file"]) for line in lines} == {("Database file was removed or replaced", "t.db")}
    for database in (there, here):
        await database.close()


async def test_file_that_is_replaced_by_another_is_read_from_then_on(tmp_path: Path) -> None:
    path, other = tmp_path / "t.db", Database(tmp_path / "other" / "t.db", [FIRST])
    await other.write(partial(insert, 7))
    await other.close()
    database = Database(path, [FIRST])
    await database.write(partial(insert, 1))
    remove(tmp_path, "t.db-*")
    (tmp_path / "other" / "t.db").rename(path)
    assert await database.read(numbers) == [7]
    await database.close()


async def test_directory_that_cannot_be_made_is_said_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    database = Database(tmp_path / "file" / "t.db", [FIRST])
    with pytest.raises(StoreUnavailable) as caught:
        await database.read(numbers)
    assert str(tmp_path) not in str(caught.value)
    await database.close()


async def test_full_disk_is_said_and_nothing_is_kept_by_halves(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("jobs.db: ")


@pytest.mark.parametrize("left", [0, 100_000])
async def test_a_probe_finds_a_disk_that_takes_a_page_and_no_job(tmp_path: Path, left: int) -> None:
    """As root in a namespace with a disk of its own; elsewhere nothing can be filled."""
    command = ["unshare", "-Urm", sys.executable, "-c", FULL_DIRECTORY, str(tmp_path), str(left)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no namespaces here")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "jobs.db: No space left on device\ndata.db: No space left on device\n"


async def test_cancelled_caller_leaves_the_store_in_order(database: Database) -> None:
    release = threading.Event()

    def slow(connection: Connection) -> None:
        insert(1, connection)
        release.wait(PATIENCE)

    task = asyncio.create_task(database.write(slow))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    release.set()
    await database.write(partial(insert, 2))
    assert 2 in await database.read(numbers)


def test_files_are_private_and_older_ones_become_so(tmp_path: Path) -> None:
    before, link = tmp_path / "data" / "events.db", tmp_path / "data" / "link.db"
    before.parent.mkdir(mode=0o755)
    before.touch(0o644)
    (tmp_path / "elsewhere").touch(0o644)
    link.symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "data" / "jobs.db", tmp_path / "new" / "deep" / "jobs.db"):
        database = Database(path, ["create table t (x)"])
        asyncio.run(database.write(lambda connection: connection.execute("insert into t values (1)")))
        files = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("*.db*") if file != link}
        assert {"jobs.db", "jobs.db-shm", "jobs.db-wal"} <= set(files)
        assert set(files.values()) == {0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700
        asyncio.run(database.close())
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o644


def test_directory_that_is_everybodys_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    database = Database(tmp_path / "jobs.db", [])
    asyncio.run(database.read(lambda connection: connection.execute("select 1")))
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
    asyncio.run(database.close())
