"""The pages of larger work: batches, their jobs, and entities with all that is predicted for them."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from serving.entities.predictor import check_entity
from serving.errors import EntityNotFound
from serving.http.keys import NEEDED, key_of
from serving.http.pages.answers import TargetOutcome, outcomes
from serving.http.pages.form import initial_instance, make_fields
from serving.http.pages.page import guarded, show
from serving.http.problems import DETAIL, STATUS
from serving.http.routes.jobs import job_view
from serving.http.routes.models import detail
from serving.jobs.job import Job
from serving.jobs.results import csv_result
from serving.jobs.rows import IMPORTANCE
from serving.jobs.store import JobStore
from serving.predict.operation import VERBS
from serving.service import Service

PREVIEW_ROWS, PREVIEW_COLUMNS = 10, 20
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")

MAX_ENTITIES, MAX_RECORDS, MAX_COLUMNS = 100, 20, 40
OPERATION_NAMES = (("predict", "predictions"), ("explain", "explanations"), (IMPORTANCE, "what matters"))
"""The operations of batches, and what they answer with."""

CHART = 300, 80
"""Width and height of the line of an entity's predictions."""


def work_router(service: Service, max_rows: int) -> APIRouter:
    """Pages of batches of at most `max_rows`, of jobs and of entities."""
    router = APIRouter(include_in_schema=False)
    _add_batches(router, service, max_rows)
    _add_jobs(router, service.shared.jobs)
    _add_entities(router, service)
    return router


def _add_batches(router: APIRouter, service: Service, max_rows: int) -> None:
    registry = service.registry

    @router.get("/models/{name}/batch")
    @guarded
    async def batch(request: Request, name: str) -> Response:
        model = registry.get(name)
        initial = initial_instance(model, show_example=False)
        return show(
            request,
            "batch.html",
            model=detail(registry, model, show_examples=False),
            fields=make_fields(model, initial, initial),
            max_rows=max_rows,
            takes_parquet=service.tables is not None,
            operations=[one for one in OPERATION_NAMES if model.explainer is not None or one[0] == "predict"],
            operation=request.query_params.get("operation", ""),
            address=f"{request.url.scheme}://{request.url.netloc}",
        )


def _add_jobs(router: APIRouter, store: JobStore) -> None:
    @router.get("/jobs/{job_id}")
    @guarded
    async def job(request: Request, job_id: str) -> Response:
        found = await store.get(job_id)
        key_of(request.scope).check_job(found)
        is_rows = found.operation in VERBS
        elapsed = (found.finished or time.time()) - found.started if found.started else 0.0
        is_running = found.state == "running" and 0 < found.progress < 1
        return show(
            request,
            "job.html",
            job=job_view(found),
            is_rows=is_rows,
            elapsed=elapsed,
            left=elapsed * (1 / found.progress - 1) if is_running else None,
            preview=await _preview(store, found) if is_rows and found.state == "done" else [],
        )


async def _preview(store: JobStore, job: Job) -> list[Sequence[str | float]]:
    """The columns and the first rows of a job's result, with numbers as such."""
    lines: list[str] = []
    async for part in csv_result(store, job):
        lines += part.decode().splitlines()[: PREVIEW_ROWS + 1]
        if len(lines) > PREVIEW_ROWS:
            break
    rows = [row[:PREVIEW_COLUMNS] for row in islice(csv.reader(lines), PREVIEW_ROWS + 1)]
    return [*rows[:1], *([preview_cell(cell) for cell in row] for row in rows[1:])]


def preview_cell(text: str) -> str | float:
    """A cell of a CSV file: a number if it is written as one, and not as a code such as `007`."""
    return float(text) if NUMBER.fullmatch(text) else text


def _add_entities(router: APIRouter, service: Service) -> None:
    @router.get("/entities")
    @guarded
    async def list_entities(request: Request) -> Response:
        after = request.query_params.get("after", "")
        found = await service.shared.entities.entities(MAX_ENTITIES, after)
        following = found[-1].entity if len(found) == MAX_ENTITIES else None
        return show(request, "entities.html", entities=found, after=after, following=following)

    @router.get("/entities/{entity}")
    @guarded
    async def show_entity(request: Request, entity: str) -> Response:
        check_entity(entity)
        records = await service.shared.entities.newest(entity, MAX_RECORDS, None)
        if not records:
            raise EntityNotFound
        lines, refusal = [], ""
        key = key_of(request.scope)
        if key.scopes & NEEDED["read"]:
            try:
                answer = await service.predictor.predict(entity, may_use=key.may_use)
                predicted = msgspec.json.decode(answer.content())
                lines = [_line(one) for one in predicted["models"]]
            except tuple(STATUS) as error:
                refusal = DETAIL.get(type(error), str(error))
        columns = list(dict.fromkeys(name for record in records for name in record.values))[:MAX_COLUMNS]
        shown = [{"time": f"{record.time:%Y-%m-%d %H:%M}", "values": record.values} for record in records]
        return show(
            request,
            "entity.html",
            entity=entity,
            kind=records[0].kind,
            records=shown,
            columns=columns,
            lines=lines,
            refusal=refusal,
        )


def _line(of_model: dict[str, Any]) -> dict[str, Any]:
    """What a model says of the newest record, and the line of its answers over all of them, oldest first."""
    answers = [outcomes(one)[0] for one in of_model.get("predictions", ())]
    if not answers:
        return {"model": of_model["model"], "shown": "", "note": "no answer", "points": ""}
    newest = answers[0]
    of = f"probability of {newest.label}" if newest.bars else "value"
    heights = [_height(one, newest.label) for one in reversed(answers)]
    values = [height for height in heights if height is not None]
    shown = newest.label or ("" if newest.value is None else f"{newest.value:.4g}")
    note = f"{of}, over the newest {len(values)} records" if values else ""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return {
        "model": of_model["model"],
        "shown": shown,
        "note": note,
        "low": low,
        "high": high,
        "points": _points(values, low, high) if len(values) > 1 else "",
    }


def _height(outcome: TargetOutcome, label: str) -> float | None:
    """The number of an answer: its value, its score, or the probability of a label."""
    if outcome.bars:
        return next((bar.value for bar in outcome.bars if bar.name == label), None)
    value = outcome.score if outcome.value is None else outcome.value
    return float(value) if isinstance(value, int | float) else None


def _points(values: Sequence[float], low: float, high: float) -> str:
    """The points of a line, as SVG writes them."""
    width, height = CHART
    step, scale = width / (len(values) - 1), (height - 12) / ((high - low) or 1.0)
    heights = [height - 6 - (value - low) * scale for value in values]
    return " ".join(f"{index * step:.1f},{y:.1f}" for index, y in enumerate(heights))
