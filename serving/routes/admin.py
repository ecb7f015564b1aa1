"""`/api/admin/`: what the operator sees; closed unless ADMIN_TOKEN is set."""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Response

from registry import aliases
from registry.aliases import Aliases
from registry.errors import VersionNotFound, VersionRefused
from registry.registry import Registry
from serving.errors import NotAuthorized, ReloadRefused
from serving.outcomes import LiveQuality
from serving.processes import RUNNER, WEB, child_pids, name_of, read_age, read_memory
from serving.reloads import Outcome, Reloads
from serving.streams import EventStream, Frames, Streams, frame, opening

EVENTS_SECONDS = 2.0
FRESH_SECONDS = 0.5
"""However many look on, the kernel adds up the pages of every process only so often."""

RELOAD_SECONDS = 20.0
"""How long a client waits to hear what came of its reload; it goes on without it."""

LONGEST = 4000

REFUSED = {"description": "Something on disk is not fit to serve: the old stays in service"}
RELOAD: dict[str, Any] = {
    "summary": "Take over what is new in the model directory",
    "responses": {202: {"description": "It takes longer; see /health"}, 409: REFUSED},
}
ROLLBACK: dict[str, Any] = RELOAD | {"summary": "Make the previous version of a model live again"}


def admin_router(
    token: str, registry: Registry, model_dir: Path, reloads: Reloads, streams: Streams, quality: LiveQuality
) -> APIRouter:
    """Admin routes behind `token`; without one there are none, so that a forgotten setting opens nothing."""
    router = APIRouter(prefix="/api/admin", tags=["admin"])
    if not token:
        return router
    expected = token.encode()

    async def authorize(
        authorization: Annotated[str | None, Header()] = None,
        x_admin_token: Annotated[str | None, Header()] = None,
    ) -> None:
        scheme, _, credentials = (authorization or "").partition(" ")
        given = credentials if scheme.lower() == "bearer" else (x_admin_token or "")
        # as bytes: compare_digest refuses text that is not ASCII, and a header may hold any byte
        if not hmac.compare_digest(given.strip().encode("latin-1"), expected):
            raise NotAuthorized("a valid admin token is needed")

    figures = Figures(quality)

    @router.get("/metrics", summary="Figures of all processes", dependencies=[Depends(authorize)])
    async def metrics() -> dict[str, Any]:
        return await figures.take()

    @router.get(
        "/events", summary="The same, again and again, as server-sent events", dependencies=[Depends(authorize)]
    )
    async def events() -> Response:
        return EventStream(streams, _frames(figures, streams.ending))

    @router.post("/models:reload", dependencies=[Depends(authorize)], **RELOAD)
    async def reload(response: Response) -> dict[str, Any]:
        outcome = await reloads.ask(RELOAD_SECONDS)
        if outcome is not None and outcome.refused:
            raise ReloadRefused(reasons(outcome))
        return told(outcome, response)

    @router.post("/models/{model}:rollback", dependencies=[Depends(authorize)], **ROLLBACK)
    async def rollback(model: str, response: Response) -> dict[str, Any]:
        after = await asyncio.to_thread(_roll_back, registry, model, model_dir)
        outcome = await reloads.ask(RELOAD_SECONDS)
        if outcome is not None and outcome.live.get(model) != after.live:
            raise ReloadRefused(reasons(outcome))
        return told(outcome, response)

    return router


class Figures:
    """The figures of all processes, taken once for all who ask within FRESH_SECONDS."""

    def __init__(self, quality: LiveQuality) -> None:
        self._quality = quality
        self._lock = asyncio.Lock()
        self._taken = -math.inf
        self._figures: dict[str, Any] = {}

    async def take(self) -> dict[str, Any]:
        """Figures that are at most FRESH_SECONDS old."""
        async with self._lock:
            if time.monotonic() - self._taken > FRESH_SECONDS:
                # some milliseconds a process: too long for the event loop
                figures = await asyncio.to_thread(_process_figures)
                self._figures = figures | {"quality": await self._quality.take()}
                self._taken = time.monotonic()
            return self._figures


async def _frames(figures: Figures, ending: asyncio.Event) -> Frames:
    yield opening()
    while not ending.is_set():
        yield frame("metrics", msgspec.json.encode(await figures.take()))
        with suppress(TimeoutError):
            async with asyncio.timeout(EVENTS_SECONDS):
                await ending.wait()


def told(outcome: Outcome | None, response: Response) -> dict[str, Any]:
    """What came of a reload; 202 while that is not known."""
    if outcome is None:
        response.status_code = HTTPStatus.ACCEPTED
        return {"status": "reloading"}
    return {"status": "reloaded", **msgspec.to_builtins(outcome)}


def reasons(outcome: Outcome) -> str:
    """Why not, as long as an answer may be."""
    return ("; ".join(outcome.refused) or "the model directory has changed meanwhile")[:LONGEST]


def _roll_back(registry: Registry, name: str, model_dir: Path) -> Aliases:
    """Raises ModelNotFound, VersionNotFound when the previous version is not loaded, ReloadRefused."""
    served = registry.versions(name)
    try:
        before = aliases.current(model_dir / name)
        if before.previous not in served:
            raise VersionNotFound
        return aliases.rollback(model_dir / name)
    except VersionRefused as error:
        raise ReloadRefused(f"{name}/{error.path.name}: {error.reason}") from error


def _process_figures() -> dict[str, Any]:
    """Memory and age of the master, its workers and its job runners; PSS adds up to what the box really spends."""
    master = os.getppid()
    figures = {pid: _figures(pid) for pid in (master, *child_pids(master))}
    alive = {pid: figure for pid, figure in figures.items() if figure is not None}
    return {
        "pss_bytes": sum(figure["pss_bytes"] for figure in alive.values()),
        "master": alive.get(master),
        "workers": [figure for pid, figure in alive.items() if figure["name"] == WEB],
        "runners": [figure for figure in alive.values() if figure["name"] == RUNNER],
    }


def _figures(pid: int) -> dict[str, Any] | None:
    try:
        memory = read_memory(pid)
        age = read_age(pid)
        name = name_of(pid)
    except OSError:  # gone in between, or not ours to look at
        return None
    return {
        "pid": pid,
        "name": name,
        "age_seconds": round(age, 1),
        "pss_bytes": memory.pss,
        "private_bytes": memory.private,
        "shared_bytes": memory.shared,
    }
