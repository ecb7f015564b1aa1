"""Asks an app in this process, without a server or a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from starlette.types import ASGIApp

from serving.app import Application
from serving.monitoring.predictions.store import EVERY_ROW


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    """A client of the app, as if it were at http://localhost; a context manager. The app's lifespan is not run."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


@asynccontextmanager
async def served(app: Application) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose parts run in this event loop."""
    async with AsyncExitStack() as closing:
        await app.service.open(closing)
        async with client_of(app) as client:
            yield client


@asynccontextmanager
async def recorded(app: Application) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose recorder works in a task of this event loop; nothing is logged at first."""
    shared = app.service.shared
    assert shared.recorder is not None
    await shared.predictions.delete(EVERY_ROW)
    stop = shared.recorder.start()
    async with client_of(app) as client:
        yield client
    await stop()


def ask_app(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """The app's answer to one request, in an event loop of its own."""

    async def ask() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())
