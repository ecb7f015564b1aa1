"""The routes of the pages; `serving/http/keys.py` says which JSON each of them shows, and so whose key it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from registry.registry import Registry
from serving.http.keys import Key, Keys, key_of
from serving.http.pages.assets import load_assets
from serving.http.pages.docs import docs_router
from serving.http.pages.importance import importance_router
from serving.http.pages.model import ModelPage
from serving.http.pages.monitoring import monitoring_router
from serving.http.pages.operation import operation_router
from serving.http.pages.page import guarded, prepare_pages, show, wants_html
from serving.http.pages.patterns import patterns_router
from serving.http.pages.work import work_router
from serving.http.routes.models import summary
from serving.http.routes.predict import PredictRoute
from serving.http.views import Views
from serving.service import Service


def pages_router(
    service: Service, views: Views, route: PredictRoute, keys: Keys, *, max_job_rows: int, with_patterns: bool = False
) -> APIRouter:
    """All pages, and their files; `with_patterns`, that of all parts as well."""
    prepare_pages()
    router = APIRouter(include_in_schema=False)
    _add_files(router)
    _add_home(router, service, views)
    page = ModelPage(service, route, keys)

    @router.api_route("/models/{name}", methods=["GET", "POST"])
    @guarded
    async def model(request: Request, name: str) -> Response:
        return await page.answer(request, name)

    for others in (
        operation_router(service, views, keys),
        importance_router(service, views.importance),
        monitoring_router(service),
        work_router(service, max_job_rows),
        docs_router(keys),
        *([patterns_router()] if with_patterns else []),
    ):
        router.include_router(others)
    return router


def _add_files(router: APIRouter) -> None:
    assets = load_assets()

    @router.get("/pages/static/{version}/{name}")
    async def static(request: Request, version: str, name: str) -> Response:
        return assets.answer(request, version, name)


def _add_home(router: APIRouter, service: Service, views: Views) -> None:
    @guarded
    async def home(request: Request) -> Response:
        key = key_of(request.scope)
        models = _cards(service.registry, key, await views.figures.all())
        return show(request, "home.html", models=models, health=_known_to(key, await views.health.report()))

    @router.get("/")
    async def root(request: Request) -> Response:
        if wants_html(request):
            return await home(request)
        return Response(b'{"status":"alive"}', media_type="application/json", headers={"vary": "Accept"})


def _known_to(key: Key, health: Mapping[str, Any]) -> dict[str, Any]:
    """The health of the service without what concerns models that a key may not use."""

    def is_known(line: str) -> bool:
        return key.may_use(line.partition(":")[0].partition("/")[0])

    shown = {name: list(filter(is_known, health[name])) for name in ("fallbacks", "refused")}
    return {**health, **shown, "forced": {name: why for name, why in health["forced"].items() if is_known(name)}}


def _cards(registry: Registry, key: Key, figures: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the list shows of each model."""
    return [
        summary(registry, model)
        | figures[model.name]
        | {
            "created": model.manifest.created,
            "metrics": model.manifest.metrics,
            "features": len(model.schema),
            "classes": len(model.labels),
        }
        for model in registry.live()
        if key.may_use(model.name)
    ]
