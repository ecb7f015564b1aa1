"""The page of how a model is doing: its quality over time, calibration, drift, and what was asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from registry.quality import BETTER
from serving.entities.record import Span, now
from serving.errors import InvalidRequest, StoreUnavailable
from serving.http.card import value_text
from serving.http.pages.page import guarded, show
from serving.http.problems import DETAIL
from serving.http.routes.drift import drift_view
from serving.http.routes.models import detail
from serving.http.routes.rollout import canary_view, shadow_view
from serving.monitoring.quality import QualityHistory
from serving.pictures.chart import Axis, number_text
from serving.service import Service
from serving.status.json import summarize_models

OVER: Mapping[str, tuple[Span, timedelta]] = {
    "day": ("hour", timedelta(days=1)),
    "week": ("hour", timedelta(days=7)),
    "month": ("day", timedelta(days=31)),
    "year": ("day", timedelta(days=366)),
}
"""The times that quality is shown over, each in hours or in days."""

STEP: Mapping[Span, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}

MAX_COLUMNS = 30
"""Features whose drift is shown one by one, those that have moved most first."""

COLOURS = 6


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A point of a chart, in per cent of its width and height from the upper left, what it says, and where it leads."""

    x: float
    y: float
    says: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one version; `colour` is a number below COLOURS."""

    name: str
    colour: int
    points: Sequence[ChartPoint]

    @property
    def path(self) -> str:
        """The points as SVG writes them."""
        return " ".join(f"{one.x:.2f},{one.y:.2f}" for one in self.points)


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over one axis; `expected` is the height of a line across."""

    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]]
    expected: float | None
    bars: Sequence[tuple[float, float, float, int]]
    """The outcomes of each hour or day: start, width and height in per cent, and their number."""
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class DriftColumn:
    """The drift of a feature or an output, and the share of each bin or value in the sample and live."""

    name: str
    of: Mapping[str, Any]
    is_beyond: bool
    outside: float | None
    bins: Sequence[tuple[str, float, float | None]]

    @property
    def shares(self) -> tuple[list[float], list[float]]:
        return [one[1] for one in self.bins], [one[2] or 0.0 for one in self.bins]


def monitoring_router(service: Service) -> APIRouter:
    """The page of each model; like the JSON that it shows, it takes a key of scope `read`."""
    router = APIRouter(include_in_schema=False)
    history = QualityHistory(service.registry, service.shared.entities)

    @router.get("/monitoring/{name}")
    @guarded
    async def monitoring(request: Request, name: str) -> Response:
        query = request.query_params
        model = service.registry.get(name, query.get("version") or None)
        over = query.get("over") or "week"
        if over not in OVER:
            raise InvalidRequest(f"over must be one of {', '.join(OVER)}")
        quality, refusal = await _quality(history, name, over)
        versions = quality["versions"] if quality else []
        metrics = [one for one in BETTER if any(one in period for each in versions for period in each["periods"])]
        metric = query.get("metric") if query.get("metric") in metrics else next(iter(metrics), "")
        shown = next((one for one in versions if one["version"] == model.version), None)
        curves = {_curve_name(one): one["points"] for one in (shown["calibration"] if shown else ())}
        curve = query.get("curve") if query.get("curve") in curves else next(iter(curves), "")
        drift = drift_view(service.drift, model, query.get("window") or None)
        columns = list(_columns(drift))
        return show(
            request,
            "monitoring.html",
            model=detail(service.registry, model, show_examples=False),
            figures=summarize_models(service.shared.book.read()).get(name, {}),
            over=over,
            spans=list(OVER),
            refusal=refusal,
            versions=versions,
            shown=shown,
            metrics=metrics,
            metric=metric,
            chart=_chart(name, versions, metric, over) if metric else None,
            is_logged=service.shared.recorder is not None,
            periods=list(_periods(name, versions, OVER[over][0])),
            curves=curves,
            curve=curve,
            drift=drift,
            canary=canary_view(service, name),
            shadow=shadow_view(service, name),
            columns=columns[:MAX_COLUMNS],
            more=len(columns[MAX_COLUMNS:]),
        )

    return router


async def _quality(history: QualityHistory, name: str, over: str) -> tuple[dict[str, Any] | None, str]:
    """The quality of all versions, or why it is not known."""
    span, back = OVER[over]
    try:
        # a little less than what may be asked for, which has moved on meanwhile
        return await history.show(name, span, now() - back + timedelta(minutes=1), None), ""
    except StoreUnavailable as error:
        return None, DETAIL.get(type(error), str(error))


def _curve_name(curve: Mapping[str, Any]) -> str:
    return f"{curve['target']}: {curve['label']}" if "target" in curve else str(curve["label"])


def _chart(name: str, versions: Sequence[Mapping[str, Any]], metric: str, over: str) -> LineChart:
    """A metric over time, a line for each version, and the outcomes below."""
    span, back = OVER[over]
    step, last = STEP[span], now()
    first = last - back
    live = next((one for one in versions if one["live"]), None)
    expected = ((live or {}).get("expected") or {}).get(metric)
    measured = [period[metric] for one in versions for period in one["periods"] if metric in period]
    known = [*measured, *([] if expected is None else [expected])]
    axis = Axis.over(min(known), max(known))

    def x(start: datetime) -> float:
        return 100 * min(max((start - first) / back, 0.0), 1.0)

    lines, outcomes = [], dict[str, int]()
    for place, one in enumerate(versions):
        points = []
        for period in one["periods"]:
            start = datetime.fromisoformat(period["start"])
            outcomes[period["start"]] = outcomes.get(period["start"], 0) + period["outcomes"]
            if metric in period:
                height = 100 - axis.percent(period[metric])
                of = f"{period['outcomes']} outcomes, {start:%Y-%m-%d %H:%M}"
                says = f"{one['version']}: {number_text(period[metric])} of {of}"
                points.append(
                    ChartPoint(x(start + step / 2), height, says, _predictions(name, one["version"], start, step))
                )
        lines.append(Line(one["version"], place % COLOURS, points))
    most = max(outcomes.values(), default=1)
    bars = []
    for text, count in sorted(outcomes.items()):
        start = datetime.fromisoformat(text)
        bars.append((x(start), max(0.3, x(start + step) - x(start)), 100 * count / most, count))
    return LineChart(
        lines=lines,
        ticks=[(100 - axis.percent(value), text) for value, text in axis.ticks],
        expected=None if expected is None else 100 - axis.percent(expected),
        bars=bars,
        first=f"{first:%Y-%m-%d %H:%M}",
        last=f"{last:%Y-%m-%d %H:%M} UTC",
    )


def _predictions(model: str, version: str, start: datetime, step: timedelta) -> str:
    """Where the logged predictions of a version in an hour or a day are."""
    times = {"since": start.isoformat(), "until": (start + step).isoformat()}
    return f"/v1/predictions?{urlencode({'model': model, 'version': version, **times})}"


def _periods(name: str, versions: Sequence[Mapping[str, Any]], span: Span) -> Iterator[dict[str, Any]]:
    """The rows of the table behind the chart, newest first."""
    rows = [(period["start"], one["version"], period) for one in versions for period in one["periods"]]
    for text, version, period in sorted(rows, key=lambda row: row[:2], reverse=True):
        start = datetime.fromisoformat(text)
        shown = f"{start:%Y-%m-%d}" if span == "day" else f"{start:%Y-%m-%d %H:%M}"
        yield {"start": shown, "version": version, "of": period, "link": _predictions(name, version, start, STEP[span])}


def _columns(drift: Mapping[str, Any]) -> Iterator[DriftColumn]:
    """The outputs, then the features, those that have moved most first."""
    outputs = drift["outputs"] if "outputs" in drift else {"": drift["output"]}
    for name, one in outputs.items():
        if one:
            yield _column(f"prediction: {name}" if name else "prediction", one)
    for name, one in sorted(drift["features"].items(), key=lambda item: -(item[1]["psi"] or 0.0)):
        yield _column(name, one)


def _column(name: str, one: Mapping[str, Any]) -> DriftColumn:
    expected, live = one["expected"], one["live"] or {}
    beyond = [live[end] for end in ("below", "above") if end in live]
    return DriftColumn(
        name,
        one,
        is_beyond=one["psi"] is not None and one["psi"] > one["limit"],
        outside=sum(beyond) if beyond else None,
        bins=list(_bins(one, expected, live)),
    )


def _bins(
    one: Mapping[str, Any], expected: Mapping[str, Any], live: Mapping[str, Any]
) -> Iterator[tuple[str, float, float | None]]:
    edges = [value_text(edge) for edge in one.get("edges", ())]
    names = [f"{low} to {high}" for low, high in pairwise(edges)] or map(value_text, one.get("values", ()))
    shares: Sequence[float | None] = live.get("shares") or [None] * len(expected.get("shares", ()))
    yield from zip(names, expected.get("shares", ()), shares, strict=True)
    for rest in ("other", "missing"):
        if expected.get(rest) or live.get(rest):
            yield rest, expected.get(rest, 0.0), live.get(rest)
