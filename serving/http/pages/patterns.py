"""Every component of the pages in every state, for whoever changes them; there with PAGES_PATTERNS only."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter, Request, Response

from registry.errors import Fault
from serving.http.pages.answers import ApiReply, explained, outcomes
from serving.http.pages.form import Field
from serving.http.pages.page import show
from serving.pictures.explanation import waterfall

LONG = "a_name_that_is_very_long_" * 4
MARKUP = "<b>markup</b>"

CREATED = "2026-01-31T12:00:00+00:00"

INSTANCE = {"age": 41.0, "income": 52_000.0, LONG: 3.0, "city": MARKUP}

PREDICTION = {"label": "stays", "probabilities": {"stays": 0.71, "leaves": 0.2, LONG: 0.09}}

EXPLANATION = {
    "label": "stays",
    "space": "probability",
    "method": "tree-path-dependent",
    "base_value": 0.5,
    "output": 0.71,
    "values": {"age": 0.18, "income": -0.09, LONG: 0.07, "city": 0.05},
}

SECONDS = {"mean": 0.002, "p50": 0.001, "p95": 0.004, "p99": 0.011}

NO_SCOPE: dict[str, ApiReply] = {}
OK = {"predict": ApiReply(200, {"predictions": [PREDICTION]}), "explain": ApiReply(200, {})}
REFUSED = {"predict": ApiReply(422, None, "what was sent does not fit", [Fault(0, "age", "must be a number")])}
DRAINING = {"predict": ApiReply(503, None, "the worker is draining", retry_after=1.0)}
LATE = {"predict": OK["predict"], "explain": ApiReply(504, None, "the deadline passed")}


def patterns_router() -> APIRouter:
    """The page of patterns."""
    router = APIRouter(include_in_schema=False)

    @router.get("/pages/patterns")
    async def patterns(request: Request) -> Response:
        return show(
            request,
            "patterns.html",
            cards=[
                _card(),
                _card(name=LONG, figures={}, quality={}, metrics={}, trend=[], drift=None, fallback=True, forced="why"),
            ],
            health=_health(),
            fields=_fields(),
            answers=_answers(),
            jobs=[_job(state) for state in ("queued", "running", "done", "failed", "cancelled")],
        )

    return router


def _card(**changes: Any) -> dict[str, Any]:
    asked = {"requests": 1200, "answered": 1198, "refused": {"422": 2}, "seconds": SECONDS}
    return {
        "name": "churn",
        "task": "classification",
        "estimator": "RandomForestClassifier",
        "kind": "customer",
        "version": "3",
        "fallback": False,
        "forced": "",
        "metrics": {"accuracy": 0.93, "log_loss": 0.21},
        "figures": {"predict": asked},
        "quality": {"outcomes": 200, "accuracy": 0.91},
        "trend": [{"metric": "accuracy", "value": value} for value in (0.93, 0.94, 0.9, 0.92, 0.88, 0.91)],
        "drift": {"alerts": ["age"], "windows": {"1h": {"rows": 900, "psi": 0.31}}},
        "features": 4,
        "classes": 3,
        "explainer": {"method": "tree-path-dependent"},
        "created": CREATED,
        **changes,
    }


def _health() -> dict[str, Any]:
    return {
        "status": "degraded",
        "refused": [f"{LONG}/2: is not a manifest"],
        "fallbacks": ["churn/3"],
        "forced": {"churn/2": MARKUP},
        "reasons": {"jobs": "the disk is full"},
        "jobs": "unavailable",
        "records": "ok",
        "redis": "away",
        "supabase": "disabled",
        "memory": {"stage": "high"},
    }


def _fields() -> list[Field]:
    bins = tuple((10.0 * place, 10.0, 9.0 * (10 - abs(place - 4))) for place in range(10))
    ends: dict[str, Any] = {"minimum": 0.0, "maximum": 100.0, "low": 0.0, "high": 100.0}
    number = Field("age", "age", "number", "41", "41", is_nullable=False, **ends, bins=bins)
    wrong = Field("income", LONG, "number", "999", "1", is_nullable=True, faults=["must be between 0 and 100"], **ends)
    choices = ("red", "blue", MARKUP)
    return [
        number,
        wrong,
        Field("empty", "may be missing", "number", "", "", is_nullable=True),
        Field("colour", "one of few", "choice", "blue", "red", is_nullable=True, choices=choices),
        Field("town", "one of many", "search", "", "", is_nullable=True, choices=choices),
        Field("day", "a date", "date", "2026-01-31T00:00:00Z", "", is_nullable=False),
        Field("moment", "a time", "time", "2026-01-31T12:00:00Z", "", is_nullable=False),
        Field("note", "a text", "text", MARKUP, "", is_nullable=False, max_length=500),
    ]


def _answers() -> list[tuple[str, dict[str, Any]]]:
    """The states of an answer, each with the values of its template."""
    pictured = {
        "explained": list(explained(EXPLANATION, INSTANCE)),
        "pictures": [waterfall(EXPLANATION, INSTANCE, title="", most=15, width=330)],
    }
    rows = outcomes(PREDICTION)
    return [
        ("answered", _answer(OK, outcomes=rows, **pictured)),
        ("stale", _answer(OK, outcomes=rows)),
        ("compared", _answer(OK, other=INSTANCE, outcomes=rows, others=rows, changed=[("age", 40.0, 41.0)])),
        ("refused", _answer(REFUSED)),
        ("draining", _answer(DRAINING)),
        ("not explained in time", _answer(LATE, outcomes=outcomes(42.5))),
        ("explained as a job", _answer(OK, outcomes=outcomes(42.5), job="a-job")),
        ("not allowed", _answer(NO_SCOPE)),
    ]


def _answer(replies: Mapping[str, ApiReply], other: Any = None, **found: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"outcomes": [], "others": [], "explained": [], "pictures": [], "changed": [], "job": None}
    return {
        "model": {"name": "churn", "version": "3", "live": "3"},
        "link": "",
        "replies": replies,
        "found": empty | found,
        "question": SimpleNamespace(other=other, options={}),
        "requests": [("curl", f"curl http://127.0.0.1/v1/models/churn:predict -d '{MARKUP}'")],
    }


def _job(state: str) -> dict[str, Any]:
    done = {"queued": 0.0, "done": 1.0}.get(state, 0.42)
    view = {"state": state, "progress": done, "chunks": 50, "chunks_done": int(50 * done), "attempts": 2}
    return {"job": view, "elapsed": 75.0 * done, "left": 104.0 if state == "running" else None}
