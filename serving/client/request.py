"""Requests as values: what a call sends, and whether it may be sent twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import msgspec

from serving.client.answers import JobStatus, Label
from serving.client.rows import Table, csv_of, instances_of, values_of

Classes: TypeAlias = "Literal['predicted', 'all'] | Sequence[Label]"
Verb: TypeAlias = "Literal['predict', 'explain']"
JobOperation: TypeAlias = "Literal['predict', 'explain', 'importance']"
Content: TypeAlias = "bytes | Callable[[], Iterator[bytes]] | None"

JSON = {"content-type": "application/json"}
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".arrows": "application/vnd.apache.arrow.stream",
}
"""Of files of rows, by the ending of their name."""

MAX_JSON_BYTES = 4 * 1024 * 1024
"""Rows that take more as JSON are sent as CSV, of which a service takes much more; see MAX_BODY_BYTES."""

SAMPLE_ROWS = 1000
PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `content` may be a function that opens the pieces of a body, each time that it is sent."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Content = None
    repeatable: bool = True
    """Whether it does no harm to send it twice."""
    has_deadline: bool = False
    """Whether the service takes X-Request-Timeout."""
    follows: bool = False
    """Whether the answer is a stream of events that goes on until there are no more."""


def inference(
    verb: Verb, model: str, instances: Any, version: str | None, wishes: Mapping[str, Any], *, streamed: bool = False
) -> Request:
    """A request for predictions or explanations."""
    parameters = given(**wishes)
    content = {"instances": instances} | ({"parameters": parameters} if parameters else {})
    headers = JSON | ({"accept": "text/event-stream"} if streamed else {})
    path = f"{model_path(model, version)}:{verb}"
    return Request("POST", path, {}, headers, msgspec.json.encode(content), has_deadline=True)


def job_request(
    rows: Table | Path | str, about: dict[str, Any], wishes: dict[str, Any], idempotency_key: str
) -> Request:
    """A request for a job over the rows of a table or a file. Rows that are too many for JSON are sent as CSV."""
    wishes = given(**wishes | explained(wishes.get("classes", "predicted")))
    headers = {"idempotency-key": idempotency_key}
    if isinstance(rows, Path | str):
        return _table_request(*_file(Path(rows)), about, wishes, headers)
    instances = instances_of(rows)
    sample = msgspec.json.encode(instances[:SAMPLE_ROWS])
    if len(sample) / SAMPLE_ROWS * len(instances) > MAX_JSON_BYTES and _fits_csv(instances):
        return _table_request(lambda: csv_of(instances), MEDIA_TYPES[".csv"], about, wishes, headers)
    content = {**given(**about), "instances": instances} | ({"parameters": wishes} if wishes else {})
    return Request("POST", "/v1/jobs", {}, JSON | headers, msgspec.json.encode(content))


def _table_request(
    content: Content, media_type: str, about: Mapping[str, Any], wishes: Mapping[str, Any], headers: Mapping[str, str]
) -> Request:
    query = {name: list(map(str, wish)) if isinstance(wish, list) else wish for name, wish in wishes.items()}
    return Request("POST", "/v1/jobs", {**about, **query}, {"content-type": media_type, **headers}, content)


def _file(path: Path) -> tuple[Content, str]:
    """What reads a file, and its media type. Raises ValueError, OSError."""
    if path.suffix.lower() not in MEDIA_TYPES:
        raise ValueError(f"the name of a file of rows ends in {', '.join(MEDIA_TYPES)}")
    path.stat()  # raises now, not while it is sent

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    return pieces, MEDIA_TYPES[path.suffix.lower()]


def _fits_csv(instances: Sequence[Any]) -> bool:
    """Return whether a CSV holds the same: its columns have names, and an empty cell is a missing value."""
    return all(isinstance(instance, dict) and "" not in instance.values() for instance in instances)


def explained(classes: Classes, **wishes: Any) -> dict[str, Any]:
    """The parameters of an explanation; None for what the service decides."""
    named = classes if isinstance(classes, str) else values_of(classes)
    return {"classes": None if named == "predicted" else named, **wishes}


def given(**members: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in members.items() if value is not None}


def model_path(model: str, version: str | None = None) -> str:
    """The path of a model, or of one of its versions."""
    return f"/v1/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def entity_path(entity: str) -> str:
    """The path of an entity."""
    return f"/v1/entities/{quote(entity, safe='')}"


def job_path(job: JobStatus | str) -> str:
    """The path of a job."""
    return f"/v1/jobs/{quote(job if isinstance(job, str) else job.id, safe='')}"
