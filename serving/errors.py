"""Everything that can go wrong with a request or the service; the errors of models are in registry/errors.py.

ServingError
├── InvalidSetting, CannotServe                                         the service cannot start
├── NotJSON, InvalidRequest, UnsupportedBody, BodyTooLarge, TooManyInstances,
│   MethodNotAllowed, NoDefaultModel, NotAuthorized, NotPermitted,
│   RouteNotFound                                                       the request is wrong
├── InvalidRecord                                                       what is stored cannot be used
├── JobNotFound, JobUnfinished, EntityNotFound, PredictionNotFound, NoCandidate,
│   ScheduleNotFound, WorkerNotFound                                    nothing is there, or not yet
├── Overloaded, TooManyRequests, TooManyBytes, BodiesFull, TooManyStreams, QueueFull, DataQueueFull, StoreUnavailable,
│   StoreFull, ExecutorGone                                             the same request may succeed later
├── DeadlineExceeded, MemoryExceeded, CallFailed                        a computation was given up
├── ReloadRefused, CannotReload, TrainingBusy                           models stay as they are
└── OutboundFailed                                                      another server did not answer
"""

from __future__ import annotations


class ServingError(Exception):
    """The root of this tree; the client sees the message."""

    retry_after: float | None = None
    """Seconds after which the same request may succeed; None if that is unknown."""


class InvalidSetting(ServingError):
    """An environment variable has an invalid value; the message names the variable."""


class InvalidRedisUrl(ServingError):
    """The URL of Redis cannot be used; the message does not repeat it, because it may contain a password."""


class CannotServe(ServingError):
    """The process cannot serve; the message says why."""


class NotJSON(ServingError):
    """The body or a header is not even syntactically valid."""


class InvalidRequest(ServingError):
    """The body is JSON, but not a valid request."""


class UnsupportedBody(ServingError):
    """The body has an unsupported type or encoding."""


class UnsupportedCoding(UnsupportedBody):
    """The body is compressed in a way that is not taken."""


class BodyTooLarge(ServingError):
    """The body has more bytes than are allowed."""


class TooManyInstances(ServingError):
    """One request has more instances than are allowed."""


class MethodNotAllowed(ServingError):
    """The route exists, but not with this method; it has `method`."""

    def __init__(self, method: str) -> None:
        super().__init__(f"use {method}")
        self.allowed = f"OPTIONS, {method}"


class NoDefaultModel(ServingError):
    """A request names no model, and there are several."""

    def __init__(self) -> None:
        super().__init__(
            "there is no default model: name one in the path (/endpoints/{model}/invocations), or set DEFAULT_MODEL"
        )


class NotAuthorized(ServingError):
    """The key is missing, unknown or expired; the message says which header it goes into."""


class NotPermitted(ServingError):
    """The key may not do this; `scope` is the one that it lacks, empty if it may not use the model."""

    def __init__(self, reason: str, scope: str = "") -> None:
        super().__init__(reason)
        self.scope = scope


class RouteNotFound(ServingError):
    """There is no such route for this key."""

    def __init__(self) -> None:
        super().__init__("Not Found")


class ScheduleNotFound(ServingError):
    """There is no schedule of that name."""

    def __init__(self) -> None:
        super().__init__("there is no schedule of that name")


class WorkerNotFound(ServingError):
    """No web worker of this service has that process id."""

    def __init__(self) -> None:
        super().__init__("no web worker of this service has that process id")


class JobNotFound(ServingError):
    """No job has that id, or it has been deleted."""

    def __init__(self, reason: str = "there is no such job, or it has been deleted") -> None:
        super().__init__(reason)


class JobUnfinished(ServingError):
    """The job has no result, or not yet; the message names its state."""


class EntityNotFound(ServingError):
    """That entity has no records."""


class NoCandidate(ServingError):
    """No version of the model is tried beside the live one; the message names the model."""


class PredictionNotFound(ServingError):
    """Nothing is logged of that request, or not for this key."""

    def __init__(self) -> None:
        super().__init__("nothing is logged of a request of that id, or it has been deleted")


class Overloaded(ServingError):
    """More requests are waiting than can be answered in time."""

    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("too many requests are waiting for this model")


class TooManyRequests(ServingError):
    """A client has exceeded its rate; its next request is accepted after `retry_after` seconds."""

    def __init__(self, retry_after: float, client: str = "from this address") -> None:
        super().__init__(f"too many requests {client}")
        self.retry_after = retry_after


class TooManyBytes(ServingError):
    """A client is sending more bytes in several bodies at once than one client may."""

    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("too many bytes at once from this client")


class BodiesFull(ServingError):
    """The bodies that are being received take as much memory as they may."""

    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("too many bytes are being received")


class TooManyStreams(ServingError):
    """A worker, or one client address, has as many event streams open as are allowed."""

    retry_after = 10.0


class QueueFull(ServingError):
    """The queue of jobs is full, as the `reason` says; there may be room after `retry_after` seconds."""

    def __init__(self, retry_after: float, reason: str = "too many jobs are waiting") -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DataQueueFull(ServingError):
    """The queue of outcomes is full. Without `Prefer: respond-async` a client waits for the store."""

    retry_after = 5.0

    def __init__(self) -> None:
        super().__init__("too many outcomes are waiting to be stored")


class StoreUnavailable(ServingError):
    """The store of jobs, events or records cannot be read or written now; the message names it, but no path."""

    retry_after = 5.0


class StoreFull(ServingError):
    """As many records are kept as may be, and none makes room for an entity that has none yet."""

    REASON = "MAX_RECORDS are kept, or half of them of one key: entities that have none get 507"

    def __init__(self) -> None:
        super().__init__(
            "the store is full: nothing is stored. Entities that have records may get newer ones; delete some, "
            "or raise MAX_RECORDS, to store records of others"
        )


class ExecutorGone(ServingError):
    """The worker can no longer run calls in processes of their own; it is about to be replaced."""

    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("this worker is being replaced; try again")


class DeadlineExceeded(ServingError):
    """A prediction took longer than is allowed."""


class MemoryExceeded(ServingError):
    """A call in a process of its own needed more memory than is allowed; fewer rows may fit."""

    def __init__(self) -> None:
        super().__init__("the computation needs more memory than is allowed; send fewer instances")


class CallFailed(ServingError):
    """A call in a process of its own raised an error, or its process died; the client does not see the message."""


class InvalidRecord(ServingError):
    """A stored record was not written by this service and cannot be read; only its entity is affected."""

    def __init__(self, record_id: str) -> None:
        super().__init__(f"the stored record {record_id[:64]} is not valid: repair or delete it")


class ReloadRefused(ServingError):
    """A version on disk cannot be served, so the previous models stay in service; the message names it."""


class CannotReload(ServingError):
    """No master can be asked to reload, because models are not loaded before the fork."""

    def __init__(self) -> None:
        super().__init__("this service does not preload its models; restart it instead")


class TrainingBusy(ServingError):
    """Another model is being trained, and only one is at a time; the message names it."""


class OutboundFailed(ServingError):
    """A call to another server got no usable reply; the message names its host, never the URL, which may be secret."""
