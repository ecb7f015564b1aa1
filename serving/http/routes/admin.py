"""`/api/admin/models`: reload and rollback; closed unless ADMIN_TOKEN is set."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Response

from registry.errors import VersionNotFound, VersionRefused
from registry.registry import Registry
from registry.store import aliases
from registry.store.aliases import Aliases
from serving.errors import ReloadRefused
from serving.http.routes.authorizing import Authorize
from serving.shared.reloads import Outcome, Reloads

RELOAD_SECONDS = 20.0
"""How long a client waits to hear what came of its reload; it goes on without it."""

LONGEST = 4000

REFUSED = {"description": "Something on disk is not fit to serve: the old stays in service"}
RELOAD: dict[str, Any] = {
    "summary": "Take over what is new in the model directory",
    "responses": {202: {"description": "It takes longer; see /health"}, 409: REFUSED},
}
ROLLBACK: dict[str, Any] = RELOAD | {"summary": "Make the previous version of a model live again"}


def admin_router(authorize: Authorize | None, registry: Registry, model_dir: Path, reloads: Reloads) -> APIRouter:
    """Behind the admin token; without one there are none of these."""
    router = APIRouter(prefix="/api/admin", tags=["admin"])
    if authorize is None:
        return router

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
