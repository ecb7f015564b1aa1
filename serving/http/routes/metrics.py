"""`GET /api/admin/metrics`, `/api/admin/events` and `/metrics`: the figures of all processes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Response

from serving.http.routes.authorizing import Authorize
from serving.http.sse import EventStream, Frames, Streams, frame, opening
from serving.monitoring.quality import LiveQuality
from serving.status.json import summarize
from serving.status.prometheus import expose
from serving.status.snapshot import Figures

EVENTS_SECONDS = 2.0

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def metrics_router(authorize: Authorize | None, figures: Figures, streams: Streams, quality: LiveQuality) -> APIRouter:
    """Behind the admin token; without one there are none of these."""
    router = APIRouter(tags=["admin"])
    if authorize is None:
        return router
    guarded = [Depends(authorize)]

    @router.get("/api/admin/metrics", summary="Figures of all processes", dependencies=guarded)
    async def metrics() -> dict[str, Any]:
        return summarize(await figures.take()) | {"quality": await quality.take()}

    @router.get("/api/admin/events", summary="The same, again and again, as server-sent events", dependencies=guarded)
    async def events() -> Response:
        return EventStream(streams, _frames(figures, quality, streams.ending))

    @router.get("/metrics", summary="The same for Prometheus", dependencies=guarded, response_class=Response)
    async def prometheus() -> Response:
        return Response(expose(await figures.take()), headers={"content-type": PROMETHEUS})

    return router


async def _frames(figures: Figures, quality: LiveQuality, ending: asyncio.Event) -> Frames:
    yield opening()
    while not ending.is_set():
        yield frame("metrics", msgspec.json.encode(summarize(await figures.take()) | {"quality": await quality.take()}))
        with suppress(TimeoutError):
            async with asyncio.timeout(EVENTS_SECONDS):
                await ending.wait()
