"""The errors of a client: one class for each thing that a caller can do differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from serving.client.answers import JobStatus

MAX_SHOWN = 3
"""Invalid values that a message names; all are in `errors`."""

MAX_TEXT = 500
"""Characters shown of an answer that is not a problem of the service, such as a proxy's page."""


class FieldError(msgspec.Struct, frozen=True):
    """One invalid value of a request: which instance, which feature of it, and the reason."""

    reason: str = ""
    instance: int | None = None
    feature: str | None = None

    def __str__(self) -> str:
        place = [*([] if self.instance is None else [f"instance {self.instance}"]), *filter(None, [self.feature])]
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


class ProblemDetails(msgspec.Struct, frozen=True):
    """A refusal as the service writes it (RFC 9457); empty where there was no answer."""

    status: int = 0
    title: str = ""
    detail: str = ""
    request_id: str = ""
    errors: tuple[FieldError, ...] = ()


NO_ANSWER = ProblemDetails()


class ForkserveError(Exception):
    """Any failure of a call; `status` is 0 if there was no answer."""

    def __init__(self, message: str, problem: ProblemDetails = NO_ANSWER, retry_after: float | None = None) -> None:
        super().__init__(message, problem, retry_after)
        self.problem = problem
        self.retry_after = retry_after
        """Seconds after which the service asks to try again; None if it does not say."""

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def request_id(self) -> str:
        """By which the service's log knows the request."""
        return self.problem.request_id

    @property
    def errors(self) -> tuple[FieldError, ...]:
        """The invalid values of the request, at most 20."""
        return self.problem.errors


class UnreachableError(ForkserveError):
    """No answer: the connection was refused or cut off."""


class TimedOutError(ForkserveError):
    """The deadline passed, here or at the service (504)."""


class JobFailedError(ForkserveError):
    """A job failed, or was cancelled."""

    def __init__(self, message: str, job: JobStatus) -> None:
        super().__init__(message)
        self.args = (message, job)
        self.job = job


class BecameJob(ForkserveError):
    """The service goes on with a request as a job: `client.result(client.wait(error.job))` is its answer."""

    def __init__(self, message: str, job: JobStatus) -> None:
        super().__init__(message)
        self.args = (message, job)
        self.job = job


class AuthenticationError(ForkserveError):
    """401: no key, or one that is unknown or expired."""


class PermissionDeniedError(ForkserveError):
    """403: the key lacks a scope, or may not use the model."""


class NotFoundError(ForkserveError):
    """404: there is no model, version, job or entity of that name."""


class ConflictError(ForkserveError):
    """409: not in this state, such as the result of a job that still runs."""


class TooLargeError(ForkserveError):
    """413: too many rows or bytes; `submit` takes more."""


class InvalidInputError(ForkserveError):
    """400, 415, 422: the request does not fit; `errors` name each wrong value."""


class RateLimitedError(ForkserveError):
    """429: too many requests, or too many jobs that wait."""


class UnavailableError(ForkserveError):
    """503: overloaded, draining, or a store is unavailable."""


class ServiceError(ForkserveError):
    """Any other answer that is no success."""


CLASSES: Mapping[int, type[ForkserveError]] = {
    400: InvalidInputError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    415: InvalidInputError,
    422: InvalidInputError,
    429: RateLimitedError,
    503: UnavailableError,
    504: TimedOutError,
}


def error_of(status: int, headers: Mapping[str, str], content: bytes) -> ForkserveError:
    """The error that an answer stands for; one that is no problem of the service shows its beginning."""
    try:
        problem = msgspec.json.decode(content, type=ProblemDetails)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = ProblemDetails(detail=content[:MAX_TEXT].decode(errors="replace"))
    problem = msgspec.structs.replace(
        problem, status=status, request_id=problem.request_id or headers.get("x-request-id", "")
    )
    return CLASSES.get(status, ServiceError)(_message(problem), problem, _seconds(headers.get("retry-after", "")))


def _message(problem: ProblemDetails) -> str:
    shown = "; ".join(map(str, problem.errors[:MAX_SHOWN]))
    more = ", ..." if len(problem.errors) > MAX_SHOWN else ""
    parts = [
        " ".join(filter(None, [str(problem.status), problem.title])),
        problem.detail,
        shown + more,
    ]
    request = f" (request {problem.request_id})" if problem.request_id else ""
    return ": ".join(filter(None, parts)) + request


def _seconds(text: str) -> float | None:
    """Seconds of a Retry-After header; None for none, or for a date, which only proxies send."""
    return float(text) if text.isdecimal() else None
