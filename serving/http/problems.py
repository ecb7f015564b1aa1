"""Errors as HTTP: the one table of statuses, and RFC 9457 problems that never echo the input."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import msgspec

from registry.errors import (
    CannotTrain,
    InvalidRows,
    InvalidSelection,
    ModelFailed,
    ModelNotFound,
    NestedTooDeep,
    NotExplained,
    VersionNotFound,
)
from serving.errors import (
    BodyTooLarge,
    CallFailed,
    CannotReload,
    DataQueueFull,
    DeadlineExceeded,
    EntityNotFound,
    ExecutorGone,
    InvalidRequest,
    JobNotFound,
    JobUnfinished,
    MemoryExceeded,
    MethodNotAllowed,
    NotAuthorized,
    NotJSON,
    Overloaded,
    QueueFull,
    ReloadRefused,
    StoreUnavailable,
    TooManyInstances,
    TooManyRequests,
    TooManyStreams,
    TrainingBusy,
    UnsupportedBody,
)

CONTENT_TYPE = b"application/problem+json"
LARGEST = 8 * 1024

STATUS: dict[type[Exception], HTTPStatus] = {
    NotJSON: HTTPStatus.BAD_REQUEST,
    NestedTooDeep: HTTPStatus.BAD_REQUEST,
    NotAuthorized: HTTPStatus.UNAUTHORIZED,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    VersionNotFound: HTTPStatus.NOT_FOUND,
    JobNotFound: HTTPStatus.NOT_FOUND,
    EntityNotFound: HTTPStatus.NOT_FOUND,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    ReloadRefused: HTTPStatus.CONFLICT,
    CannotTrain: HTTPStatus.CONFLICT,
    TrainingBusy: HTTPStatus.CONFLICT,
    JobUnfinished: HTTPStatus.CONFLICT,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooManyInstances: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    MemoryExceeded: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidRows: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidSelection: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotExplained: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    ModelFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
    CallFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
    CannotReload: HTTPStatus.NOT_IMPLEMENTED,
    Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    ExecutorGone: HTTPStatus.SERVICE_UNAVAILABLE,
    TooManyStreams: HTTPStatus.SERVICE_UNAVAILABLE,
    DataQueueFull: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}

RETRY_AFTER: dict[type[Exception], int] = {
    Overloaded: 1,
    ExecutorGone: 1,
    DataQueueFull: 5,
    StoreUnavailable: 5,
    TooManyStreams: 10,
}
"""Seconds after which the same request may succeed."""

DETAIL: dict[type[Exception], str] = {
    ModelNotFound: "there is no model of that name",
    VersionNotFound: "the model has no such version",
    InvalidRows: "the instances do not fit the model's features",
    NestedTooDeep: "the body is nested too deep",
    ModelFailed: "the model failed on this request",
    CallFailed: "the computation failed on this request",
    JobNotFound: "there is no such job, or no longer",
    EntityNotFound: "there is no record of that entity",
    StoreUnavailable: "what is kept cannot be reached now; predictions can be asked for",
}


def status_of(error: Exception) -> HTTPStatus:
    """The status that an error is answered with: 500 unless the table knows better."""
    return STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


def render(error: Exception, request_id: str) -> tuple[HTTPStatus, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to an error; an error that is not in the table says only its id."""
    status = status_of(error)
    known = type(error) in STATUS
    detail = DETAIL.get(type(error), str(error)) if known else f"see the log for request {request_id}"
    headers = []
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    if isinstance(error, NotAuthorized):
        headers.append((b"www-authenticate", b'Bearer realm="admin"'))
    if isinstance(error, TooManyRequests | QueueFull):
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    elif type(error) in RETRY_AFTER:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER[type(error)]))
    faults = error.faults if isinstance(error, InvalidRows) else ()
    errors = [{"instance": fault.instance, "feature": fault.feature, "reason": fault.reason} for fault in faults]
    return status, headers, body(status, detail, request_id, errors)


def body(status: int, detail: str, request_id: str, errors: list[dict[str, Any]] | None = None) -> bytes:
    """A problem document of at most 8 KB; of too many `errors` the last are left out."""
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "request_id": request_id,
    }
    if errors:
        problem["errors"] = errors
    content = msgspec.json.encode(problem)
    if len(content) > LARGEST and errors:
        return body(status, detail, request_id, errors[: len(errors) // 2])
    return content
