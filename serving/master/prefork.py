"""Prepares the master for the fork, so that its workers share as much of its memory as they can.

A page is shared until somebody writes to it. So whatever workers would import is imported here, their first requests
are answered here, garbage is returned to the system, and everything else is hidden from the garbage collector, which
would otherwise write to every object it visits.

Context for `unmap_unchanged`: importing numba alone touches 68 MB of LLVM's code. The master, which only forks and
watches from then on, would keep such pages mapped for as long as it lives, and a fork does not pass them on: each
worker maps what it calls. Decision: before the fork, all pages of files that nobody has written to are unmapped; code
that is called again comes back from the page cache. Consequence: the master holds 110 MB less, and code that nobody
calls is the first thing that a kernel short of memory can drop.
"""

from __future__ import annotations

import contextvars
import ctypes
import gc
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fastapi.dependencies.models
from starlette.types import ASGIApp

from serving.errors import CannotServe
from serving.process.kernel import lasting_threads
from serving.shared.pressure import give_back

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
"""Modules that uvicorn and FastAPI import when a worker starts or answers its first request."""

WARMED_PATHS = ("/health", "/v1/models", "/openapi.json")

MADV_DONTNEED = 4
SMAPS = Path("/proc/self/smaps")
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)$", re.MULTILINE)
FIELD = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


def import_modules(names: Iterable[str] = ()) -> None:
    """Import the modules that workers need, and `names` besides. Raises CannotServe naming a missing one."""
    for name in (*NEEDED_BY_WORKERS, *names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise CannotServe(f"cannot import {name}: {error}") from error


def warm(app: ASGIApp) -> None:
    """Have the app build everything that it builds lazily. Raises CannotServe."""
    for path in WARMED_PATHS:
        # in a context of its own, or the id of this request would stay in the master's log lines for ever
        contextvars.copy_context().run(_answer_once, app, path)


def _answer_once(app: ASGIApp, path: str) -> None:
    """Answer a GET of `path` without an event loop or a thread."""

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
    answering = app(scope, receive, send).__await__()
    for _ in answering:
        answering.close()
        raise CannotServe("a request that warms the app up must not wait for anything")


def settle() -> None:
    """Collect garbage, return free memory and unchanged pages, and hide the rest from the garbage collector.

    Loading a model leaves tens of megabytes of free heap behind.
    """
    gc.unfreeze()
    for cached in vars(fastapi.dependencies.models).values():
        if hasattr(cached, "cache_clear"):  # it keeps the functions of routes, and with them the app before a reload
            cached.cache_clear()
    gc.collect()
    give_back()
    unmap_unchanged()
    gc.freeze()


def check_single_thread() -> None:
    """Only the forking thread survives in a child; locks held by others stay locked for ever. Raises CannotServe."""
    names = lasting_threads()
    if len(names) != 1:
        raise CannotServe(f"{len(names)} threads at the fork, expected one: {', '.join(sorted(names))}")


def unmap_unchanged() -> int:
    """Unmap file pages that nobody has written to; bytes unmapped. Linux only; requires a single thread."""
    if not SMAPS.exists():
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # for locked pages the kernel refuses, and they stay
    return sum(
        resident
        for start, size, resident in list(unchanged_files(SMAPS.read_text()))
        if madvise(start, size, MADV_DONTNEED) == 0
    )


def unchanged_files(smaps: str) -> Iterator[tuple[int, int, int]]:
    """Start, size and resident bytes of each mapping in an `smaps` file that nobody has written to."""
    parts = iter(MAPPING.split(smaps)[1:])
    for start, end, permissions, path, details in zip(parts, parts, parts, parts, parts, strict=True):
        kilobytes = {name: int(value) for name, value in FIELD.findall(details)}
        changed = any(kilobytes.get(name) for name in ("Anonymous", "Private_Dirty", "Shared_Dirty"))
        if path.startswith("/") and "w" not in permissions and not changed and kilobytes.get("Rss"):
            yield int(start, 16), int(end, 16) - int(start, 16), kilobytes["Rss"] * 1024
