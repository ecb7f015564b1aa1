"""Work in the background: one task while there is work, none before and after."""

from __future__ import annotations

import asyncio

import pytest

from serving.storage.background import BackgroundTask

pytestmark = pytest.mark.anyio


async def test_one_task_does_all_the_work_and_then_ends() -> None:
    queue, runs = [1], 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        while queue:
            queue.pop()
            await asyncio.sleep(0)

    before = asyncio.all_tasks()
    background = BackgroundTask(work, closing_seconds=60.0)
    assert asyncio.all_tasks() == before
    background.wake()
    queue.append(2)
    background.wake()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (queue, runs, asyncio.all_tasks()) == ([], 1, before)
    background.wake()
    await background.close()
    assert (runs, asyncio.all_tasks()) == (2, before)


async def test_work_that_does_not_end_is_cancelled() -> None:
    background = BackgroundTask(asyncio.Event().wait, closing_seconds=0.01)  # type: ignore[arg-type]
    before = asyncio.all_tasks()
    background.wake()
    await background.close()
    assert asyncio.all_tasks() == before
