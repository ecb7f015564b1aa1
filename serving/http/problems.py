"""Errors as HTTP: the one table of statuses, and RFC 9457 problems that never echo the input.

Clients of another protocol read its form of an error: `FORMS` says which paths speak which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from registry import errors as model_errors
from serving import errors
from serving.http.coding import TAKEN as CODINGS_TAKEN

CONTENT_TYPE = b"application/problem+json"

MAX_PROBLEM_BYTES = 8 * 1024

ERRORS: dict[HTTPStatus, tuple[type[Exception], ...]] = {
    HTTPStatus.BAD_REQUEST: (errors.NotJSON, model_errors.NestedTooDeep),
    HTTPStatus.UNAUTHORIZED: (errors.NotAuthorized,),
    HTTPStatus.FORBIDDEN: (errors.NotPermitted,),
    HTTPStatus.NOT_FOUND: (
        model_errors.ModelNotFound,
        model_errors.VersionNotFound,
        model_errors.NotYetLoaded,
        errors.JobNotFound,
        errors.ScheduleNotFound,
        errors.WorkerNotFound,
        errors.EntityNotFound,
        errors.NoCandidate,
        errors.PredictionNotFound,
        errors.RouteNotFound,
        errors.NoDefaultModel,
    ),
    HTTPStatus.METHOD_NOT_ALLOWED: (errors.MethodNotAllowed,),
    HTTPStatus.CONFLICT: (
        errors.ReloadRefused,
        model_errors.CannotTrain,
        model_errors.CannotTry,
        errors.TrainingBusy,
        errors.JobUnfinished,
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (errors.BodyTooLarge, errors.TooManyInstances, errors.MemoryExceeded),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (errors.UnsupportedBody, errors.UnsupportedCoding),
    HTTPStatus.UNPROCESSABLE_ENTITY: (
        errors.InvalidRequest,
        errors.InvalidRecord,
        model_errors.InvalidRows,
        model_errors.ResultNotFinite,
        model_errors.InvalidSelection,
        model_errors.NotExplained,
    ),
    HTTPStatus.TOO_MANY_REQUESTS: (errors.TooManyRequests, errors.TooManyBytes, errors.QueueFull),
    HTTPStatus.INTERNAL_SERVER_ERROR: (model_errors.ModelFailed, errors.CallFailed),
    HTTPStatus.NOT_IMPLEMENTED: (errors.CannotReload,),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        errors.Overloaded,
        errors.ExecutorGone,
        errors.TooManyStreams,
        errors.BodiesFull,
        errors.DataQueueFull,
        errors.StoreUnavailable,
        model_errors.NotLoaded,
    ),
    HTTPStatus.INSUFFICIENT_STORAGE: (errors.StoreFull,),
    HTTPStatus.GATEWAY_TIMEOUT: (errors.DeadlineExceeded,),
}

STATUS = {error: status for status, group in ERRORS.items() for error in group}

DETAIL: dict[type[Exception], str] = {
    model_errors.ModelNotFound: "there is no model of that name; GET /v1/models lists all",
    model_errors.VersionNotFound: "the model has no such version; GET /v1/models lists all",
    model_errors.InvalidRows: "the instances do not fit the model's features",
    model_errors.NestedTooDeep: "the body is nested too deeply",
    model_errors.ResultNotFinite: "the model has no finite result for some instances",
    model_errors.ModelFailed: "the model failed on this request",
    errors.CallFailed: "the computation failed on this request",
    errors.JobNotFound: str(errors.JobNotFound()),
    errors.EntityNotFound: "that entity has no records",
    errors.StoreUnavailable: "storage is unavailable; predictions still work",
}
"""Shown in place of messages that may hold input, paths or other people's words."""


class Problem(msgspec.Struct):
    """An error as RFC 9457 writes it; `errors` are the invalid values of a request."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: Annotated[Sequence[model_errors.Fault], Meta(max_length=20)] | UnsetType = UNSET
    error: str | UnsetType = UNSET
    """The detail once more, where clients of TensorFlow Serving and KServe look for it."""


def status_of(error: Exception) -> HTTPStatus:
    """The status of the answer to an error: 500 unless the table has another."""
    return STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


@dataclass(frozen=True, slots=True)
class Form:
    """How the clients of one protocol read an error."""

    content_type: bytes
    write: Callable[[int, str, str, Sequence[model_errors.Fault]], bytes]
    """A function from status, detail, the id of the request and faults to a body of at most MAX_PROBLEM_BYTES."""
    statuses: Mapping[HTTPStatus, HTTPStatus] = field(default_factory=dict)
    """What the protocol says instead of some statuses."""


def render(
    error: Exception, request_id: str, form: Form | None = None
) -> tuple[HTTPStatus, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to an error; an unknown error shows only the id of the request."""
    form = form or PROBLEM
    status = status_of(error)
    detail = f"see the log for request {request_id}"
    if type(error) in STATUS:
        detail = DETAIL.get(type(error), str(error))
    headers = []
    if isinstance(error, errors.MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    if isinstance(error, errors.UnsupportedCoding):
        headers.append((b"accept-encoding", CODINGS_TAKEN))
    if isinstance(error, errors.NotAuthorized):
        headers.append((b"www-authenticate", b'Bearer realm="forkserve"'))
    if isinstance(error, errors.NotPermitted) and error.scope:
        lacking = f'Bearer realm="forkserve", error="insufficient_scope", scope="{error.scope}"'
        headers.append((b"www-authenticate", lacking.encode()))
    if isinstance(error, errors.ServingError) and error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    if isinstance(error, errors.TooManyBytes | errors.BodiesFull):
        headers.append((b"connection", b"close"))  # so that the rest of the body is not received
    faults = error.faults if isinstance(error, model_errors.InvalidRows | model_errors.ResultNotFinite) else ()
    status = form.statuses.get(status, status)
    return status, headers, form.write(status, detail, request_id, faults)


def body(status: int, detail: str, request_id: str, faults: Sequence[model_errors.Fault] = ()) -> bytes:
    """A problem document of at most MAX_PROBLEM_BYTES; the last `faults` are left out if there are too many."""
    title = HTTPStatus(status).phrase
    content = msgspec.json.encode(Problem("about:blank", title, int(status), detail, request_id, faults or UNSET))
    if len(content) > MAX_PROBLEM_BYTES and faults:
        return body(status, detail, request_id, faults[: len(faults) // 2])
    return content


def body_with_error(status: int, detail: str, request_id: str, faults: Sequence[model_errors.Fault] = ()) -> bytes:
    """A problem document whose detail also stands in `error`."""
    problem = msgspec.json.decode(body(status, detail, request_id, faults), type=Problem)
    problem.error = detail
    return msgspec.json.encode(problem)


def error_body(_status: int, detail: str, _request_id: str, faults: Sequence[model_errors.Fault] = ()) -> bytes:
    """The object `{"error": ...}` of the Open Inference Protocol, with as many `faults` as fit."""
    told = [
        f"instance {one.instance}, {one.feature}: {one.reason}"
        if one.feature is not None
        else f"instance {one.instance}: {one.reason}"
        for one in faults
    ]
    content = msgspec.json.encode({"error": "; ".join([detail, *told])})
    if len(content) > MAX_PROBLEM_BYTES and faults:
        return error_body(_status, detail, _request_id, faults[: len(faults) // 2])
    return content


PROBLEM = Form(CONTENT_TYPE, body)
PROBLEM_WITH_ERROR = Form(CONTENT_TYPE, body_with_error)
ERROR = Form(b"application/json", error_body, {HTTPStatus.UNPROCESSABLE_ENTITY: HTTPStatus.BAD_REQUEST})
"""That of the Open Inference Protocol: its clients show `error` only if the content type is exactly this."""

FORMS: tuple[tuple[re.Pattern[str], Form], ...] = (
    (re.compile(r"/v2(?:/.*)?", re.DOTALL), ERROR),
    (re.compile(r"/v1/models/[^/]*(?:/versions/[^/]*)?/metadata"), PROBLEM_WITH_ERROR),
)
"""Paths whose errors have another form than PROBLEM."""


def form_of(path: str) -> Form:
    """The form of the errors of a path, whether there is anything at it or not."""
    return next((form for paths, form in FORMS if paths.fullmatch(path)), PROBLEM)
