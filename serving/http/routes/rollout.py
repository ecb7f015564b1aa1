"""Versions that are tried beside the live one: a canary answers a share of the requests, a shadow answers nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from registry.store import aliases
from serving.errors import NoCandidate, ReloadRefused
from serving.http.body import describe_body, read_json
from serving.http.representation import revalidate
from serving.predict.json_body import decode
from serving.service import Service
from serving.shared.reloads import ReloadOutcome

RELOAD_SECONDS = 20.0
"""Seconds that a client waits for the outcome of its reload; the reload goes on without it."""

MAX_REASON_CHARACTERS = 4000

MAX_BODY_BYTES = 4096

RELOAD_ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"description": "It takes longer; see /health"},
    409: {"description": "Something on disk is not fit to serve; the previous versions stay in service"},
}


class CanaryBody(msgspec.Struct, forbid_unknown_fields=True):
    """How many of the requests that name no version a canary answers; 0 ends it."""

    percent: Annotated[float, msgspec.Meta(ge=0, le=100)]


class ShadowBody(msgspec.Struct, forbid_unknown_fields=True):
    """Whether a version predicts beside the live one."""

    on: bool


_canary = msgspec.json.Decoder(CanaryBody)
_shadow = msgspec.json.Decoder(ShadowBody)


def add_rollout(router: APIRouter, service: Service) -> None:
    """The routes that begin and end the trial of a version."""

    @router.post(
        "/api/admin/models/{model}/versions/{version}:canary",
        summary="Have a version answer a share of the requests that name none; 0 ends it",
        responses=RELOAD_ANSWERS,
        openapi_extra=describe_body(CanaryBody),
    )
    async def canary(model: str, version: str, request: Request, response: Response) -> dict[str, Any]:
        percent = decode(_canary, await read_json(request, MAX_BODY_BYTES), 'send {"percent": 10}').percent
        begin = partial(aliases.begin_canary, version=version, percent=percent) if percent else None
        return await _change(service, model, version, begin, aliases.end_canary, response)

    @router.post(
        "/api/admin/models/{model}/versions/{version}:shadow",
        summary="Have a version predict beside the live one, and answer nobody, or no longer",
        responses=RELOAD_ANSWERS,
        openapi_extra=describe_body(ShadowBody),
    )
    async def shadow(model: str, version: str, request: Request, response: Response) -> dict[str, Any]:
        is_on = decode(_shadow, await read_json(request, MAX_BODY_BYTES), 'send {"on": true}').on
        begin = partial(aliases.begin_shadow, version=version) if is_on else None
        return await _change(service, model, version, begin, aliases.end_shadow, response)


async def _change(
    service: Service,
    model: str,
    version: str,
    begin: Callable[[Path], object] | None,
    end: Callable[[Path], object],
    response: Response,
) -> dict[str, Any]:
    """Begin the trial of a version, or end it if `begin` is None; it also ends if the version is refused.

    Raises ModelNotFound, NotLoaded, ReloadRefused, and what `begin` and `end` raise.
    """
    directory, reloads = service.model_dir / _known(service, model), service.shared.reloads
    await asyncio.to_thread(begin or end, directory)
    outcome = await reloads.ask(RELOAD_SECONDS)
    if begin is not None and (refused := refusal_of(outcome, model, version)):
        await asyncio.to_thread(end, directory)
        raise ReloadRefused(refused)
    return reloaded(outcome, response)


def rollout_router(service: Service) -> APIRouter:
    """The routes that show how a version that is tried does."""
    router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(revalidate)])

    @router.get("/{model}/canary", summary="How the canary of a model does beside the live version")
    async def show_canary(model: str) -> dict[str, Any]:
        found = canary_view(service, model)
        if found is None:
            raise NoCandidate(f"{model} has no canary")
        return found

    @router.get("/{model}/shadow", summary="How far the shadow of a model agrees with the live version")
    async def show_shadow(model: str) -> dict[str, Any]:
        found = shadow_view(service, model)
        if found is None:
            raise NoCandidate(f"{model} has no shadow")
        return found

    return router


def canary_view(service: Service, model: str) -> dict[str, Any] | None:
    """The canary of a model beside its live version, as JSON; None without one. Raises ModelNotFound, NotLoaded."""
    live, state = service.registry.get(model), service.registry.aliases(model).canary
    if state is None:
        return None
    shown = {"model": model, "live": live.version, **msgspec.to_builtins(state)}
    running = service.canaries.of(live)
    if running is None:
        return shown | {"is_on": False, "versions": {}}
    versions = {one.version: running.figures(one) for one in (running.candidate, live)}
    return shown | {"is_on": running.is_on, "versions": versions}


def shadow_view(service: Service, model: str) -> dict[str, Any] | None:
    """The shadow of a model beside its live version, as JSON; None without one. Raises ModelNotFound, NotLoaded."""
    live, state = service.registry.get(model), service.registry.aliases(model).shadow
    running = service.shadows.of(live)
    if state is None or running is None:
        return None
    return {"model": model, "live": live.version, **msgspec.to_builtins(state)} | running.counts.shown()


def _known(service: Service, model: str) -> str:
    """The name of a model that is loaded, which is that of a directory. Raises ModelNotFound, NotLoaded."""
    service.registry.versions(model)
    return model


def refusal_of(outcome: ReloadOutcome | None, model: str, version: str) -> str:
    """Why a reload has refused a version; empty if it has not, or nothing is known."""
    refused = () if outcome is None else outcome.refused
    return "; ".join(line for line in refused if line.startswith(f"{model}/{version}/"))[:MAX_REASON_CHARACTERS]


def reloaded(outcome: ReloadOutcome | None, response: Response) -> dict[str, Any]:
    """The outcome of a reload; 202 while it is not known."""
    if outcome is None:
        response.status_code = HTTPStatus.ACCEPTED
        return {"status": "reloading"}
    return {"status": "reloaded", **msgspec.to_builtins(outcome)}


def reasons_of(outcome: ReloadOutcome) -> str:
    """Why a reload did not do what was asked for."""
    return ("; ".join(outcome.refused) or "the model directory has changed meanwhile")[:MAX_REASON_CHARACTERS]
