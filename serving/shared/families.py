"""What is measured: a family is one thing, counted or gauged, perhaps for each value of one label.

Every label value is named here or comes from the registry, never from a request: who sends a hundred thousand names
makes no new series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.shared.histogram import BUCKETS

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One thing that is measured. A counter of a process that has ended goes on in the totals, a gauge does not.

    A histogram takes seconds: a number for each bucket, and their sum.
    """

    name: str
    kind: Kind
    meaning: str
    label: str = ""
    values: tuple[str, ...] = ("",)

    @property
    def size(self) -> int:
        """In numbers."""
        return BUCKETS + 1 if self.kind == "histogram" else len(self.values)


STATUSES = (200, 202, 204, 400, 401, 404, 405, 408, 409, 413, 415, 422, 429, 431, 499, 500, 501, 503, 504)
STATUS_VALUES = (*map(str, STATUSES), "other")
SOURCES = ("hit-memory", "hit-redis", "miss", "coalesced")
OUTCOMES = ("done", "failed", "cancelled", "queued", "released", "lost", "left", "other")

RESPONSES = (Family("responses", "counter", "Answers to all requests", "status", STATUS_VALUES),)

MODEL = (
    Family("model_seconds", "histogram", "Answered predictions and explanations, from head to answer"),
    Family(
        "model_refusals",
        "counter",
        "Those not answered; 504 is a timeout, also of what went on as a job",
        "status",
        STATUS_VALUES,
    ),
    Family("model_rows", "counter", "Rows answered, by where the answers are from", "source", SOURCES),
)

CACHE = (
    # in the order of cache.stats.Stats
    Family("cache_rows", "counter", "Rows looked up, by where they were found", "source", SOURCES),
    Family("cache_malformed", "counter", "Values in Redis that this version did not write"),
    Family("cache_write_dropped", "counter", "Values that did not get into Redis"),
    Family("cache_redis_errors", "counter", "Calls to Redis that failed"),
    Family("cache_evictions", "counter", "Values pushed out of memory before their time"),
    Family("cache_items", "gauge", "Values in the memory of all workers"),
    Family("cache_bytes", "gauge", "What they take"),
)

BATCHES = (
    Family("batches", "counter", "Batches run"),
    Family("batch_rows", "counter", "Rows in them"),
    Family("threads_stuck", "counter", "Inference threads that were left to a prediction nobody waits for"),
    Family("threads_stuck_now", "gauge", "Those that have not come back"),
    Family("queue_rows", "gauge", "Rows that wait for an inference thread"),
)

EXECUTORS = (Family("executor_replacements", "counter", "Executor processes killed or lost"),)

STREAMS = (Family("streams", "gauge", "Event streams that are open"),)

JOBS = (
    Family("job_attempts", "counter", "Attempts at jobs on this box, by how they ended", "outcome", OUTCOMES),
    Family("job_executor_replacements", "counter", "Processes of jobs killed or lost"),
)

PROCESSES = ("web", "runner", "scheduler", "messenger")
ENDED = (Family("processes_ended", "counter", "Processes that have ended", "process", PROCESSES),)


def breakers(names: tuple[str, ...]) -> tuple[Family, ...]:
    """The family of these circuit breakers."""
    return (Family("breakers_open", "gauge", "Workers in which the breaker is not closed", "breaker", names),)
