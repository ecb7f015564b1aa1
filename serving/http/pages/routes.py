"""The routes of the pages; `serving/http/keys.py` says which JSON each of them shows, and so whose key it takes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from registry.errors import RegistryError
from registry.registry import Registry
from serving.errors import ServingError
from serving.http.keys import LOCKED, Key, Keys, key_of
from serving.http.pages.assets import load_assets
from serving.http.pages.model import ModelPage
from serving.http.pages.page import prepare_pages, show, show_error, show_lock, wants_html
from serving.http.problems import DETAIL, STATUS, status_of
from serving.http.routes.models import summary
from serving.http.routes.predict import PredictRoute
from serving.service import Service

REFUSALS = tuple(error for error in STATUS if issubclass(error, RegistryError | ServingError))


def pages_router(service: Service, route: PredictRoute, keys: Keys) -> APIRouter:
    """All pages, and their files."""
    prepare_pages()
    router = APIRouter(include_in_schema=False)
    assets = load_assets()

    @router.get("/pages/static/{version}/{name}")
    async def static(request: Request, version: str, name: str) -> Response:
        return assets.answer(request, version, name)

    _add_home(router, service.registry)
    _add_models(router, ModelPage(service, route, keys))
    return router


def _add_home(router: APIRouter, registry: Registry) -> None:
    @router.get("/")
    async def home(request: Request) -> Response:
        if not wants_html(request):
            return Response(b'{"status":"alive"}', media_type="application/json", headers={"vary": "Accept"})
        key = key_of(request.scope)
        if key is LOCKED:
            return show_lock(request)
        refused = [refusal for refusal in registry.refusals if key.may_use(refusal.model)]
        return show(request, "home.html", models=_cards(registry, key), refused=refused)


def _cards(registry: Registry, key: Key) -> list[dict[str, Any]]:
    """What the list shows of each model."""
    return [
        summary(registry, model)
        | {
            "created": model.manifest.created,
            "metrics": model.manifest.metrics,
            "features": len(model.schema),
            "classes": len(model.labels),
        }
        for model in registry.live()
        if key.may_use(model.name)
    ]


def _add_models(router: APIRouter, page: ModelPage) -> None:
    @router.api_route("/models/{name}", methods=["GET", "POST"])
    async def model(request: Request, name: str) -> Response:
        if key_of(request.scope) is LOCKED:
            return show_lock(request)
        try:
            return await page.answer(request, name)
        except REFUSALS as error:
            return show_error(request, status_of(error), DETAIL.get(type(error), str(error)))
