"""`GET /v1/models/{model}/quality`: how right predictions were, by hour or day, judged by outcomes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from serving.entities.record import Span, parse_time
from serving.errors import InvalidRequest
from serving.monitoring.quality import QualityHistory
from serving.service import Service

By = Annotated[str, Query(description="`hour` or `day`, in UTC")]
Since = Annotated[str | None, Query(description="In ISO 8601; default and at most 31 days of hours, 366 days")]
Version = Annotated[str | None, Query(description="Only this version; default all that have outcomes")]


def quality_router(service: Service) -> APIRouter:
    """The route over what the store has added up."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    history = QualityHistory(service.registry, service.shared.entities)

    @router.get("/{model}/quality", summary="The quality of predictions over time")
    async def show_quality(model: str, by: By = "day", since: Since = None, version: Version = None) -> dict[str, Any]:
        moment = None if since is None else parse_time(since)
        return await history.show(model, _span(by), moment, version)

    return router


def _span(text: str) -> Span:
    if text not in ("hour", "day"):
        raise InvalidRequest("by must be hour or day")
    return "hour" if text == "hour" else "day"
