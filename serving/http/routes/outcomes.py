"""`POST /v1/models/{model}/outcomes`: store what really happened, for retraining and to measure quality."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from serving.entities.outcomes import OutcomesBody
from serving.entities.store import Added
from serving.http.body import answer_json, describe_body, read_json, turns_of_client
from serving.http.keys import key_of
from serving.http.routes.predictions import may_see
from serving.monitoring.logged_outcomes import LoggedOutcomes
from serving.service import Service

RESPOND_ASYNC = "respond-async"
"""The preference (RFC 7240) of a client that does not wait until its outcomes are stored."""


def outcomes_router(service: Service) -> APIRouter:
    """Outcomes are stored before the answer, or after it if the client does not wait."""
    router = APIRouter(prefix="/v1/models", tags=["outcomes"])
    logged = LoggedOutcomes(
        service.registry,
        service.shared.predictions,
        service.shared.recorder,
        max_instances=service.limits.max_instances,
    )

    @router.post(
        "/{model}/outcomes",
        status_code=201,
        summary="Store the outcomes of predictions",
        responses={
            200: {"description": "All of them had been stored before, or none of their predictions is logged"},
            202: {"description": "They will be stored soon (`Prefer: respond-async`)"},
        },
        openapi_extra=describe_body(OutcomesBody),
    )
    async def store(model: str, request: Request) -> Response:
        own = key_of(request.scope)
        writer = own.name
        body = await read_json(request, service.limits.max_body_bytes)
        with turns_of_client(request.receive) as turns:
            sent = await service.outcome_reader.decode(body, turns)
            missing: dict[str, Any] = {}
            if isinstance(sent.instances, msgspec.UnsetType):
                joined = await logged.read(model, sent, turns, partial(may_see, own))
                outcomes, missing = joined.outcomes, joined.said()
            else:
                outcomes = await service.outcome_reader.read(model, sent, sent.instances, turns, writer)
        versions = {one.version for one in outcomes}
        said = {"model": model} | ({"version": versions.pop()} if len(versions) == 1 else {}) | missing
        if not outcomes:
            return answer_json(said | Added().said())
        if request.headers.get("prefer", "").strip().lower() == RESPOND_ASYNC:
            service.outcome_writer.add(outcomes, writer, len(body))
            return answer_json(said | {"accepted": len(outcomes)}, HTTPStatus.ACCEPTED)
        added = await service.shared.entities.add_outcomes(outcomes, writer)
        service.quality.wake([model])
        return answer_json(said | added.said(), HTTPStatus.CREATED if added.stored else HTTPStatus.OK)

    return router
