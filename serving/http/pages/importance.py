"""The page of importance: what matters to a model, row by row, feature by feature, and pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from starlette.datastructures import QueryParams

from registry.errors import InvalidSelection
from registry.explain.explanation import Selection
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from serving.errors import JobNotFound, JobUnfinished
from serving.http.body import read_boolean
from serving.http.keys import key_of
from serving.http.pages.page import guarded, rounded, show
from serving.http.routes.importance import BackgroundImportance, pair_of
from serving.http.routes.models import detail
from serving.jobs.results import importance_result
from serving.jobs.rows import IMPORTANCE
from serving.pictures.explanation import MAX_BARS
from serving.pictures.importance import importance_bars
from serving.service import Service

MAX_SWARMS, MAX_LINES, SWARM_BINS = 3, 12, 60
"""Outputs and features whose rows are shown as points, and the places along a line that points may be crowded at."""

NARROW = 330
"""The narrowest place for a picture, which stretches."""

COLOURS = 4
"""The highest of the colours from low to high, 0 the lowest."""

MAX_DOTS = 150
"""Rows that are shown along a line; of more, evenly spread ones."""

CHART_PIXELS = 170
MAX_TICKS = 5
"""Values that are written below a chart, if there are no more."""


def importance_router(service: Service, importance: BackgroundImportance) -> APIRouter:
    """The page over the background rows of a model, or over the rows of a job (`?job=`)."""
    router = APIRouter(include_in_schema=False)
    registry = service.registry

    @router.get("/models/{name}/importance")
    @guarded
    async def show_importance(request: Request, name: str) -> Response:
        model = registry.get(name)
        query = request.query_params
        label, space, job = (query.get(one, "") for one in ("class", "space", "job"))
        with_pairs = read_boolean("interactions", query.get("interactions", ""))
        selection = Selection(
            (label,) if label else "all", None, cast("Space | None", space or None), interactions=with_pairs
        )
        selection.check(model.labels)
        if job:
            found = await _of_job(service, request, model, job, label)
        else:
            found = await importance.of(model, selection, pair_of(query))
        outputs = found["outputs"][:MAX_SWARMS]
        features = list(outputs[0].get("points", ())) if outputs else []
        feature = query.get("feature") or next(iter(features), "")
        other = query.get("by", "") if "feature" in query else ""
        return show(
            request,
            "importance.html",
            model=detail(registry, model, show_examples=False),
            found=found,
            picture=importance_bars(found, model.name, most=MAX_BARS, width=NARROW),
            swarms=[_swarm(output) for output in outputs],
            features=features,
            dependences=[one for output in outputs if (one := _dependence(output, feature, other, model.names.labels))],
            pairs=[(_of(output), output["interactions"]) for output in outputs if "interactions" in output],
            has_pairs=not job and _has_interactions(model),
            chosen={
                "class": label,
                "space": space,
                "job": job,
                "feature": feature,
                "by": other,
                "interactions": with_pairs,
            },
            twin=f"/v1/jobs/{quote(job, safe='')}/result" if job else _twin(model.name, query),
        )

    return router


def _twin(name: str, query: QueryParams) -> str:
    """The address of the JSON behind the page."""
    asked = {
        "classes": query.get("class"),
        **{one: query.get(one) for one in ("space", "feature", "by", "interactions")},
    }
    chosen = urlencode({name: value for name, value in asked.items() if value})
    return f"/v1/models/{name}/importance{'?' if chosen else ''}{chosen}"


async def _of_job(service: Service, request: Request, model: LoadedModel, job_id: str, label: str) -> dict[str, Any]:
    """The result of a job of this model, for one class or for all. Raises JobNotFound, JobUnfinished."""
    store = service.shared.jobs
    job = await store.get(job_id)
    key_of(request.scope).check_job(job)
    if job.operation != IMPORTANCE or job.model != model.name:
        raise JobNotFound
    if job.state != "done":
        raise JobUnfinished(f"the job has no result; it is {job.state}")
    found = await importance_result(store, job, model)
    return found | {"outputs": [one for one in found["outputs"] if not label or one.get("class") == label]}


def _has_interactions(model: LoadedModel) -> bool:
    try:
        model.explainer_for(Selection("all", interactions=True))
    except InvalidSelection:
        return False
    return True


def _of(output: Mapping[str, Any]) -> str:
    """The target and the class of an output."""
    return ": ".join(str(output[one]) for one in ("target", "class") if output.get(one) is not None)


def _swarm(output: Mapping[str, Any]) -> dict[str, Any]:
    """The points of the largest features of an output: how much each row's value adds, and how high that value is."""
    named = [(name, points) for name, points in output.get("points", {}).items() if points.get("shap")][:MAX_LINES]
    values = [value for _, points in named for value in points["shap"]]
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = 100 / ((high - low) or 1.0)
    lines = []
    for name, points in named:
        stride = -(-len(points["shap"]) // MAX_DOTS)
        shown = points["shap"][::stride]
        ranks = (points.get("rank") or _ranks(points.get("value")) or [0.5] * len(points["shap"]))[::stride]
        dots, crowd = [], [0] * SWARM_BINS
        for value, rank in zip(shown, ranks, strict=True):
            x = (value - low) * scale
            place = min(int(x * SWARM_BINS / 100), SWARM_BINS - 1)
            crowd[place] += 1
            # from the middle, above and below in turns
            y = 14 + (crowd[place] // 2) * (1.7 if crowd[place] % 2 else -1.7)
            dots.append(
                (round(x, 2), round(min(max(y, 2.0), 26.0), 1), "none" if rank is None else int(rank * 4 + 0.5))
            )
        lines.append({"name": name, "paths": _paths(dots)})
    zero = -low * scale if low < 0 < high else None
    return {"of": _of(output), "lines": lines, "low": low, "high": high, "zero": zero}


def _paths(dots: Sequence[tuple[float, float, Any]]) -> list[tuple[Any, str]]:
    """Dots as a path for each colour, whose lines without a length have round ends: an element a dot takes 2 MB."""
    found: dict[Any, list[str]] = {}
    for x, y, colour in dots:
        found.setdefault(colour, []).append(f"M{x:g} {y:g}h0")
    return [(colour, "".join(parts)) for colour, parts in found.items()]


def _ranks(values: Sequence[Any] | None) -> list[float] | None:
    """How high values are among each other, from 0 to 1."""
    return [place / 100 for place in _places(values)[0]] if values else None


def _dependence(
    output: Mapping[str, Any], feature: str, other: str, labels: Mapping[str, str]
) -> dict[str, Any] | None:
    """The chart of what a feature adds by its value, in colours by that of another; None where nothing is known."""
    points = output.get("points", {}).get(feature, {})
    if "value" in points:
        return _scatter(output, feature, other)
    curve = output.get("dependence_by") if other else output.get("dependence", {}).get(feature)
    if curve is None:
        return None
    groups = curve.get("groups", [curve])
    known = [mean for group in groups for mean in group["mean"] if mean is not None]
    if not known:
        return None
    scale = _Scale(known)
    steps, middles = max(1, len(groups) - 1), _middles(curve)
    lines = []
    for place, group in enumerate(groups):
        dots = [None if mean is None else (x, scale.y(mean)) for x, mean in zip(middles, group["mean"], strict=True)]
        name = f"{labels.get(other, other)}: {_span(group)}" if other else ""
        colour = round(COLOURS * place / steps) if len(groups) > 1 else 0
        segments = [(*one, *two) for one, two in pairwise(dots) if one and two]
        lines.append({"name": name, "colour": colour, "dots": [dot for dot in dots if dot], "segments": segments})
    bins = _bins(curve)
    rows = [(one, [group["mean"][index] for group in groups]) for index, one in enumerate(bins)]
    return {"of": _of(output), "lines": lines, "paths": [], "rows": rows, "ticks": _ticks(curve), **scale.described()}


def _scatter(output: Mapping[str, Any], feature: str, other: str) -> dict[str, Any]:
    """A point a row, at the value of its feature, as high as what that adds."""
    points, others = output["points"][feature], output["points"].get(other, {}).get("value")
    places, ticks = _places(points["value"])
    colours = [None] * len(places) if others is None else [round(COLOURS * x / 100) for x in _places(others)[0]]
    scale = _Scale(points["shap"])
    dots = [
        (x, scale.y(value), "none" if colour is None else colour)
        for x, value, colour in zip(places, points["shap"], colours, strict=True)
    ]
    table = list(zip(points["value"], points["shap"], others or [None] * len(places), strict=True))
    return {"of": _of(output), "lines": [], "paths": _paths(dots), "table": table, "ticks": ticks, **scale.described()}


def _places(values: Sequence[Any]) -> tuple[list[float], list[Any]]:
    """Where values are from 0 to 100, numbers by their size and others by their order; and what stands there."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values if value is not None):
        numbers = [value for value in values if value is not None]
        low, high = min(numbers, default=0.0), max(numbers, default=0.0)
        width = (high - low) or 1.0
        return [0.0 if one is None else round(100 * (one - low) / width, 2) for one in values], [low, high]
    texts = sorted({str(value) for value in values})
    step = 100 / max(1, len(texts) - 1)
    places = {text: round(step * place, 2) for place, text in enumerate(texts)}
    return [places[str(value)] for value in values], texts if len(texts) <= MAX_TICKS else [texts[0], texts[-1]]


class _Scale:
    """The heights of a chart, in pixels from its top."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low, self._high = min(0.0, *values), max(0.0, *values)

    def y(self, value: float) -> float:
        share = (value - self._low) / ((self._high - self._low) or 1.0)
        return round(CHART_PIXELS - 8 - share * (CHART_PIXELS - 16), 1)

    def described(self) -> dict[str, Any]:
        return {"low": self._low, "high": self._high, "zero": self.y(0.0), "height": CHART_PIXELS}


def _middles(curve: Mapping[str, Any]) -> list[float]:
    """Where the middles of a curve's bins are, from 0 to 100; of values, and of times, at equal distances."""
    edges = curve.get("edges", [])
    if not edges or not all(isinstance(edge, int | float) for edge in edges):
        count = len(curve.get("values") or edges[1:])
        return [round(100 * (index + 0.5) / count, 2) for index in range(count)]
    width = (edges[-1] - edges[0]) or 1.0
    return [round(100 * ((low + high) / 2 - edges[0]) / width, 2) for low, high in pairwise(edges)]


def _bins(curve: Mapping[str, Any]) -> list[str]:
    """The names of a curve's bins."""
    if "values" in curve:
        return [_text(value) for value in curve["values"]]
    return [_span({"edges": pair}) for pair in pairwise(curve["edges"])]


def _ticks(curve: Mapping[str, Any]) -> list[str]:
    """What is written below a curve."""
    if "edges" in curve:
        edges = curve["edges"]
        return [_text(edges[0]), _text(edges[-1])]
    return [_text(value) for value in curve["values"]] if len(curve["values"]) <= MAX_TICKS else []


def _span(bin_: Mapping[str, Any]) -> str:
    if "values" in bin_:
        return ", ".join(map(_text, bin_["values"]))
    low, high = bin_["edges"]
    return f"{_text(low)} to {_text(high)}"


def _text(value: Any) -> str:
    return rounded(value, 4) if isinstance(value, float) else str(value)
