"""Jobs as values: the request for one, its state, its retries, and the firings of schedules that submit them."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import msgspec

State = Literal["queued", "running", "done", "failed", "cancelled"]
Lease = Literal["held", "cancelled", "lost"]
"""The state of a lease: continue; stop and release the job; or drop it, because another owner has it now."""

MAX_ERROR_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A snapshot of a job. Times are in seconds since the epoch, by the store's clock."""

    id: str
    operation: str
    model: str
    version: str
    parameters: bytes
    state: State
    chunks: int
    max_attempts: int
    created: float
    due: float
    """Runners do not claim the job before this."""
    progress: float = 0.0
    chunks_done: int = 0
    attempts: int = 0
    """Number of times it was claimed."""
    stalled: int = 0
    """Attempts since its last new chunk, including the present one; at most `max_attempts`."""
    started: float | None = None
    finished: float | None = None
    cancelling: bool = False
    """Cancelled while running: the lease owner learns it with the next heartbeat."""
    owner: str = ""
    """The owner of the last lease."""
    error: str = ""
    """The error of the last failed attempt."""
    unique_key: str = ""
    idempotency_key: str = ""
    mutex: str = ""
    client: str = ""
    """The name of the API key that it belongs to; empty for none."""
    account: str = ""
    """The client whose limits it counts against, by key or by address; empty for none."""

    @property
    def is_finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A request for a job. Keys and mutex may be empty.

    At most one queued or running job has a given `unique_key`, or a given `mutex`, and at most one job at all has a
    given `idempotency_key`: a request for another returns that one. Only the operation reads `parameters`; of `inputs`
    a runner reads only the chunk that it works on.
    """

    operation: str
    inputs: Sequence[bytes]
    model: str = ""
    version: str = ""
    parameters: bytes = b""
    unique_key: str = ""
    idempotency_key: str = ""
    mutex: str = ""
    client: str = ""
    account: str = ""
    max_attempts: int = 3
    delay: float = 0.0

    def __post_init__(self) -> None:
        if not self.operation or not self.inputs or self.max_attempts < 1:
            raise ValueError("a job needs an operation, at least one chunk and at least one attempt")

    @property
    def size(self) -> int:
        """Bytes of the inputs."""
        return sum(map(len, self.inputs))

    def of(self, client: str, account: str = "") -> JobRequest:
        """The same request by a client, whose keys find no job of another client."""
        if not client:
            return dataclasses.replace(self, account=account)
        unique, idempotency = (
            key and hashlib.sha256(f"{client} {key}".encode()).hexdigest()
            for key in (self.unique_key, self.idempotency_key)
        )
        return dataclasses.replace(self, client=client, account=account, unique_key=unique, idempotency_key=idempotency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Jobs by state, and how many seconds ago the oldest queued job was due."""

    queued: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    oldest_queued_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleCounts:
    """Firings of a schedule by what became of them: each is fired, missed, coalesced or prevented."""

    fired: int = 0
    missed: int = 0
    """Firings that were later than their grace."""
    coalesced: int = 0
    """Firings that a later one within its grace replaced."""
    overlaps_prevented: int = 0
    """Firings while the job before, or another with its mutex, was not finished."""
    failed: int = 0
    """Fired ones for which no job could be made. The failure of a job itself is the job's."""
    overlap_incidents: int = 0
    """Jobs submitted while the one before was not finished: there must be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """A schedule's state in the store. Times are in seconds since the epoch."""

    last: float
    """Firings up to this time are settled. For a new schedule, when it was first seen."""
    job: str = ""
    """The id of the last job."""
    counts: ScheduleCounts = ScheduleCounts()
    paused: bool = False
    """What is due meanwhile is passed over."""


@dataclass(frozen=True, slots=True)
class Firing:
    """Settles the firings of a schedule up to a time, and submits the job of the latest, if there is a request."""

    schedule: str
    seen: float | None
    """The last firing, as the scheduler read it; None for a new schedule."""
    upto: float
    counts: ScheduleCounts = ScheduleCounts()
    """Added to those of the record. The store itself counts `fired`, `overlaps_prevented` and `overlap_incidents`."""
    request: JobRequest | None = None


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between attempts: doubled each time up to a limit, and cut by up to half at random to spread retries."""

    first: float = 1.0
    longest: float = 60.0

    def delay(self, stalled: int, share: float) -> float:
        """Seconds before the attempt after `stalled` failed ones; `share` is a random number from 0 to 1."""
        return float(min(self.longest, self.first * 2 ** (stalled - 1))) * (1 - share / 2)


def new_id() -> str:
    """144 random bits in 24 characters that need no escaping in a URL, so that ids cannot be guessed."""
    return secrets.token_urlsafe(18)


def content_key(operation: str, content_hash: str, parameters: bytes, inputs: Sequence[bytes]) -> str:
    """The `unique_key` of a deterministic operation: equal for equal work.

    `content_hash` is the model's. Each part is hashed with its length, so that different parts never look the same.
    """
    digest = hashlib.sha256()
    for part in chain((operation.encode(), content_hash.encode(), parameters), inputs):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def job_from(fields: Mapping[str, Any]) -> Job:
    """A job from a store's columns, of which unknown ones are ignored; numbers may be text."""
    return msgspec.convert(fields, Job, strict=False)


def record_from(fields: Mapping[str, Any]) -> ScheduleRecord:
    """The record of a schedule from a store's columns, of which unknown ones are ignored; numbers may be text."""
    return msgspec.convert({**fields, "counts": fields}, ScheduleRecord, strict=False)


def printable(error: str) -> str:
    """An error message as it is stored: cut to a maximum length, and valid UTF-8."""
    return error.encode("utf-8", "replace").decode()[:MAX_ERROR_CHARACTERS]
