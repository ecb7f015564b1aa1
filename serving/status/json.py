"""A snapshot as JSON, for the admin page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from serving.monitoring.drift import DriftMeasure
from serving.process.kernel import RUNNER, SCHEDULER, WEB
from serving.shared.book import Family, SheetCopy
from serving.shared.histogram import BUCKETS, quantile
from serving.shared.metrics import MODEL, ROUTE
from serving.status.snapshot import MASTER, Process, Snapshot

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def summarize(snapshot: Snapshot) -> dict[str, Any]:
    """Totals include processes that have ended; PSS divides shared pages, so it adds up to the memory in use."""
    totals: dict[str, Any] = {}
    routes: dict[str, Any] = {}
    for page in snapshot.pages:
        if page.sheet.families == ROUTE:
            ((_, seconds),) = page.totals()
            routes[page.sheet.labels["route"]] = {"answered": int(sum(seconds[:BUCKETS])), "seconds": _latency(seconds)}
        elif page.sheet.families != MODEL:
            totals |= {family.name: _plain(family, numbers) for family, numbers in page.totals()}
    master = snapshot.of(MASTER)
    return {
        "time": snapshot.time.isoformat(),
        "pss_bytes": sum(process.memory.pss for process in snapshot.processes),
        "memory": msgspec.to_builtins(snapshot.pressure),
        "master": _of_process(master[0]) if master else None,
        "workers": [_of_process(process) for process in snapshot.of(WEB)],
        "runners": [_of_process(process) for process in (*snapshot.of(RUNNER), *snapshot.of(SCHEDULER))],
        "requests": sum(totals["responses"].values()),
        "totals": totals,
        "models": summarize_models(snapshot.pages),
        "routes": routes,
        "jobs": msgspec.to_builtins(snapshot.jobs),
        "schedules": snapshot.schedules,
        "registry_errors": dict(snapshot.registry_errors),
        "reloads": {"finished": snapshot.reloads, "refused": snapshot.refused},
    }


def summarize_models(pages: Iterable[SheetCopy]) -> dict[str, dict[str, Any]]:
    """What all processes have counted of each model, by operation."""
    models: dict[str, dict[str, Any]] = {}
    for page in pages:
        if page.sheet.families == MODEL:
            labels = page.sheet.labels
            models.setdefault(labels["model"], {})[labels["operation"]] = _of_model(page)
    return models


def summarize_drift(measured: Sequence[DriftMeasure]) -> dict[str, Any]:
    """The drift of each model over each window: rows, the largest index, and what there are alerts about."""
    models: dict[str, dict[str, Any]] = {}
    for one in measured:
        found = models.setdefault(one.model.name, {"version": one.model.version, "alerts": one.alerts, "windows": {}})
        found["windows"][one.window] = {"rows": one.most_rows, "psi": round(one.largest, 4) if one.most_rows else None}
    return models


def _plain(family: Family, numbers: list[float]) -> Any:
    whole = [int(number) for number in numbers]
    return dict(zip(family.values, whole, strict=True)) if family.label else whole[0]


def _of_model(page: SheetCopy) -> dict[str, Any]:
    (_, seconds), (refusals, refused), (rows, counted) = page.totals()
    answered = sum(seconds[:BUCKETS])
    statuses: dict[str, int] = {status: n for status, n in _plain(refusals, refused).items() if n}
    return {
        "requests": int(answered + sum(refused)),
        "answered": int(answered),
        "refused": statuses,
        "timeouts": statuses.get("504", 0),
        "seconds": _latency(seconds),
        "rows": _plain(rows, counted),
    }


def _latency(seconds: list[float]) -> dict[str, float | None]:
    """The mean and quantiles of a histogram, which ends with the sum of all."""
    buckets, answered = seconds[:BUCKETS], sum(seconds[:BUCKETS])
    mean = seconds[BUCKETS] / answered if answered else None
    return {"mean": mean} | {name: quantile(buckets, share) for name, share in QUANTILES.items()}


def _of_process(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "name": process.kind,
        "age_seconds": round(process.age_seconds, 1),
        "requests": process.requests,
        "pss_bytes": process.memory.pss,
        "private_bytes": process.memory.private,
        "shared_bytes": process.memory.shared,
    }
