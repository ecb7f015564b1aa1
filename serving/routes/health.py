"""`GET /health`, `/health/live` and `/health/ready`: 200 as long as the process can answer, with what is not well."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from fastapi import APIRouter, Request

from cache.tiered import TieredCache
from registry.registry import Registry
from serving.data.source import Source
from serving.processes import read_age, read_rss
from serving.reloads import Reloads
from serving.storage.watch import StoreWatch


def health_router(
    registry: Registry, cache: TieredCache, reloads: Reloads, jobs: StoreWatch, records: StoreWatch, source: Source
) -> APIRouter:
    """A fallback, a version that a reload refused, a store out of reach make the service degraded, not dead.

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
        return {
            "status": "degraded" if fallbacks or refused or set(stores.values()) != {"ok"} else "ok",
            "models": len(registry),
            "fallbacks": fallbacks,
            "refused": refused,
            "redis": cache.redis_state,
            "supabase": source.state,
            **stores,
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
