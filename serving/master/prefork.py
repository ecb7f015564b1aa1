"""What the master does before it forks, so that its workers share as much of its memory as they can.

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
import os
from collections.abc import Awaitable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from serving.errors import CannotServe
from serving.process.kernel import thread_names
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
        _answer_once(app, path)


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
    # in a context of its own, or the id of this request would stay in the master's log lines for ever
    contextvars.copy_context().run(_run, app(scope, receive, send))


def _run(coroutine: Awaitable[None]) -> None:
    """Run a coroutine that never has to wait."""
    assert isinstance(coroutine, Coroutine)
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise CannotServe("a request that warms the app up must not wait for anything")


def settle() -> None:
    """Collect garbage, return free memory and unchanged pages, and hide the rest from the garbage collector.

    Loading a model leaves tens of megabytes of free heap behind.
    """
    gc.unfreeze()
    gc.collect()
    give_back()
    unmap_unchanged()
    gc.freeze()


def check_single_thread() -> None:
    """Only the forking thread survives in a child; locks held by others stay locked for ever. Raises CannotServe."""
    names = thread_names(os.getpid())
    if len(names) != 1:
        raise CannotServe(f"{len(names)} threads at the fork, there may be one: {', '.join(sorted(names))}")


@dataclass(slots=True)
class Mapping:
    """A part of the address space of this process; sizes in bytes."""

    start: int
    size: int
    permissions: str
    path: str
    resident: int = 0
    changed: int = 0
    """Pages that differ from the file's: relocated, or written to."""

    @property
    def is_unchanged_file(self) -> bool:
        return self.path.startswith("/") and "w" not in self.permissions and not self.changed and self.resident > 0


def unmap_unchanged() -> int:
    """Unmap file pages that nobody has written to; bytes unmapped. Linux only; requires a single thread."""
    if not SMAPS.exists():
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    unmapped = 0
    for mapping in list(mappings(SMAPS.read_text().splitlines())):
        # for locked pages the kernel refuses, and they stay
        if mapping.is_unchanged_file and madvise(mapping.start, mapping.size, MADV_DONTNEED) == 0:
            unmapped += mapping.resident
    return unmapped


def mappings(lines: Iterable[str]) -> Iterator[Mapping]:
    """The mappings that the lines of an `smaps` file describe."""
    mapping: Mapping | None = None
    for line in lines:
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            if mapping is not None:
                yield mapping
            start, _, end = first.partition("-")
            permissions, _, _, _, *path = rest.split(maxsplit=4)
            name = path[0] if path else ""
            mapping = Mapping(int(start, 16), int(end, 16) - int(start, 16), permissions, name)
        elif mapping is not None and first == "Rss:":
            mapping.resident = _bytes(rest)
        elif mapping is not None and first in ("Anonymous:", "Private_Dirty:", "Shared_Dirty:"):
            mapping.changed += _bytes(rest)
    if mapping is not None:
        yield mapping


def _bytes(field: str) -> int:
    return int(field.split(maxsplit=1)[0]) * 1024
