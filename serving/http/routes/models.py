"""`GET /v1/models`: the models that are served, their versions and their features."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request

from registry.model import LoadedModel
from registry.registry import Registry
from serving.http.keys import key_of
from serving.http.representation import revalidate


def models_router(registry: Registry, *, show_examples: bool) -> APIRouter:
    """Routes that only read the registry; without `show_examples`, the example of a model is null."""
    router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(revalidate)])

    @router.get("", summary="All models")
    async def list_models(request: Request) -> dict[str, Any]:
        key = key_of(request.scope)
        return {
            "models": [summary(registry, model) for model in registry.live() if key.may_use(model.name)],
            "status": "degraded" if registry.refusals else "ok",
            "refused": [msgspec.to_builtins(refusal) for refusal in registry.refusals if key.may_use(refusal.model)],
        }

    @router.get("/{model}", summary="One model: its features, versions and metrics")
    async def show_model(model: str) -> dict[str, Any]:
        return detail(registry, registry.get(model), show_examples=show_examples)

    @router.get("/{model}/versions/{version}", summary="One version of a model")
    async def show_version(model: str, version: str) -> dict[str, Any]:
        return detail(registry, registry.get(model, version), show_examples=show_examples)

    return router


def summary(registry: Registry, model: LoadedModel) -> dict[str, Any]:
    """The entry of a model in the list."""
    aliases = registry.aliases(model.name)
    return {
        "name": model.name,
        "version": model.version,
        "live": aliases.live,
        "previous": aliases.previous,
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
        "example": model.example if show_examples else None,
        "features": [feature.name for feature in manifest.features],
        "schema": model.instance_schema,
        "groups": manifest.groups,
        "labels": manifest.feature_labels,
    }


def _explainer(model: LoadedModel) -> dict[str, Any] | None:
    if model.explainer is None:
        return None
    return {
        "method": model.explainer.method,
        "space": model.explainer.space,
        "jobs_only": model.explainer.jobs_only,
        "spaces": model.spaces,
    }
