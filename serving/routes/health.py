"""`GET /health`, `/health/live` and `/health/ready`: 200 as long as the process can answer, with what is not well."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request

from cache.tiered import TieredCache
from registry.registry import Registry
from serving.jobs.watch import StoreWatch
from serving.processes import read_age, read_rss


def health_router(registry: Registry, cache: TieredCache, jobs: StoreWatch) -> APIRouter:
    """What is not well makes the service degraded, not dead: a proxy that took it out would make things worse."""
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("", summary="Health, with reasons")
    async def health(request: Request) -> dict[str, Any]:
        # nothing is opened before the fork
        store = "ok" if "warmup" in request.scope["state"] else await jobs.state()
        fallbacks = [f"{model.name}/{model.version}" for model in registry if model.fallback]
        return {
            "status": "degraded" if fallbacks or store != "ok" else "ok",
            "models": len(registry),
            "fallbacks": fallbacks,
            "redis": cache.redis_state,
            "jobs": store,
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
