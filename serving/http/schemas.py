"""JSON Schemas of what the API takes and answers, and the words to write them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.quality import BETTER, Point
from serving.jobs.rows import OPERATIONS
from serving.predict.operation import ANSWERS, Verb

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
ANYTHING: Schema = {}
OBJECT: Schema = {"type": "object"}
MAYBE_STRING: Schema = {"type": ["string", "null"]}
OK: Schema = {"enum": ["ok", "degraded"]}

JSON, EVENTS, CSV, TEXT, SVG = "application/json", "text/event-stream", "text/csv", "text/plain", "image/svg+xml"
MARKDOWN = "text/markdown"
BINARY: Schema = {"type": "string", "format": "binary"}
TABLES: Schema = {"application/vnd.apache.parquet": BINARY, "application/vnd.apache.arrow.stream": BINARY}
"""Media types that need the extra `arrow`."""

LABEL: Schema = {"type": ["boolean", "number", "string"]}
SECONDS: Schema = {"type": "number", "minimum": 0.001, "maximum": 999_999_999}
TOP: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}
TIMEOUT_HEADER = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds; may shorten the deadline, never lengthen it",
    "schema": SECONDS,
}
LOCATION = {"Location": {"description": "Where the job is", "schema": STRING}}

COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
EVENT_ID: Schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
READ_AS_TEXT: Mapping[str, Schema] = {
    "before": STRING | {"format": "date-time"},
    "by": {"enum": ["hour", "day"], "default": "day"},
    "entity": STRING | {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    "explain": BOOLEAN | {"default": False},
    "figures": BOOLEAN | {"default": False},
    "kind": STRING | {"pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"},
    "last-event-id": EVENT_ID,
    "last_event_id": EVENT_ID,
    "key": STRING,
    "limit": COUNT,
    "model": STRING,
    "models": STRING,
    "version": STRING,
    "window": STRING,
    "since": STRING | {"format": "date-time"},
    "until": STRING | {"format": "date-time"},
    "x-request-timeout": SECONDS,
}
"""What routes read as text from headers, queries and paths, because they say themselves what is wrong with it."""


def object_schema(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """An object with these members, all of which are required unless `required` says which."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        **more,
    }


def array_of(items: Schema, **more: Any) -> Schema:
    """An array, whose items every generator of clients wants to know."""
    return {"type": "array", "items": items, **more}


EXPLAINER: Schema = {
    "type": ["object", "null"],
    "properties": {"method": STRING, "space": STRING, "jobs_only": BOOLEAN, "spaces": array_of(STRING)},
}
SUMMARY = object_schema(
    {
        "name": STRING,
        "version": STRING,
        "ready": {"const": True},
        "live": STRING,
        "previous": MAYBE_STRING,
        "versions": array_of(STRING),
        "task": STRING,
        "estimator": STRING,
        "compiled": BOOLEAN,
        "fallback": BOOLEAN,
        "forced": STRING,
        "entities": BOOLEAN,
        "kind": MAYBE_STRING,
        "explainer": EXPLAINER,
    }
)
TRIED: Mapping[str, Schema] = {"canary": OBJECT, "shadow": OBJECT}
"""Only of models of which a version is tried."""

REFUSED = array_of(object_schema({"model": STRING, "version": STRING, "reason": STRING}))
LISTED = object_schema(
    {
        **SUMMARY["properties"],
        **TRIED,
        "figures": OBJECT,
        "quality": OBJECT,
        "trend": array_of(OBJECT),
        "drift": ANYTHING,
    },
    SUMMARY["required"],
)
MODELS = object_schema({"models": array_of(LISTED), "status": OK, "refused": REFUSED})
DETAIL: Mapping[str, Schema] = SUMMARY["properties"] | {
    "sha256": STRING,
    "created": STRING,
    "source": STRING,
    "libraries": OBJECT,
    "classes": array_of(ANYTHING),
    "metrics": {"type": "object", "additionalProperties": NUMBER},
    "example": {"type": ["object", "null"]},
    "features": array_of(STRING),
    "schema": OBJECT,
    "model_version_status": array_of(object_schema({"version": STRING, "state": STRING, "status": OBJECT})),
}
MODEL = object_schema({**DETAIL, **TRIED}, list(DETAIL))
METADATA = object_schema({"model_spec": OBJECT, "metadata": OBJECT})

NUMBERS: Schema = {"type": "object", "additionalProperties": NUMBER}
IMPORTANCE = object_schema(
    {
        "model": STRING,
        "version": STRING,
        "rows": INTEGER,
        "space": STRING,
        "method": STRING,
        "importance": NUMBERS | {"description": "The mean of |SHAP| over rows and outputs, the largest first"},
        "outputs": array_of(
            object_schema(
                {
                    "target": STRING,
                    "class": STRING,
                    "base_value": NUMBER,
                    "importance": NUMBERS,
                    "mean": NUMBERS,
                    "points": OBJECT,
                    "dependence": OBJECT,
                    "dependence_by": OBJECT,
                    "interactions": array_of(object_schema({"features": array_of(STRING), "mean": NUMBER})),
                },
                ["base_value", "importance", "mean"],
            )
        ),
    }
)

CARD = object_schema(
    {
        "model": STRING,
        "version": STRING,
        "live": BOOLEAN,
        "task": STRING,
        "estimator": STRING,
        "targets": {"type": "object", "additionalProperties": array_of(LABEL)},
        "data": OBJECT,
        "features": array_of(object_schema({"name": STRING, "kind": STRING, "nullable": BOOLEAN, "open": BOOLEAN})),
        "metrics": NUMBERS,
        "quality": {"type": ["object", "null"]},
        "explained": {"type": ["object", "null"]},
        "limits": array_of(STRING),
        "libraries": {
            "type": "object",
            "additionalProperties": object_schema({"fitted": STRING, "here": MAYBE_STRING}),
        },
        "artefact": object_schema({"format": STRING, "sha256": STRING, "created": STRING, "compiled": BOOLEAN}),
        "history": object_schema(
            {
                "live": STRING,
                "previous": MAYBE_STRING,
                "versions": array_of(object_schema({"version": STRING, "created": STRING, "trained_by": STRING})),
                "changes": array_of(object_schema({"time": STRING, "act": STRING, "version": STRING})),
            }
        ),
    }
)

MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
SHARE_LIST = array_of(NUMBER)
DRIFT_COLUMN = object_schema(
    {
        "psi": MAYBE_NUMBER | {"description": "The population stability index; null without rows"},
        "limit": MAYBE_NUMBER | {"description": "An index above it is more than chance, and more than DRIFT_ALERT"},
        "alert": BOOLEAN | {"description": "Whether there was an alert about it that is not over"},
        "rows": INTEGER,
        "edges": array_of(ANYTHING, description="The edges of the bins that the shares are of"),
        "values": array_of(ANYTHING, description="The values that the shares are of, where there are no bins"),
        "counted": STRING,
        "expected": object_schema({"shares": SHARE_LIST, "other": NUMBER, "missing": NUMBER}, []),
        "live": {
            "type": ["object", "null"],
            "properties": dict.fromkeys(("other", "unseen", "missing", "below", "above"), NUMBER)
            | {"shares": SHARE_LIST},
        },
    },
    ["psi", "limit", "alert", "rows", "expected", "live"],
)
DRIFT = object_schema(
    {
        "model": STRING,
        "version": STRING,
        "windows": array_of(STRING),
        "window": MAYBE_STRING,
        "alert": object_schema({"psi": NUMBER, "rows": INTEGER}),
        "reason": MAYBE_STRING | {"description": "Why nothing is known; null otherwise"},
        "seconds": MAYBE_NUMBER | {"description": "The time that the window covers; null for the latest rows"},
        "rows": INTEGER,
        "sample_rows": {"type": ["integer", "null"]},
        "psi": MAYBE_NUMBER | {"description": "The largest of all but dates"},
        "features": {"type": "object", "additionalProperties": DRIFT_COLUMN},
        "output": {"anyOf": [DRIFT_COLUMN, {"type": "null"}]},
        "outputs": {"type": "object", "additionalProperties": DRIFT_COLUMN},
    },
    ["model", "version", "windows", "window", "alert", "reason", "seconds", "rows", "sample_rows", "psi", "features"],
)

SERVER = {"enum": ["ok", "away", "disabled"]}
HEALTH = object_schema(
    {
        "status": OK,
        "models": INTEGER,
        "fallbacks": array_of(STRING),
        "forced": OBJECT,
        "refused": array_of(STRING),
        "redis": SERVER,
        "supabase": SERVER,
        "jobs": STRING,
        "records": STRING,
        "last_training": OBJECT,
        "breakers": OBJECT,
        "memory": OBJECT,
        "worker": OBJECT,
    }
)
STATUS = object_schema({"status": OK})

JOB = object_schema(
    {
        "id": STRING,
        "operation": STRING,
        "model": STRING,
        "version": STRING,
        "state": {"enum": ["queued", "running", "done", "failed", "cancelled"]},
        "progress": NUMBER | {"minimum": 0, "maximum": 1},
        "attempts": INTEGER,
        "chunks": INTEGER,
        "chunks_done": INTEGER,
        "created": STRING,
        "started": MAYBE_STRING,
        "finished": MAYBE_STRING,
        "error": STRING,
        "cancelling": BOOLEAN,
        "result": STRING,
    },
    ["id", "operation", "model", "version", "state", "progress", "attempts", "created", "started", "finished"],
)
RESULT = object_schema(
    {"model": STRING, "version": STRING}
    | {member: array_of(ANYTHING) for member in ANSWERS.values()}
    | {name: IMPORTANCE["properties"][name] for name in ("rows", "space", "method", "importance", "outputs")}
    | dict.fromkeys(("agreed", "unfit", "failed"), INTEGER)
    | {name: {"type": ["number", "null"]} for name in ("share", "mean_difference", "row_seconds")}
    | {"versions": OBJECT, "changes": array_of(OBJECT), "largest": array_of(OBJECT)},
    [],
)

ADDED = {"stored": INTEGER, "present": INTEGER, "dropped": INTEGER}
STORED = object_schema({"entity": STRING, **ADDED, "ids": array_of(STRING)}, ["entity", "stored", "ids"])
OUTCOMES: Schema = {
    "model": STRING,
    "version": STRING,
    "missing": array_of(object_schema({"request_id": STRING, "instance": INTEGER}, ["request_id"])),
    "incomplete": INTEGER,
}
OUTCOMES_STORED = object_schema(OUTCOMES | ADDED, ["model", "stored"])
OUTCOMES_ACCEPTED = object_schema(OUTCOMES | {"accepted": INTEGER}, ["model", "accepted"])
MEASURED: Schema = {"outcomes": INTEGER, **dict.fromkeys(BETTER, NUMBER)}
POINT = object_schema({name: INTEGER if name == "outcomes" else NUMBER for name in Point._fields})
CURVE = object_schema({"target": STRING, "label": STRING, "points": array_of(POINT)}, ["label", "points"])
QUALITY = object_schema(
    {
        "model": STRING,
        "by": {"enum": ["hour", "day"]},
        "since": STRING,
        "versions": array_of(
            object_schema(
                {
                    "version": STRING,
                    "live": BOOLEAN,
                    "expected": {"type": ["object", "null"], "additionalProperties": NUMBER},
                    **MEASURED,
                    "periods": array_of(object_schema({"start": STRING, **MEASURED}, ["start", "outcomes"])),
                    "calibration": array_of(CURVE),
                },
                ["version", "live", "expected", "outcomes", "periods", "calibration"],
            )
        ),
    }
)
ENTITIES = object_schema(
    {
        "entities": array_of(
            object_schema({"entity": STRING, "kind": STRING, "records": INTEGER, "newest": MAYBE_STRING})
        ),
        "next": MAYBE_STRING,
    }
)
RECORDS = object_schema(
    {
        "entity": STRING,
        "kind": MAYBE_STRING,
        "records": array_of(object_schema({"id": STRING, "time": STRING, "values": OBJECT})),
        "next": MAYBE_STRING,
    }
)
LOGGED = object_schema(
    {
        **dict.fromkeys(("id", "time", "request_id", "key", "model", "version", "source", "entity"), STRING),
        "place": INTEGER,
        "verb": {"enum": ["predict", "explain"]},
        "row": OBJECT,
        "answer": ANYTHING,
        "milliseconds": NUMBER,
    }
)
LOG_PAGE = object_schema({"predictions": array_of(LOGGED), "next": MAYBE_STRING})
LOG_OF_REQUEST = object_schema({"request_id": STRING, "predictions": array_of(LOGGED)})
LOG_EXPLAINED = object_schema(
    {
        "request_id": STRING,
        "explanations": array_of(
            object_schema({"place": INTEGER, "model": STRING, "version": STRING, "explanation": OBJECT})
        ),
    }
)
LOG_DELETED = object_schema({"request_id": STRING, "deleted": object_schema({"predictions": INTEGER})})
DELETED = object_schema(
    {
        "entity": STRING,
        "deleted": object_schema(
            {"records": INTEGER, "outcomes": INTEGER, "events": INTEGER, "predictions": INTEGER}, ["records"]
        ),
    }
)
ENTITY_PREDICTIONS = object_schema(
    {
        "entity": STRING,
        "stale": BOOLEAN,
        "records": array_of(object_schema({"id": STRING, "time": STRING})),
        "models": array_of(object_schema(RESULT["properties"], ["model", "version", "predictions"])),
    }
)
RELOADED = object_schema(
    {
        "status": STRING,
        "added": array_of(STRING),
        "removed": array_of(STRING),
        "refused": array_of(STRING),
        "live": {"type": "object", "additionalProperties": STRING},
        "seconds": NUMBER,
    },
    ["status"],
)
CANARY = object_schema(
    {
        "model": STRING,
        "live": STRING,
        "version": STRING,
        "percent": NUMBER,
        "since": NUMBER,
        "ended": STRING | {"description": "Why it has gone back by itself; empty while it has not"},
        "is_on": BOOLEAN,
        "versions": OBJECT | {"description": "Of both versions, by verb: requests answered and failed, and times"},
    },
    ["model", "version", "percent", "is_on", "versions"],
)
DRAINING = object_schema({"status": {"const": "draining"}, "pid": INTEGER})
SCHEDULE = object_schema(
    {"name": STRING, "when": STRING, "action": STRING, "paused": BOOLEAN, "next": MAYBE_STRING, "last": MAYBE_STRING}
)
LOGGED = object_schema(
    {"events": array_of(object_schema({"time": STRING, "level": STRING, "pid": INTEGER, "event": STRING}))}
)
SHADOW = object_schema(
    {
        "model": STRING,
        "live": STRING,
        "version": STRING,
        "since": NUMBER,
        "rows": OBJECT,
        "changes": OBJECT,
        **dict.fromkeys(
            ("share", "mean_difference", "largest_difference", "row_seconds", "live_row_seconds"), MAYBE_NUMBER
        ),
    }
)
METRICS = object_schema(
    {
        "time": STRING,
        "pss_bytes": INTEGER,
        "requests": INTEGER,
        "workers": array_of(OBJECT),
        "totals": OBJECT,
        "models": OBJECT,
        "quality": ANYTHING,
        "drift": OBJECT,
    }
)


def instances_of(*forms: Schema) -> Schema:
    """Instances, each an object or an array. All are as the first is; generators of clients pass over that."""
    return array_of(
        {"anyOf": list(forms)},
        minItems=1,
        description="All by name, or all by position",
        **{"if": {"prefixItems": [OBJECT]}, "then": {"items": OBJECT}, "else": {"items": array_of(ANYTHING)}},
    )


INSTANCES = instances_of(OBJECT, array_of(ANYTHING))
PARAMETERS: Schema = {
    "type": ["object", "null"],
    "properties": {
        "classes": {"anyOf": [{"enum": ["predicted", "all"]}, array_of(LABEL, minItems=1, uniqueItems=True)]},
        "top": TOP,
        "space": {"enum": ["probability", "margin", "value", None]},
        "coverage": {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "interactions": BOOLEAN,
    },
    "additionalProperties": False,
}


def inference_schemas(verb: Verb) -> tuple[Schema, Schema]:
    """The body and the answer of a route for any model; each model's own routes have them in full."""
    return (
        object_schema({"instances": INSTANCES, "parameters": PARAMETERS}, ["instances"], additionalProperties=False),
        object_schema(
            {
                "model": STRING,
                "version": STRING,
                ANSWERS[verb]: array_of(ANYTHING),
                "fallback": BOOLEAN,
                "forced": STRING,
            },
            ["model", "version", ANSWERS[verb]],
        ),
    )


DRY_RUN = object_schema(
    {
        "operation": STRING,
        "model": STRING,
        "version": STRING,
        "rows": INTEGER,
        "chunks": INTEGER,
        "row_seconds": {"type": ["number", "null"]},
        "seconds": {"type": ["number", "null"], "description": "Of one runner that has nothing else to do"},
    }
)
REPLAYED: Schema = {
    "last": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
    "since": STRING | {"format": "date-time"},
    "tolerance": {"type": "number", "minimum": 0},
}
JOB_BODY = object_schema(
    {
        "operation": {"enum": [*OPERATIONS, "replay"]},
        "model": STRING,
        "instances": INSTANCES | {"description": "The rows; a replay has those of the log, and a `version` instead"},
        "version": MAYBE_STRING,
        "parameters": PARAMETERS | {"properties": PARAMETERS["properties"] | REPLAYED},
    },
    ["operation", "model"],
    additionalProperties=False,
) | {
    "if": {"properties": {"operation": {"const": "replay"}}},
    "then": {
        "required": ["version"],
        "properties": {
            "instances": False,
            "version": STRING,
            "parameters": {"properties": REPLAYED, "additionalProperties": False},
        },
    },
    "else": {"required": ["instances"], "properties": {"parameters": PARAMETERS}},
}

ROWS = array_of({"type": ["array", "object"]}, minItems=1)
TABLE: Schema = {"anyOf": [ROWS, OBJECT]}
METHOD = object_schema(
    {"method": {"enum": ["predict", "predict_proba", "decision_function"], "default": "predict"}},
    [],
    additionalProperties=False,
)
MLFLOW_TABLES: Mapping[str, Schema] = {
    "dataframe_split": object_schema(
        {"columns": array_of(STRING), "data": ROWS, "index": array_of(ANYTHING)}, ["data"]
    ),
    "dataframe_records": ROWS,
    "instances": TABLE,
    "inputs": TABLE,
}
AZURE_TABLES: Mapping[str, Schema] = {"data": TABLE, "input_data": TABLE, "Inputs": OBJECT}
