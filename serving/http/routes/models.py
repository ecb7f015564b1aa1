"""`GET /v1/models`: the models that are served, their versions and their features."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request

from registry.model import LoadedModel
from registry.outputs import Target
from registry.quality import metrics_of
from registry.registry import Registry
from registry.rows.features import MAX_WHOLE, Feature
from registry.store.aliases import Aliases
from registry.store.distributions import Distribution
from serving.entities.record import Period, now, start_of
from serving.errors import StoreUnavailable
from serving.http.body import read_boolean
from serving.http.keys import key_of
from serving.http.protocols.tensorflow import metadata, version_status
from serving.http.representation import revalidate
from serving.service import Service
from serving.status.json import summarize_drift, summarize_models
from serving.storage.background import Recent

Figures = Annotated[str, Query(description="`true` adds what was asked of each model, and its live quality")]


TREND_METRICS = ("accuracy", "mean_absolute_error")
TREND_SPAN = timedelta(hours=48)
TREND_SECONDS, TREND_READ_SECONDS = 60.0, 2.0
"""How old trends may be, and how long reading them may take."""


def models_router(service: Service, model_figures: ModelFigures) -> APIRouter:
    """Routes that describe what is served."""
    registry, show_examples = service.registry, service.show_examples
    router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(revalidate)])

    @router.get("", summary="All models")
    async def list_models(request: Request, figures: Figures = "false") -> dict[str, Any]:
        key = key_of(request.scope)
        found = await model_figures.all() if read_boolean("figures", figures) else None
        return {
            "models": [
                summary(registry, model) | ({} if found is None else found[model.name])
                for model in registry.live()
                if key.may_use(model.name)
            ],
            "status": "degraded" if registry.refusals else "ok",
            "refused": [msgspec.to_builtins(refusal) for refusal in registry.refusals if key.may_use(refusal.model)],
        }

    @router.get("/{model}", summary="One model: its features, versions and metrics")
    async def show_model(model: str) -> dict[str, Any]:
        found = detail(registry, registry.get(model), show_examples=show_examples)
        return found | {"model_version_status": version_status(found["versions"])}

    @router.get("/{model}/metadata", summary="The signature of a model, for clients of TensorFlow Serving")
    async def show_metadata(model: str) -> dict[str, Any]:
        return metadata(registry.get(model))

    @router.get("/{model}/versions/{version}/metadata", summary="The signature of a version")
    async def show_version_metadata(model: str, version: str) -> dict[str, Any]:
        return metadata(registry.get(model, version))

    @router.get("/{model}/versions/{version}", summary="One version of a model")
    async def show_version(model: str, version: str) -> dict[str, Any]:
        found = detail(registry, registry.get(model, version), show_examples=show_examples)
        return found | {"model_version_status": version_status([version])}

    return router


def summary(registry: Registry, model: LoadedModel) -> dict[str, Any]:
    """The entry of a model in the list."""
    aliases = registry.aliases(model.name)
    return {
        "name": model.name,
        "version": model.version,
        "ready": True,
        "live": aliases.live,
        "previous": aliases.previous,
        **_tried(aliases),
        "versions": list(registry.versions(model.name)),
        "task": model.manifest.task,
        "estimator": model.manifest.estimator,
        "compiled": model.compiled,
        "python_steps": list(model.python_steps),
        "reason": model.reason,
        "fallback": model.fallback,
        "forced": model.manifest.forced,
        "entities": model.manifest.entities,
        "kind": model.manifest.kind or None,
        "explainer": _explainer(model),
    }


class ModelFigures:
    """What was asked of each live model, how right its predictions are, and how far its rows are from the sample."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._trends = Recent(self._read_trends, TREND_SECONDS)

    async def all(self) -> dict[str, dict[str, Any]]:
        """The figures of each live model, by its name."""
        service, live = self._service, self._service.registry.live()
        counted, quality = summarize_models(service.shared.book.read()), await service.quality.take()
        drift, trends = summarize_drift(service.drift.measure(live)), await self._trends.get()
        return {
            model.name: {
                "figures": counted.get(model.name, {}),
                "quality": quality.get(model.name, {}),
                "trend": trends.get(model.name, []),
                "drift": drift.get(model.name),
            }
            for model in live
        }

    async def _read_trends(self) -> dict[str, list[dict[str, Any]]]:
        """The first of TREND_METRICS of each live version, hour by hour; none while the store is unavailable."""
        since = start_of("hour", now() - TREND_SPAN)
        trends: dict[str, list[dict[str, Any]]] = {}
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(TREND_READ_SECONDS):
                for model in self._service.registry.live():
                    periods = await self._service.shared.entities.quality(model.name, "hour", since, model.version)
                    trends[model.name] = [hour for one in periods if (hour := _hour(one)) is not None]
        return trends


def _hour(period: Period) -> dict[str, Any] | None:
    metrics = metrics_of(period.sums)
    name = next((one for one in TREND_METRICS if one in metrics), None)
    return None if name is None else {"start": period.start.isoformat(), "metric": name, "value": metrics[name]}


def _tried(aliases: Aliases) -> dict[str, Any]:
    """The versions that are tried beside the live one; a canary that has gone back is not."""
    tried: dict[str, Any] = {}
    if aliases.canary is not None and not aliases.canary.ended:
        tried["canary"] = {"version": aliases.canary.version, "percent": aliases.canary.percent}
    if aliases.shadow is not None:
        tried["shadow"] = {"version": aliases.shadow.version}
    return tried


def detail(registry: Registry, model: LoadedModel, *, show_examples: bool) -> dict[str, Any]:
    """Everything that a client may know about a version."""
    manifest = model.manifest
    return summary(registry, model) | {
        "sha256": manifest.sha256,
        "created": manifest.created,
        "source": manifest.source,
        "libraries": manifest.libraries,
        "format": manifest.artefact_format,
        "classes": model.labels.classes,
        "outputs": model.layout.parts,
        "targets": msgspec.to_builtins(model.layout.targets) if model.layout.is_named else (),
        "calibration_rows": len(manifest.conformal),
        "metrics": manifest.metrics,
        "not_explained": model.not_explained,
        "importance": None if manifest.explainer is None else manifest.explainer.importance,
        "distributions": describe_distributions(model),
        "example": model.example if show_examples else None,
        "features": [feature.name for feature in manifest.features],
        "schema": model.instance_schema,
        "groups": manifest.groups,
        "labels": manifest.feature_labels,
    }


def describe_distributions(model: LoadedModel) -> dict[str, Any] | None:
    """What was usual in the sample, as JSON: shares by value, or over bins between `edges`."""
    found = model.manifest.distributions
    if found is None:
        return None
    features = {feature.name: feature for feature in model.manifest.features}
    targets = {target.name: target for target in model.layout.targets}
    outputs = {name: output_distribution(one, targets[name]) for name, one in found.outputs.items()}
    return {
        "rows": found.rows,
        "features": {name: feature_distribution(one, features[name]) for name, one in found.features.items()},
        **({"outputs": outputs} if model.layout.is_named else {"output": outputs.get("")}),
    }


def output_distribution(one: Distribution, target: Target) -> dict[str, Any]:
    """What was usual in the predictions for a target: shares by label or value, or over bins between `edges`."""
    return _shares(one, (lambda cell: target.classes[int(cell)]) if target.classes else _number)


def feature_distribution(one: Distribution, feature: Feature) -> dict[str, Any]:
    """What was usual in a feature: shares by value, or over bins between `edges`, and that of missing values."""
    coded = feature.kind in ("category", "boolean", "datetime")
    shown = _shares(one, feature.decode if coded else _number) | {"missing": one.missing / 1000}
    return shown | {"counted": "characters"} if feature.kind == "text" else shown


def _shares(one: Distribution, show: Callable[[float], Any]) -> dict[str, Any]:
    shares = [share / 1000 for share in one.shares]
    if one.values:
        other = max(0, 1000 - one.missing - sum(one.shares)) / 1000
        return {"values": [show(value) for value in one.values], "shares": shares, "other": other}
    return {"edges": [show(edge) for edge in one.edges], "shares": shares} if shares else {}


def _number(cell: float) -> float:
    """A whole number without a fraction."""
    return int(cell) if cell.is_integer() and abs(cell) < MAX_WHOLE else cell


def _explainer(model: LoadedModel) -> dict[str, Any] | None:
    if model.explainer is None:
        return None
    return {
        "method": model.explainer.method,
        "space": model.explainer.space,
        "jobs_only": model.explainer.jobs_only,
        "spaces": model.spaces,
    }
