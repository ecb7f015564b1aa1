"""The quality of predictions, judged by outcomes: of the latest ones, and over the hours and days of a year."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import structlog

from registry.model import LoadedModel
from registry.quality import BETTER, Scorer, Sums, add_up, calibration_of, find_shortfall, metrics_of
from registry.registry import Registry
from serving.entities.record import Judged, Period, Span, now, start_of
from serving.entities.store import EntityStore
from serving.errors import StoreUnavailable
from serving.storage.background import BackgroundTask, Recent

MAX_OUTCOMES = 1000
"""The latest outcomes of a version, from which its metrics are computed."""

MIN_OUTCOMES = 200
"""Fewer outcomes say too little of a version's quality to alert."""

FRESH_SECONDS = 10.0
READ_SECONDS = 2.0

ALERT = "quality"

OLDEST: dict[Span, timedelta] = {"hour": timedelta(days=31), "day": timedelta(days=366)}
"""How far back hours and days are shown: one answer has at most some hundred of each version."""

log = structlog.get_logger(__name__)


class LiveQuality:
    """Metrics of each live version over its latest outcomes, read from the store at most every FRESH_SECONDS.

    Alerts once when they become worse than those in the manifest by more than the tolerance; again only after they have
    been better than by half of it. The store remembers which are low, so all processes and instances alert once.
    """

    def __init__(
        self, registry: Registry, store: EntityStore, *, tolerance: float, alert: Callable[[str, str], None]
    ) -> None:
        """`alert` takes a kind and a message."""
        self._registry = registry
        self._store = store
        self._tolerance = tolerance
        self._alert = alert
        self._metrics: dict[str, Any] = {}
        self._changed: set[str] = set()
        self._checking = BackgroundTask(self._check_changed, closing_seconds=0.0)
        self.take = Recent(self._read, FRESH_SECONDS).get
        """The metrics by model; those last read while the store is unavailable."""

    def wake(self, models: Iterable[str]) -> None:
        """Outcomes of these models were stored: check soon whether the quality is too low; never waits."""
        self._changed.update(models)
        self._checking.wake()

    async def close(self) -> None:
        """Check no more; the next outcomes will have it done."""
        await self._checking.close()

    async def _read(self) -> dict[str, Any]:
        await asyncio.gather(*map(self._refresh, self._registry.live()))
        return dict(self._metrics)

    async def _refresh(self, model: LoadedModel) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._metrics[model.name] = await self.live_metrics(model)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("Outcomes cannot be read", model=model.name, reason=str(error))

    async def live_metrics(self, model: LoadedModel) -> dict[str, Any]:
        """The metrics that the manifest has, too, over the latest outcomes of this version, as far as these tell them.

        Each outcome was stored with the prediction that the version had made. With at least
        MIN_OUTCOMES `is_low` says whether they are worse than the manifest's by more than the tolerance.
        Raises StoreUnavailable.
        """
        judged = await self._store.judged(model.name, model.version, MAX_OUTCOMES)
        metrics = await asyncio.to_thread(_measure, model, judged)
        found = {"version": model.version, "outcomes": len(judged), **metrics}
        if len(judged) < MIN_OUTCOMES:
            return found
        return found | {"is_low": bool(self._shortfall(model, metrics, self._tolerance))}

    async def _check_changed(self) -> None:
        while self._changed:
            names, self._changed = self._changed, set()
            for model in self._registry.live():
                if model.name in names:
                    await self._check(model)
            await asyncio.sleep(FRESH_SECONDS)

    async def _check(self, model: LoadedModel) -> None:
        await self._refresh(model)
        metrics = self._metrics.get(model.name, {})
        if metrics.get("outcomes", 0) < MIN_OUTCOMES:
            return
        reasons = self._shortfall(model, metrics, self._tolerance)
        if not reasons and self._shortfall(model, metrics, self._tolerance / 2):
            return
        try:
            is_new = await self._store.mark_quality(model.name, model.version, is_low=bool(reasons))
        except StoreUnavailable as error:
            log.warning("Outcomes cannot be read", model=model.name, reason=str(error))
            return
        if is_new and reasons:
            version, count = f"{model.name}/{model.version}", metrics["outcomes"]
            message = f"The quality of {version} is low over its latest {count} outcomes: {'; '.join(reasons)}"
            self._alert(f"{ALERT} {model.name}", message)
        elif is_new:
            log.info("Quality is as expected again", model=model.name, version=model.version)

    def _shortfall(self, model: LoadedModel, metrics: dict[str, Any], tolerance: float) -> list[str]:
        return find_shortfall(
            {name: metrics[name] for name in BETTER if name in metrics}, model.manifest.metrics, tolerance
        )


def _measure(model: LoadedModel, judged: Iterable[Judged]) -> dict[str, float]:
    scorer = Scorer(model.manifest.task, model.layout)
    return metrics_of(add_up(scorer.sums(*one) for one in judged))


class QualityHistory:
    """The quality of a model's versions over time."""

    def __init__(self, registry: Registry, store: EntityStore) -> None:
        self._registry = registry
        self._store = store

    async def show(self, model: str, span: Span, since: datetime | None, version: str | None) -> dict[str, Any]:
        """Metrics by hour or day, in all and the calibration curve of each version that has any outcomes.

        Raises ModelNotFound, VersionNotFound, NotLoaded, StoreUnavailable.
        """
        live = self._registry.get(model).version
        oldest = now() - OLDEST[span]
        since = start_of(span, oldest if since is None else max(since, oldest))
        found: dict[str, list[Period]] = {}
        for one in await self._store.quality(model, span, since, version):
            found.setdefault(one.version, []).append(one)
        if version is not None and not found:
            self._registry.get(model, version)
        loaded = self._registry.versions(model)
        versions = await asyncio.to_thread(lambda: [_show_version(name, periods) for name, periods in found.items()])
        for shown in versions:
            name = shown["version"]
            shown["live"] = name == live
            shown["expected"] = loaded[name].manifest.metrics if name in loaded else None
        return {"model": model, "by": span, "since": since.isoformat(), "versions": versions}


def _show_version(version: str, periods: list[Period]) -> dict[str, Any]:
    total = add_up(one.sums for one in periods)
    curves = [
        ({"target": target} if target else {}) | {"label": label, "points": [point._asdict() for point in points]}
        for (target, label), points in calibration_of(total).items()
    ]
    return {
        "version": version,
        **_show(total),
        "periods": [{"start": one.start.isoformat(), **_show(one.sums)} for one in periods],
        "calibration": curves,
    }


def _show(sums: Sums) -> dict[str, Any]:
    return {"outcomes": int(sums["outcomes"]), **metrics_of(sums)}
