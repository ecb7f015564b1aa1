"""`GET /v1/models/{model}/drift`: how far live rows and the answers to them are from the sample."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from registry.kernels.counting import ABOVE, BELOW, MISSING, OTHER, UNSEEN
from registry.model import LoadedModel
from serving.errors import InvalidRequest
from serving.http.routes.models import feature_distribution, output_distribution
from serving.monitoring.bins import Column, Numbers
from serving.monitoring.drift import ALERT_ROWS, Drift, DriftMeasure
from serving.service import Service

DIGITS = 4


def drift_router(service: Service) -> APIRouter:
    """The route that only reads counts."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("/{model}/drift", summary="How far live rows, and what is predicted for them, are from the sample")
    async def show_drift(model: str, version: str | None = None, window: str | None = None) -> dict[str, Any]:
        return drift_view(service.drift, service.registry.get(model, version), window)

    return router


def drift_view(drift: Drift, model: LoadedModel, window: str | None = None) -> dict[str, Any]:
    """The drift of a version over one of the windows, by default the first, as JSON. Raises InvalidRequest."""
    if window is not None and window not in drift.windows:
        raise InvalidRequest(f"window must be one of {', '.join(drift.windows)}" if drift.windows else NOT_COUNTED)
    shown: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "windows": drift.windows,
        "window": window or next(iter(drift.windows), None),
        "alert": {"psi": drift.threshold, "rows": ALERT_ROWS},
    }
    version = drift.of(model)
    if version is None:
        reason = not_described(model) if drift.windows else NOT_COUNTED
        return shown | _without_rows(model) | {"reason": reason}
    return shown | _measured(version.measure(shown["window"]), version.sample_rows, model) | {"reason": None}


NOT_COUNTED = "rows are not counted: DRIFT_WINDOW is empty"


def not_described(model: LoadedModel) -> str:
    """Why the drift of a version is not known."""
    return (
        f"the manifest of {model.name} {model.version} does not say what is usual; "
        f"run: forkserve describe {model.name} {model.version} DATA.csv"
    )


def _without_rows(model: LoadedModel) -> dict[str, Any]:
    outputs: dict[str, Any] = {"outputs": {}} if model.layout.is_named else {"output": None}
    return {"seconds": None, "rows": 0, "sample_rows": None, "psi": None, "features": {}, **outputs}


def _measured(found: DriftMeasure, sample_rows: int, model: LoadedModel) -> dict[str, Any]:
    shown = [_column(found, place, model) for place in range(len(found.columns))]
    pairs = list(zip(found.columns, shown, strict=True))
    outputs = {column.name: one for column, one in pairs if column.feature is None}
    return {
        "seconds": None if found.seconds is None else round(found.seconds, 1),
        "rows": found.most_rows,
        "sample_rows": sample_rows,
        "psi": round(found.largest, DIGITS) if found.most_rows else None,
        "features": {column.name: one for column, one in pairs if column.feature is not None},
        **({"outputs": outputs} if model.layout.is_named else {"output": outputs.get("")}),
    }


def _column(found: DriftMeasure, place: int, model: LoadedModel) -> dict[str, Any]:
    """Both distributions of a feature or an output, and the distance between them."""
    column, rows = found.columns[place], int(found.rows[place])
    if column.feature is None:
        expected = output_distribution(column.usual, model.layout.targets[column.place])
    else:
        expected = feature_distribution(column.usual, column.feature)
    common: dict[str, Any] = {name: expected.pop(name) for name in ("values", "edges", "counted") if name in expected}
    return {
        "psi": round(float(found.psi[place]), DIGITS) if rows else None,
        "limit": round(float(found.limits[place]), DIGITS) if rows else None,
        "alert": bool(found.alerted[place]),
        "rows": rows,
        **common,
        "expected": expected,
        "live": _live(column, found.shares(place)) if rows else None,
    }


def _live(column: Column, shares: Numbers) -> dict[str, Any]:
    """The live shares: of bins or values, and of what the sample has not or seldom had."""
    size = len(column.usual.shares)
    cells = [round(share, DIGITS) for share in shares.tolist()]
    live: dict[str, Any] = {"shares": cells[:size], "missing": cells[MISSING]}
    if not column.is_binned:
        live["other"] = round(cells[OTHER] + cells[UNSEEN], DIGITS)
        live["unseen"] = cells[UNSEEN]
    if not column.is_coded:
        live |= {"below": cells[BELOW], "above": cells[ABOVE]}
    return live
