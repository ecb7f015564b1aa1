"""What can go wrong with a request or the service, besides what goes wrong with models (registry/errors.py).

ServingError
├── InvalidSetting        a variable of the environment has a value that cannot be; names the variable
├── CannotServe           the process is not fit to serve
├── RequestRefused        the request is wrong before any model looks at it
│   ├── NotJSON           not JSON at all, or nothing that is meant as a request
│   ├── InvalidRequest    JSON, but not the request that is asked for
│   ├── BodyTooLarge      more bytes than MAX_BODY_BYTES
│   ├── TooManyInstances  more rows than MAX_INSTANCES
│   ├── UnsupportedBody   not application/json, or encoded
│   ├── MethodNotAllowed  the address is there, not with this method
│   └── NotAuthorized     no admin token, or a wrong one
├── Overloaded            there is more work than can be done in time; try again later
├── DeadlineExceeded      a prediction took longer than it may
├── CallFailed            a call in a process of its own broke, or its process did
├── MemoryExceeded        a call in a process of its own needed more memory than it may
├── ExecutorGone          the worker can run no such calls any more
├── ReloadRefused         something on disk is not fit to serve, so the old stays in service
├── CannotReload          there is no master here that could be asked to reload
├── TrainingBusy          another model is being trained
├── TooManyRequests       a client sends more than it may; holds when to try again
├── QueueFull             as many jobs wait as may; holds when to try again
├── JobNotFound           there is no job of that id, or no longer
├── JobUnfinished         the job has no result, or not yet
├── TooManyStreams        as many event streams are open as may, in this worker or for this address
├── OutboundFailed        a call to elsewhere got no usable reply; names the host, never the address
├── EntityNotFound        there is no record of that entity
├── DataQueueFull         as many outcomes wait to be stored as may
└── StoreUnavailable      what keeps jobs, events or records cannot be read or written now
"""

from __future__ import annotations


class ServingError(Exception):
    """The root of this tree; the message is shown to the client."""


class InvalidSetting(ServingError):
    """A variable of the environment has a value that cannot be."""


class CannotServe(ServingError):
    """The process is not fit to serve; the message says why."""


class RequestRefused(ServingError):
    """The request is wrong before any model looks at it."""


class NotJSON(RequestRefused):
    """The body is not JSON at all, or nothing that is meant as a request."""


class InvalidRequest(RequestRefused):
    """The body is JSON, but not the request that is asked for."""


class BodyTooLarge(RequestRefused):
    """The body has more bytes than it may."""


class TooManyInstances(RequestRefused):
    """One request holds more instances than it may."""


class UnsupportedBody(RequestRefused):
    """The body's type or encoding is not taken here."""


class MethodNotAllowed(RequestRefused):
    """The address is there, but not with this method; holds the one that is."""

    def __init__(self, allowed: str) -> None:
        super().__init__(f"use {allowed}")
        self.allowed = allowed


class NotAuthorized(RequestRefused):
    """No admin token, or a wrong one."""


class Overloaded(ServingError):
    """There is more work than can be done in time; the same request may succeed a moment later."""

    def __init__(self) -> None:
        super().__init__("too many requests are waiting for this model")


class DeadlineExceeded(ServingError):
    """A prediction took longer than it may."""


class CallFailed(ServingError):
    """A call in a process of its own broke, or its process did; the message says how, and is not for the client."""


class MemoryExceeded(ServingError):
    """A call in a process of its own needed more memory than it may; fewer rows may do."""

    def __init__(self) -> None:
        super().__init__("the computation needs more memory than it may; send fewer instances")


class ExecutorGone(ServingError):
    """No calls in processes of their own can be run here any more; the worker is about to be replaced."""

    def __init__(self) -> None:
        super().__init__("this worker is being replaced; try again")


class ReloadRefused(ServingError):
    """Something on disk is not fit to serve, so what was there before stays in service; the message names it."""


class CannotReload(ServingError):
    """There is no master here that could be asked to reload: models are not loaded before the fork."""

    def __init__(self) -> None:
        super().__init__("models are not preloaded by a master here; restart the service instead")


class TrainingBusy(ServingError):
    """Another model is being trained, and one is at a time; the message names it."""


class TooManyRequests(ServingError):
    """A client sends more than it may; `retry_after` seconds later the next request is taken."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many requests from this address")
        self.retry_after = retry_after


class QueueFull(ServingError):
    """As many jobs wait as may; `retry_after` seconds later there may be room."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many jobs are waiting")
        self.retry_after = retry_after


class JobNotFound(ServingError):
    """There is no job of that id, or no longer."""


class JobUnfinished(ServingError):
    """The job has no result, or not yet; the message says its state."""


class TooManyStreams(ServingError):
    """As many event streams are open as may, in this worker or for this address."""


class OutboundFailed(ServingError):
    """A call to elsewhere got no usable reply; the message names the host, never the address, which may be secret."""


class EntityNotFound(ServingError):
    """There is no record of that entity."""


class DataQueueFull(ServingError):
    """As many outcomes wait to be stored as may; without `Prefer: respond-async` the client hears what keeps them."""

    def __init__(self) -> None:
        super().__init__("too many outcomes wait to be stored")


class StoreUnavailable(ServingError):
    """What keeps jobs, events or records cannot be read or written now; its message names it, but no path."""
