"""`/v1/predictions`: what was asked and answered, of one request or page by page; explained, and deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.convertors import Convertor, register_url_convertor

from registry.model import LoadedModel
from serving.entities.record import check_name, parse_time
from serving.errors import InvalidRequest, NotPermitted, PredictionNotFound, TooManyInstances
from serving.http.body import answer_json
from serving.http.keys import Key, key_of
from serving.http.routes.entities import OWN_ONLY, After, Limit, deletes_of, page_of
from serving.monitoring.predictions.store import LoggedPrediction, PredictionStore, Wanted
from serving.service import Service

OPERATORS = frozenset({"read", "admin"})
"""Keys of these scopes see the predictions of all keys."""

MISSING = "{} is not logged (LOG_PREDICTIONS_REDACT), so this prediction cannot be explained"

Text = Annotated[str | None, Query()]
Time = Annotated[str | None, Query(description="ISO 8601")]


class _WithoutColon(Convertor[str]):
    """A part of a path that is no operation: `{id}:explain` is not the id of a request."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def predictions_router(service: Service) -> APIRouter:
    """Routes over the log of predictions. A key without a scope of OPERATORS has what it has asked itself."""
    register_url_convertor("request_id", _WithoutColon())
    router = APIRouter(prefix="/v1/predictions", tags=["predictions"])
    erasure = service.erasure

    @router.get("/{request_id:request_id}", summary="What was asked and answered in a request")
    async def show_prediction(request_id: str, request: Request) -> Response:
        rows = await _find(service, request_id, key_of(request.scope))
        return answer_json({"request_id": request_id, "predictions": rows})

    @router.post("/{request_id:request_id}:explain", summary="Explain a logged prediction by the version that answered")
    async def explain_prediction(request_id: str, request: Request) -> Response:
        rows = await _find(service, request_id, key_of(request.scope))
        return answer_json({"request_id": request_id, "explanations": await _explained(service, rows)})

    @router.delete("/{request_id:request_id}", summary="Delete what is logged of a request")
    async def delete_prediction(request_id: str, request: Request) -> Response:
        own = key_of(request.scope)
        await _find(service, request_id, own)
        deleted = await erasure.of_log(Wanted(request_id=request_id, key=deletes_of(own)))
        if not deleted.total:
            raise NotPermitted(OWN_ONLY, "admin")
        return answer_json({"request_id": request_id, "deleted": {"predictions": deleted.predictions}})

    _add_list(router, service.shared.predictions)
    return router


def _add_list(router: APIRouter, store: PredictionStore) -> None:
    @router.get("", summary="Logged predictions, newest first")
    async def list_predictions(
        request: Request, wanted: Annotated[Wanted, Depends(_wanted)], limit: Limit = None, after: After = ""
    ) -> Response:
        own, count = key_of(request.scope), page_of(limit)
        if wanted.model is not None:
            own.check_model(wanted.model)
        found = await store.find(wanted, count, after)
        following = found[-1].id if len(found) == count else None
        return answer_json({"predictions": [row for row in found if own.may_use(row.model)], "next": following})


async def _wanted(
    model: Text = None,
    version: Text = None,
    entity: Text = None,
    key: Annotated[str | None, Query(description="Name of the key that asked")] = None,
    since: Time = None,
    until: Time = None,
) -> Wanted:
    """What a query asks for. Raises InvalidRequest."""
    if entity is not None:
        check_name(entity)
    return Wanted(model=model, version=version, entity=entity, key=key, since=_moment(since), until=_moment(until))


async def _find(service: Service, request_id: str, key: Key) -> list[LoggedPrediction]:
    """The rows of a request that a key may see. Raises PredictionNotFound."""
    store, recorder = service.shared.predictions, service.shared.recorder
    rows = await store.get(request_id)
    if not rows and recorder is not None:
        await recorder.settle()
        rows = await store.get(request_id)
    seen = [row for row in rows if may_see(key, row)]
    if not seen:
        raise PredictionNotFound
    return seen


def may_see(key: Key, row: LoggedPrediction) -> bool:
    """Whether the holder of a key may know a logged row: its own, or all for keys of OPERATORS."""
    is_own = key.name != "" and row.key == key.name
    return (is_own or bool(key.scopes & OPERATORS)) and key.may_use(row.model)


async def _explained(service: Service, rows: Sequence[LoggedPrediction]) -> list[dict[str, Any]]:
    """An explanation for each row. Raises TooManyInstances, ModelNotFound, VersionNotFound, what `_explain` raises."""
    most = service.limits.max_explained_instances
    if len(rows) > most:
        raise TooManyInstances(f"at most {most} rows are explained at once")
    explanations: dict[str, msgspec.Raw] = {}
    for name, version in dict.fromkeys((row.model, row.version) for row in rows):
        own = [row for row in rows if (row.model, row.version) == (name, version)]
        explanations |= await _explain(service, service.registry.get(name, version), own)
    return [
        {"place": row.place, "model": row.model, "version": row.version, "explanation": explanations[row.id]}
        for row in rows
    ]


async def _explain(service: Service, model: LoadedModel, rows: Sequence[LoggedPrediction]) -> dict[str, msgspec.Raw]:
    """The explanations of rows by their ids. Raises InvalidRequest where a column is missing, InvalidRows."""
    hidden = [name for name in model.schema.names if any(name not in row.row for row in rows)]
    if hidden:
        raise InvalidRequest(MISSING.format(hidden[0]))
    table = model.schema.rows([row.row for row in rows])
    answers = await service.inference.answer(model, "explain", table)
    return {row.id: msgspec.Raw(value) for row, (value, _) in zip(rows, answers, strict=True)}


def _moment(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)
