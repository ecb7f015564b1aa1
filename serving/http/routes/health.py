"""`GET /health`, `/health/live` and `/health/ready`: 200 as long as the process answers, with its degraded parts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Request

from registry.registry import Registry
from serving.process.kernel import read_age, read_rss
from serving.service import Service
from serving.storage.background import StoreHealth, watch_store

SERVER_STATES: Mapping[str, str] = {"closed": "ok", "half-open": "away", "open": "away", "disabled": "disabled"}
"""What the state of a breaker says about its server."""


def health_router(registry: Registry, check: HealthCheck) -> APIRouter:
    """A fallback, a forced or refused version, an unavailable store or memory pressure mean degraded, not dead.

    A proxy that took the service out of rotation would make things worse.
    """
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("", summary="Health, with reasons")
    async def health(request: Request) -> dict[str, Any]:
        return await check.report(warming="warmup" in request.scope["state"])

    @router.get("/live", name="live", summary="The process answers")
    async def answer() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", name="ready", summary="The models are loaded, all of them or some")
    async def ready() -> dict[str, str]:
        return {"status": "degraded" if registry.refusals else "ok"}

    return router


class HealthCheck:
    """Looks at all that may be degraded."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs = watch_store(service.shared.jobs.probe, service.shared.jobs.risk)
        self._records = watch_store(service.shared.entities.probe, service.shared.entities.risk)

    def _refused_now(self) -> list[str]:
        """A line for each version that could not be loaded, and why a reload failed."""
        reasons = [refusal.reason for refusal in self._service.registry.refusals]
        return list(dict.fromkeys((*reasons, *self._service.shared.reloads.last().refused)))

    async def report(self, *, warming: bool = False) -> dict[str, Any]:
        """The health with its reasons; while `warming`, before the fork, nothing is opened."""
        service, registry = self._service, self._service.registry
        found = [StoreHealth("ok")] * 2 if warming else await asyncio.gather(self._jobs.get(), self._records.get())
        kept = dict(zip(("jobs", "records"), found, strict=True))
        stores = {name: health.state for name, health in kept.items()}
        fallbacks = [f"{model.name}/{model.version}" for model in registry if model.fallback]
        forced = {f"{model.name}/{model.version}": model.manifest.forced for model in registry if model.manifest.forced}
        refused = self._refused_now()
        memory = service.shared.pressure.read()
        servers = {name: SERVER_STATES[state] for name, state in _breakers(service).items()}
        away = {"unavailable", "away"}.intersection((*stores.values(), *servers.values()))
        well = memory.stage == "calm" and not away
        return {
            "status": "ok" if well and not fallbacks and not forced and not refused else "degraded",
            "models": len(registry),
            "fallbacks": fallbacks,
            "forced": forced,
            "refused": refused,
            **servers,
            **stores,
            "reasons": {name: health.reason for name, health in kept.items() if health.reason},
            "last_training": msgspec.to_builtins(await service.trainings.get()),
            "breakers": _breakers(service),
            "memory": {"used_bytes": memory.used or None, "limit_bytes": memory.limit or None, "stage": memory.stage},
            "worker": {
                "pid": os.getpid(),
                "age_seconds": round(read_age(os.getpid()), 1),
                "rss_bytes": read_rss(os.getpid()),
            },
        }


def _breakers(service: Service) -> dict[str, str]:
    return {"redis": service.cache.redis_state, "supabase": service.shared.entities.state}
