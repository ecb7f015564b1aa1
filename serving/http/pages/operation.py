"""The pages of whoever runs the service: how it is doing, and the versions and cards of its models."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from serving.http.keys import Keys
from serving.http.pages.page import guarded, show, show_error
from serving.http.routes.card import find_card, show_card
from serving.http.routes.models import detail
from serving.http.views import Views
from serving.service import Service
from serving.status.json import summarize

FAILED = frozenset({"500", "501", "504", "507", "other"})
MAX_EVENTS = 20
"""Of the log that are shown."""

SHED = frozenset({"429", "503"})
"""Statuses of requests that were refused because there were too many."""


def operation_router(service: Service, views: Views, keys: Keys) -> APIRouter:
    """Pages for operators; those that need a key of scope `admin` are there if there may be one."""
    router = APIRouter(include_in_schema=False)
    if keys.can_have_admin:
        _add_service(router, service, views)
    else:
        router.add_api_route("/admin", closed)
    _add_versions(router, service, can_act=keys.can_have_admin)
    _add_card(router, service)
    return router


async def closed(request: Request) -> Response:
    """The answer in place of a page for admins where there can be none."""
    return show_error(request, HTTPStatus.NOT_FOUND, "No key of this service has the scope admin: set ADMIN_TOKEN")


def _add_service(router: APIRouter, service: Service, views: Views) -> None:
    @router.get("/admin")
    @guarded
    async def admin(request: Request) -> Response:
        metrics = summarize(await views.snapshots.get()) | {"quality": await service.quality.take()}
        responses, rows = metrics["totals"]["responses"], metrics["totals"]["cache_rows"]
        found = sum(rows.values())
        processes = [one for one in (metrics["master"], *metrics["workers"], *metrics["runners"]) if one]
        limit = metrics["memory"]["limit"]
        return show(
            request,
            "admin.html",
            metrics=metrics,
            health=await views.health.report(),
            errors=sum(count for status, count in responses.items() if status in FAILED),
            shed=sum(count for status, count in responses.items() if status in SHED),
            hits=1 - (rows["miss"] + rows["coalesced"]) / found if found else None,
            processes=processes,
            events=service.shared.alerts.tail.events()[:MAX_EVENTS],
            limit=limit,
            most=max(one["private_bytes"] + one["shared_bytes"] for one in processes) if processes else 1,
        )


def _add_versions(router: APIRouter, service: Service, *, can_act: bool) -> None:
    registry = service.registry

    @router.get("/models/{name}/versions")
    @guarded
    async def versions(request: Request, name: str) -> Response:
        of_model = registry.versions(name)
        listed = [detail(registry, one, show_examples=False) for one in reversed(list(of_model.values()))]
        live = registry.aliases(name).live
        model = next((one for one in listed if one["version"] == live), listed[0])
        return show(
            request,
            "versions.html",
            model=model,
            versions=listed,
            metrics=list(dict.fromkeys(metric for one in listed for metric in one["metrics"])),
            training=(await service.trainings.get()).get(name),
            is_trainable=of_model[model["version"]].manifest.training is not None,
            can_act=can_act,
        )


def _add_card(router: APIRouter, service: Service) -> None:
    @router.get("/models/{name}/card")
    @guarded
    async def card(request: Request, name: str) -> Response:
        model = service.registry.get(name, request.query_params.get("version") or None)
        return show_card(request, await find_card(service, model))
