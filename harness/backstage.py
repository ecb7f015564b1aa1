"""The stores behind a service and its streams, as a test sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from harness.processes import PATIENCE
from harness.sse import Frame, Stream
from serving.events.log import EventLog
from serving.jobs.job import JobRequest
from serving.jobs.store import JobStore

OPERATION = "test:nobody-runs-this"


class Backstage:
    """The stores behind a service, as another process has them: jobs that nobody runs, and their events."""

    def __init__(self, jobs: JobStore, events: EventLog, environ: dict[str, str]) -> None:
        self.jobs = jobs
        self.events = events
        self.environ = environ | {"ROLES": "web", "MAX_STREAMS_PER_ADDRESS": "0"}

    async def submit(self) -> str:
        return (await self.jobs.submit(JobRequest(operation=OPERATION, inputs=[b""]))).id

    async def tell(self, job: str, count: int, start: int = 0) -> list[int]:
        """Events whose data are their numbers; gives their ids."""
        return [await self.events.append(job, "chunk", b"%d" % number) for number in range(start, start + count)]

    async def close(self) -> None:
        await self.jobs.close()
        await self.events.close()


def path_of(job: str) -> str:
    return f"/v1/jobs/{job}/events"


async def take(frames: AsyncIterator[Frame], count: int) -> list[Frame]:
    """The next events; other frames are passed over."""
    taken: list[Frame] = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            frame = await anext(frames)
            if "event" in frame:
                taken.append(frame)
    return taken


async def rest(stream: Stream) -> list[Frame]:
    """All events until the stream ends."""
    async with asyncio.timeout(PATIENCE):
        return [frame async for frame in stream if "event" in frame]
