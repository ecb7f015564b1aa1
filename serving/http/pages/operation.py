"""The pages of whoever runs the service: how it is doing, how a model is doing, and its versions."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from registry.explain.explanation import Selection
from registry.explain.shap_values import Space
from registry.registry import Registry
from serving.http.keys import Keys, key_of
from serving.http.pages.page import guarded, show, show_error
from serving.http.routes.card import find_card, show_card
from serving.http.routes.importance import BackgroundImportance
from serving.http.routes.models import detail
from serving.http.views import Views
from serving.pictures.explanation import MAX_BARS
from serving.pictures.importance import importance_bars
from serving.service import Service
from serving.status.json import summarize
from serving.status.snapshot import Snapshot
from serving.storage.background import Recent

FAILED = frozenset({"500", "501", "504", "other"})
MAX_SWARMS, MAX_LINES, SWARM_BINS = 3, 12, 60
"""Outputs and features whose rows are shown as points, and the places along a line that points may be crowded at."""

NARROW = 330
"""The narrowest place for a picture, which stretches."""

SHED = frozenset({"429", "503"})
"""Statuses of requests that were refused because there were too many."""


def operation_router(service: Service, views: Views, keys: Keys) -> APIRouter:
    """Pages for operators; those that need a key of scope `admin` are there if there may be one."""
    router = APIRouter(include_in_schema=False)
    if keys.can_have_admin:
        _add_service(router, service, views)
        _add_monitoring(router, service, views.snapshots)
    else:
        router.add_api_route("/admin", closed)
        router.add_api_route("/monitoring/{name}", closed)
    _add_importance(router, service.registry, views.importance)
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
            limit=limit,
            most=max(one["private_bytes"] + one["shared_bytes"] for one in processes) if processes else 1,
        )


def _add_monitoring(router: APIRouter, service: Service, snapshots: Recent[Snapshot]) -> None:
    registry = service.registry

    @router.get("/monitoring/{name}")
    @guarded
    async def monitoring(request: Request, name: str) -> Response:
        # the path of the JSON behind it, of all models, names none
        key_of(request.scope).check_model(name)
        model = detail(registry, registry.get(name), show_examples=False)
        metrics = summarize(await snapshots.get())
        quality: dict[str, Any] = (await service.quality.take()).get(name, {})
        names = dict.fromkeys((*model["metrics"], *quality))
        return show(
            request,
            "monitoring.html",
            model=model,
            figures=metrics["models"].get(name, {}),
            quality=quality,
            names=[one for one in names if one not in ("version", "outcomes")],
        )


def _add_importance(router: APIRouter, registry: Registry, importance: BackgroundImportance) -> None:
    @router.get("/models/{name}/importance")
    @guarded
    async def show_importance(request: Request, name: str) -> Response:
        model = registry.get(name)
        query = request.query_params
        label, space = query.get("class", ""), query.get("space", "")
        selection = Selection((label,) if label else "all", None, cast("Space | None", space or None))
        selection.check(model.labels)
        found = await importance.of(model, selection)
        return show(
            request,
            "importance.html",
            model=detail(registry, model, show_examples=False),
            found=found,
            picture=importance_bars(found, model.name, most=MAX_BARS, width=NARROW),
            swarms=[_swarm(output) for output in found["outputs"][:MAX_SWARMS]],
            label=label,
            space=space,
        )


def _swarm(output: Mapping[str, Any]) -> dict[str, Any]:
    """The points of the largest features of an output: how much each row's value adds, and how high that value is."""
    named = [(name, points) for name, points in output["points"].items() if points.get("shap")][:MAX_LINES]
    values = [value for _, points in named for value in points["shap"]]
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = 100 / ((high - low) or 1.0)
    lines = []
    for name, points in named:
        ranks = points.get("rank") or [0.5] * len(points["shap"])
        dots, crowd = [], [0] * SWARM_BINS
        for value, rank in zip(points["shap"], ranks, strict=True):
            x = (value - low) * scale
            place = min(int(x * SWARM_BINS / 100), SWARM_BINS - 1)
            crowd[place] += 1
            # from the middle, above and below in turns
            y = 14 + (crowd[place] // 2) * (1.7 if crowd[place] % 2 else -1.7)
            dots.append(
                (round(x, 2), round(min(max(y, 2.0), 26.0), 1), "none" if rank is None else int(rank * 4 + 0.5))
            )
        lines.append({"name": name, "dots": dots})
    zero = -low * scale if low < 0 < high else None
    of = ": ".join(str(output[one]) for one in ("target", "class") if output.get(one) is not None)
    return {"of": of, "lines": lines, "low": low, "high": high, "zero": zero}


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
