"""`/api/admin/`: what the operator sees; closed unless ADMIN_TOKEN is set."""

from __future__ import annotations

import asyncio
import hmac
import os
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header

from serving.errors import NotAuthorized
from serving.processes import RUNNER, child_pids, name_of, read_age, read_memory


def admin_router(token: str) -> APIRouter:
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

    @router.get("/metrics", summary="Figures of all processes", dependencies=[Depends(authorize)])
    async def metrics() -> dict[str, Any]:
        # some milliseconds a process: too long for the event loop
        return await asyncio.to_thread(_process_figures)

    return router


def _process_figures() -> dict[str, Any]:
    """Memory and age of the master, its workers and its job runners; PSS adds up to what the box really spends."""
    master = os.getppid()
    figures = {pid: _figures(pid) for pid in (master, *child_pids(master))}
    alive = {pid: figure for pid, figure in figures.items() if figure is not None}
    return {
        "pss_bytes": sum(figure["pss_bytes"] for figure in alive.values()),
        "master": alive.get(master),
        "workers": [figure for pid, figure in alive.items() if pid != master and figure["name"] != RUNNER],
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
