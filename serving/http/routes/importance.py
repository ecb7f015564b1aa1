"""`GET /v1/models/{model}/importance`: which features matter, over the model's background rows."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing
from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.datastructures import QueryParams

from cache.keys import key_prefix
from registry.errors import InvalidSelection
from registry.explain.explanation import Selection
from registry.explain.importance import Importance, select_importance
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from registry.registry import Registry
from serving.http.body import read_boolean
from serving.http.negotiation import preferred
from serving.http.protocols.route import MAX_ANSWER_BYTES
from serving.http.representation import CACHED_BY_CLIENTS
from serving.http.routes.predict import JSON
from serving.pictures.chart import SVG
from serving.pictures.explanation import MAX_BARS, MAX_TOP
from serving.pictures.importance import importance_bars
from serving.predict.operation import answer_bytes, marks
from serving.service import Service

FORMAT = "2"
"""Part of every key: to be changed with the form of an answer, because caches outlive a deploy."""

SECONDS = 10.0
"""Once explanations have taken this long, no more rows are explained."""

DIGITS = re.compile("[0-9]{1,10}")

Pair = tuple[str, str]
"""Names of two features."""

HEADERS = {"vary": "Accept", "cache-control": CACHED_BY_CLIENTS}


def importance_router(registry: Registry, importance: BackgroundImportance) -> APIRouter:
    """Routes that explain a model's background rows and sum that up."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    async def answer(request: Request, model: LoadedModel) -> Response:
        selection = _selection(request.query_params)
        accepted = preferred(dict(request.scope["headers"]).get(b"accept"), (JSON, SVG))
        found = await importance.of(model, selection, pair_of(request.query_params))
        if accepted == SVG:
            most = min(selection.top or MAX_BARS, MAX_TOP)
            content = importance_bars(found, f"{model.name} {model.version}", most=most).encode()
        else:
            content = msgspec.json.encode(found)
        return Response(content, media_type=accepted.decode(), headers=HEADERS)

    @router.get("/{model}/importance", summary="Which features matter, over the background rows")
    async def show_importance(request: Request, model: str) -> Response:
        return await answer(request, registry.get(model))

    @router.get("/{model}/versions/{version}/importance", summary="Which features matter to one version")
    async def show_version_importance(request: Request, model: str, version: str) -> Response:
        return await answer(request, registry.get(model, version))

    return router


def _selection(query: QueryParams) -> Selection:
    """What a query selects: `LoadedModel.explainer_for` checks most of it. Raises InvalidSelection."""
    classes = query.getlist("classes")
    chosen: Any = "all" if classes in ([], ["all"], ["predicted"]) else tuple(classes)
    top = query.get("top")
    if top is not None and not DIGITS.fullmatch(top):
        raise InvalidSelection("top must be a whole number")
    return Selection(
        chosen,
        None if top is None else int(top),
        cast("Space | None", query.get("space")),
        interactions=read_boolean("interactions", query.get("interactions", "")),
    )


def pair_of(query: QueryParams) -> Pair | None:
    """The feature whose dependence is told apart by another, and that one, if a query names both."""
    feature, other = query.get("feature"), query.get("by")
    return (feature, other) if feature and other else None


class BackgroundImportance:
    """The importance of features over the background rows of models, kept in the cache under the model's hash.

    Rows are explained as those of requests are: in turns, within deadlines, and in a process that can be killed where
    an explainer might hold the GIL.
    """

    def __init__(self, service: Service) -> None:
        self._inference = service.inference
        self._cache = service.cache
        self._detail: Any = "shares" if service.show_examples else "none"

    async def of(self, model: LoadedModel, selection: Selection, pair: Pair | None = None) -> dict[str, Any]:
        """The answer; of a `pair` the dependence on the first feature is told apart by the second.

        Raises NotExplained, InvalidSelection, DeadlineExceeded, Overloaded, ModelFailed, CallFailed, MemoryExceeded.
        """
        explainer = model.explainer_for(selection)
        shown = model.names.shown() if pair else ()
        for name in pair or ():
            if name not in shown:
                raise InvalidSelection("feature and by must be features of the model, as they are explained")
        parts = (explainer.method, explainer.space, str(explainer.evaluations))
        chosen_parts = (str(selection.interactions), *(pair or ()))
        key = key_prefix("importance", FORMAT, self._detail, model.content_hash, *parts, *chosen_parts)
        (kept,) = self._cache.find([key])
        if kept is None:
            found = await self._cache.find_remotely([key])
            kept = found[key][0] if key in found else None
        if kept is None:
            kept, is_complete = await self._computed(model, selection, pair)
            if is_complete:
                self._cache.keep({key: kept})
        places = (
            [model.labels.place(name) for name in selection.classes] if isinstance(selection.classes, tuple) else None
        )
        classes = None if places is None else [model.labels.texts[place] for place in places]
        chosen = select_importance(msgspec.json.decode(kept), classes, selection.top)
        return {"model": model.name, "version": model.version, **chosen, **marks(model)}

    async def _computed(self, model: LoadedModel, selection: Selection, pair: Pair | None) -> tuple[bytes, bool]:
        """The importance for all classes as JSON, and whether it is over all of the background."""
        wide = Selection("all", space=selection.space, interactions=selection.interactions)
        background = model.background
        rows = background[: max(1, MAX_ANSWER_BYTES // answer_bytes(model, "explain", wide))]
        described = model.manifest.distributions
        bins = None if described is None else described.features
        summed = Importance(model.manifest.features, len(rows), detail=self._detail, distributions=bins, pair=pair)
        done, ends = 0, time.monotonic() + SECONDS
        async with aclosing(self._inference.answer_by_parts(model, "explain", rows, selection=wide)) as parts:
            async for answers in parts:
                explained = await asyncio.to_thread(_decoded, [value for value, _ in answers])
                summed.add(explained, rows[done : done + len(answers)])
                done += len(answers)
                if time.monotonic() > ends:
                    break
        return msgspec.json.encode(summed.result()), done == len(background)


def _decoded(answers: list[bytes]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(answer) for answer in answers]
