"""What the master does before it forks, so that the workers share as much of its memory as they can.

A page is shared until somebody writes to it. So all that workers would import is imported here, their first request is
answered here, what is garbage is given back to the system, and what is left is hidden from the garbage collector,
which would otherwise write to every object that it looks at.
"""

from __future__ import annotations

import contextvars
import gc
import importlib
import os
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any

from serving.errors import CannotServe
from serving.http.edge import App
from serving.master.code_pages import unmap_unchanged
from serving.master.trimming import give_back
from serving.process.kernel import thread_names

NEEDED_BY_WORKERS = (
    "anyio._backends._asyncio",
    "asyncio.runners",
    "concurrent.futures.thread",
    "httptools",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)
"""What uvicorn and FastAPI import when a worker starts or answers its first request."""


def import_modules(names: Iterable[str] = ()) -> None:
    """Import what the workers will need, and `names` besides. Raises CannotServe naming what is not there."""
    for name in (*NEEDED_BY_WORKERS, *names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise CannotServe(f"cannot import {name}: {error}") from error


def warm(app: App) -> None:
    """Have the app build what it builds lazily. Raises CannotServe."""
    for path in ("/health", "/v1/models", "/openapi.json"):
        answer_once(app, path)


def answer_once(app: App, path: str) -> None:
    """Answer a GET of `path` here: builds what the app builds lazily, without an event loop or a thread."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None: ...

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
        "state": {"warmup": True},
    }
    # in a context of its own, or the id of this request would stay with the master's log lines for ever
    contextvars.copy_context().run(_run, app(scope, receive, send))


def _run(coroutine: Awaitable[None]) -> None:
    """Run a coroutine that never has to wait."""
    assert isinstance(coroutine, Coroutine)
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise CannotServe("a request that warms the app up may not wait for anything")


def settle() -> None:
    """Collect garbage, give back free memory and unchanged pages, and hide the rest from the garbage collector.

    Loading a model leaves tens of megabytes of free heap behind.
    """
    gc.unfreeze()
    gc.collect()
    give_back()
    unmap_unchanged()
    gc.freeze()


def check_single_thread() -> None:
    """Only the forking thread lives on in the child; locks that others hold are held for ever. Raises CannotServe."""
    names = thread_names(os.getpid())
    if len(names) != 1:
        raise CannotServe(f"{len(names)} threads at the fork, there may be one: {', '.join(sorted(names))}")
