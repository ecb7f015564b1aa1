"""`GET /health`, `/health/live` and `/health/ready`: 200 as long as the process can answer, with what is not well."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
from fastapi import APIRouter, Request

from cache.tiered import TieredCache
from registry.registry import Registry
from serving.entities.store import EntityStore
from serving.process.kernel import read_age, read_rss
from serving.shared.pressure import Pressure
from serving.shared.reloads import Reloads
from serving.storage.watch import StoreWatch
from serving.training.last import LastTrainings


def health_router(
    registry: Registry,
    cache: TieredCache,
    reloads: Reloads,
    jobs: StoreWatch,
    records: StoreWatch,
    source: EntityStore,
    pressure: Pressure,
    trainings: LastTrainings,
) -> APIRouter:
    """A fallback, a version that a reload refused, what is out of reach, want of memory: degraded, not dead.

    A proxy that took it out would make things worse.
    """
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("", summary="Health, with reasons")
    async def health(request: Request) -> dict[str, Any]:
        # nothing is opened before the fork
        warming = "warmup" in request.scope["state"]
        stores = {"jobs": "ok", "records": "ok"}
        if not warming:
            states = await asyncio.gather(jobs.state(), records.state())
            stores = dict(zip(stores, states, strict=True))
        fallbacks = [f"{model.name}/{model.version}" for model in registry if model.fallback]
        refused = reloads.last().refused
        memory = pressure.read()
        breakers = {"redis": cache.redis_state, "supabase": source.state}
        away = {"unavailable", "open", "half-open"}.intersection((*stores.values(), *breakers.values()))
        well = memory.stage == "calm" and not away
        return {
            "status": "ok" if well and not fallbacks and not refused else "degraded",
            "models": len(registry),
            "fallbacks": fallbacks,
            "refused": refused,
            "redis": cache.redis_state,
            **stores,
            "last_training": msgspec.to_builtins(trainings.by_model()),
            "breakers": breakers,
            "memory": {
                "used_bytes": memory.used or None,
                "limit_bytes": memory.limit or None,
                "stage": memory.stage,
            },
            "worker": {
                "pid": os.getpid(),
                "age_seconds": round(read_age(os.getpid()), 1),
                "rss_bytes": read_rss(os.getpid()),
            },
        }

    @router.get("/live", summary="The process answers")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="The models are loaded")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    return router
