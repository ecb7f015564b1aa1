"""`POST /v1/models/{model}/outcomes`: what really happened, for retraining and to see how good a model is."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from serving.entities.store import Source
from serving.entities.writer import OutcomeWriter
from serving.http.edge import check_json, read_body
from serving.monitoring.quality import OutcomeReader

LATE = "respond-async"
"""The preference (RFC 7240) of who does not wait until the outcomes are stored."""

BODY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "instances": {"type": "array", "minItems": 1, "description": "As they are sent for predictions"},
        "outcomes": {"type": "array", "description": "For each instance, its label or its number"},
        "version": {"type": "string", "description": "Which is judged by it; the live one if none is named"},
        "time": {"type": "string", "description": "When it happened, ISO 8601; now if it is not given"},
        "request_id": {"type": "string", "description": "Of the prediction; what is sent again is stored once"},
    },
    "required": ["instances", "outcomes"],
    "additionalProperties": False,
}


def outcomes_router(source: Source, reader: OutcomeReader, writer: OutcomeWriter, *, max_body_bytes: int) -> APIRouter:
    """Outcomes are kept by `source`, or for who does not wait by `writer`."""
    router = APIRouter(prefix="/v1/models", tags=["outcomes"])

    @router.post(
        "/{model}/outcomes",
        status_code=201,
        summary="Say what really happened",
        responses={
            200: {"description": "All of them were stored before"},
            202: {"description": "They will be stored, for who sends `Prefer: respond-async`"},
        },
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": BODY}}}},
    )
    async def store(model: str, request: Request) -> Response:
        headers = dict(request.scope["headers"])
        check_json(headers)
        outcomes = await reader.read(model, await read_body(headers, request.receive, max_body_bytes))
        said: dict[str, Any] = {"model": outcomes[0].model, "version": outcomes[0].version}
        if request.headers.get("prefer", "").strip().lower() == LATE:
            writer.add(outcomes)
            return _answer(said | {"accepted": len(outcomes)}, HTTPStatus.ACCEPTED)
        stored = await source.add_outcomes(outcomes)
        return _answer(said | {"stored": stored}, HTTPStatus.CREATED if stored else HTTPStatus.OK)

    return router


def _answer(said: dict[str, Any], status: HTTPStatus) -> Response:
    return Response(msgspec.json.encode(said), status, media_type="application/json")
