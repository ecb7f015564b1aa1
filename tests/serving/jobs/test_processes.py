"""Stores over real processes: several at once, killed, forked, and built before any of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harness.servers import free_port
from harness.service import ROOT
from serving.jobs.results import whole_result
from tests.serving.conftest import until
from tests.serving.jobs.conftest import Jobs, job_request

pytestmark = pytest.mark.anyio


FORKING = """
import asyncio, os, sys, warnings
from tests.serving.jobs.toy_runner import open_store
from serving.jobs.job import JobRequest

async def use(store, count):
    for _ in range(count):
        await store.submit(JobRequest(operation="toy", inputs=(b"",)))
    return await store.counts()

warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forking with threads: rightly
store = open_store(sys.argv[1])
asyncio.run(use(store, 1))
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(use(store, 20))
        finally:
            os._exit(0 if sys.exception() is None else 1)
    children.append(pid)
failed = [pid for pid in children if os.waitpid(pid, 0)[1]]
assert not failed
assert asyncio.run(use(open_store(sys.argv[1]), 1)).queued == 62
"""

BUILDING = """
import os, sys, threading
from pathlib import Path
from serving.events.follow import Hub
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore, jobs_database

def opened():
    return sorted(os.listdir("/dev/fd")), threading.active_count()

directory, url = Path(sys.argv[1]), sys.argv[2]
before = opened()
logs = [SQLiteEventLog(jobs_database(directory)), RedisEventLog(url)]
built = [*map(Hub, logs), SQLiteJobStore(directory), RedisJobStore(url)]
assert opened() == before, (before, opened())
assert not directory.exists()
"""


def where(jobs: Jobs) -> str:
    return jobs.url if jobs.kind == "redis" else str(jobs.directory)


@asynccontextmanager
async def runner(jobs: Jobs, *, lease: float, hang_at: int = 0, most: int = 0) -> AsyncIterator[Process]:
    """A toy runner; killed at the end if it has not ended."""
    arguments = map(str, (where(jobs), lease, hang_at, most))
    command = (sys.executable, "-m", "tests.serving.jobs.toy_runner", *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run_code(code: str, *arguments: str) -> None:
    """Python in a process of its own that must end well and silently."""
    command = (sys.executable, "-c", code, *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=PIPE, start_new_session=True)
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)  # its own group: what it has forked goes with it
        await process.wait()
        raise
    assert (process.returncode, said.decode()) == (0, "")


async def outputs(processes: list[Process]) -> list[str]:
    """What they said until they ended, all of them well."""
    async with asyncio.timeout(60):
        said = await asyncio.gather(*[process.communicate() for process in processes])
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [line for out, _ in said for line in out.decode().splitlines()]


async def test_processes_that_claim_at_once_never_get_the_same_job(jobs: Jobs) -> None:
    """They also open the same file at once; it is there, but three of four have never opened it."""
    store = jobs.open()
    submitted = [(await store.submit(job_request(operation="toy"))).id for _ in range(60)]
    async with (
        runner(jobs, lease=60, most=1000) as one,
        runner(jobs, lease=60, most=1000) as two,
        runner(jobs, lease=60, most=1000) as three,
    ):
        claimed = await outputs([one, two, three])
    assert sorted(claimed) == sorted(submitted)
    assert (await store.counts()).done == 60


async def test_killed_runner_leaves_a_consistent_store_and_its_job_is_finished_by_another(jobs: Jobs) -> None:
    store = jobs.open()
    job = await store.submit(job_request(operation="toy", inputs=[b"%d" % n for n in range(8)]))
    for done in (2, 4):
        async with runner(jobs, lease=0.2, hang_at=done) as process:
            await until(_is_at(jobs, job.id, "running", done))
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert (await store.get(job.id)).state == "running"
        assert len(await store.missing(job.id)) == 8 - done
    if jobs.kind == "sqlite":
        with sqlite3.connect(jobs.directory / "jobs.db") as connection:
            assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        connection.close()
    async with runner(jobs, lease=60):
        await until(_is_at(jobs, job.id, "done", 8))
    finished = await store.get(job.id)
    kept = [result async for result in whole_result(store, finished)]
    assert [result.split()[0] for result in kept] == [b"%d" % n for n in range(8)]
    owners = {result.split()[-1] for result in kept}
    assert (finished.attempts, len(owners)) == (3, 3)


def _is_at(jobs: Jobs, job_id: str, state: str, chunks: int) -> Callable[[], Awaitable[bool]]:
    store = jobs.open()

    async def reached() -> bool:
        job = await store.get(job_id)
        return (job.state, job.chunks_done) == (state, chunks)

    return reached


async def test_first_processes_of_all_create_the_file_together(tmp_path: Path) -> None:
    jobs = Jobs("sqlite", tmp_path / "new" / "directory", "")
    async with (
        runner(jobs, lease=60, most=1) as one,
        runner(jobs, lease=60, most=1) as two,
        runner(jobs, lease=60, most=1) as three,
    ):
        assert await outputs([one, two, three]) == []


async def test_store_that_was_used_before_a_fork_is_opened_anew_after_it(jobs: Jobs) -> None:
    await run_code(FORKING, where(jobs))


async def test_stores_logs_and_hubs_are_built_without_opening_a_file_a_socket_or_a_thread(tmp_path: Path) -> None:
    await run_code(BUILDING, str(tmp_path / "data"), f"redis://127.0.0.1:{free_port()}/0")
