"""Asks an app in this process, without a server or a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    """A client of the app, as if it were at http://localhost; a context manager. The app's lifespan is not run."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def ask_app(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """The app's answer to one request, in an event loop of its own."""

    async def ask() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())
