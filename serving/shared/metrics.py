"""The metrics: which there are, and the counters that the hot path and other parts write into the book."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from serving.shared.book import Book, Family, Sheet
from serving.shared.histogram import BOUNDS, BUCKETS

STATUSES = (
    *(200, 201, 202, 204, 304, 400, 401, 403, 404, 405, 408, 409, 413, 415, 417, 422, 429, 431, 499),
    *(500, 501, 503, 504, 507),
)
STATUS_VALUES = (*map(str, STATUSES), "other")
STATUS_INDEX = {status: index for index, status in enumerate(STATUSES)}
OTHER_STATUS = len(STATUSES)
SOURCES = ("hit-memory", "hit-redis", "miss", "coalesced")
OUTCOMES = ("done", "failed", "cancelled", "queued", "released", "lost", "left", "other")

RESPONSES = (Family("responses", "counter", "Responses to all requests", "status", STATUS_VALUES),)

SECONDS = Family("model_seconds", "histogram", "Answered predictions and explanations, from request head to response")
REFUSALS = Family(
    "model_refusals",
    "counter",
    "Predictions and explanations not answered; 504 is a timeout, also of a request that went on as a job",
    "status",
    STATUS_VALUES,
)
ROWS = Family("model_rows", "counter", "Rows answered, by source of the answer", "source", SOURCES)
MODEL = (SECONDS, REFUSALS, ROWS)

ROUTE = (Family("route_seconds", "histogram", "Answers of all other routes but streams, from request head to answer"),)
ROUTES = {"jobs": "/v1/jobs", "entities": "/v1/entities", "models": "/v1/models", "health": "/health", "admin": "/api/"}
"""The kinds of routes whose answers are timed, by the beginning of their paths; any other path is `other`."""

CACHE = (
    # in the order of the fields of cache.memory.Stats
    Family("cache_rows", "counter", "Rows looked up, by where they were found", "source", SOURCES),
    Family("cache_malformed", "counter", "Values in Redis that this version did not write"),
    Family("cache_write_dropped", "counter", "Values that were not written to Redis"),
    Family("cache_redis_errors", "counter", "Calls to Redis that failed"),
    Family("cache_evictions", "counter", "Values evicted from memory before they expired"),
    Family("cache_items", "gauge", "Values in the memory of all workers"),
    Family("cache_bytes", "gauge", "Bytes that these values take"),
)

BATCHES = (
    Family("batches", "counter", "Batches run"),
    Family("batch_rows", "counter", "Rows in batches run"),
    Family("threads_stuck", "counter", "Inference threads abandoned because their prediction did not return in time"),
    Family("threads_stuck_now", "gauge", "Abandoned inference threads that have not returned"),
    Family("queue_rows", "gauge", "Rows waiting for an inference thread"),
)

EXECUTORS = (Family("executor_replacements", "counter", "Executor processes killed or lost"),)

STREAMS = (Family("streams", "gauge", "Open event streams"),)

OUTCOMES_QUEUED = (Family("outcomes_queued", "gauge", "Outcomes accepted but not yet stored"),)

ATTEMPTS = Family("job_attempts", "counter", "Attempts at jobs on this box, by how they ended", "outcome", OUTCOMES)
REPLACEMENTS = Family("job_executor_replacements", "counter", "Executor processes of jobs killed or lost")
JOBS = (ATTEMPTS, REPLACEMENTS)

LOGGED = ("queued", "dropped", "stored", "refused")
PREDICTION_LOG = (
    Family(
        "logged_predictions",
        "counter",
        "Rows for the log of predictions: queued, dropped because too many wait, stored, refused by the store",
        "outcome",
        LOGGED,
    ),
)

LOG_LINES = (Family("log_lines_dropped", "counter", "Lines of the log that nobody read in time"),)

BREAKERS = (Family("breakers_open", "gauge", "Workers in which the breaker is not closed", "breaker", ("redis",)),)

MAX_KEYS = 200
"""Names of keys that are counted apart; so many series a scraper always bears."""

Read: TypeAlias = Callable[[], Iterable[float]]


class ModelCounters:
    """Counts the requests of one model and verb; called for every request, so it takes half a microsecond."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._refusals = sheet.start(REFUSALS)
        self._rows = {source: index for index, source in enumerate(SOURCES, sheet.start(ROWS))}

    def answered(self, seconds: float, sources: Sequence[str]) -> None:
        """Count a request answered after `seconds`, with the source of each of its rows."""
        cells = self._sheet.cells
        cells[bisect_left(BOUNDS, seconds)] += 1.0  # the histogram is the first family of the sheet
        cells[BUCKETS] += seconds
        if len(sources) == 1:
            cells[self._rows[sources[0]]] += 1.0
        else:
            for source, index in self._rows.items():
                cells[index] += sources.count(source)

    def refused(self, status: int) -> None:
        self._sheet.cells[self._refusals + STATUS_INDEX.get(status, OTHER_STATUS)] += 1.0


class Metrics:
    """The metrics of one app. Built before the fork; `book` is the service's, and outlives the app."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self._responses = book.sheet(RESPONSES)
        self._jobs = book.sheet(JOBS)
        self._routes = {kind: book.sheet(ROUTE, route=kind) for kind in (*ROUTES, "other")}
        self._followed: list[tuple[Sheet, Read]] = []
        self.name_keys(())

    def name_keys(self, names: Iterable[str]) -> None:
        """Count the requests of these keys apart, and those of all others together."""
        counted = (*sorted(set(names))[:MAX_KEYS], "other")
        self._key_index = {name: index for index, name in enumerate(counted)}
        self._keys = self.book.sheet((Family("key_requests", "counter", "Requests sent with a key", "key", counted),))

    def count_response(self, status: int, key: str = "") -> None:
        """Count a response of this process to any request, and the name of its key if it had one."""
        self._responses.cells[STATUS_INDEX.get(status, OTHER_STATUS)] += 1.0
        if key:
            self._keys.cells[self._key_index.get(key, len(self._key_index) - 1)] += 1.0

    def count_route(self, path: str, seconds: float) -> None:
        """Count an answer of another route than those of predictions and explanations."""
        kind = next((kind for kind, start in ROUTES.items() if path.startswith(start)), "other")
        cells = self._routes[kind].cells
        cells[bisect_left(BOUNDS, seconds)] += 1.0
        cells[BUCKETS] += seconds

    def count_attempt(self, outcome: str, replacements: int) -> None:
        """Count an attempt at a job; `replacements` is the runner's total of replaced executor processes."""
        self._jobs.cells[OUTCOMES.index(outcome if outcome in OUTCOMES else "other")] += 1.0
        self._jobs.cells[self._jobs.start(REPLACEMENTS)] = float(replacements)

    def model(self, name: str, verb: str) -> ModelCounters:
        """The counters of a model of the registry."""
        return ModelCounters(self.book.sheet(MODEL, model=name, operation=verb))

    def follow(self, families: Sequence[Family], read: Read) -> None:
        """Have `publish` copy what `read` returns: a number for each value of each family, in their order.

        Counters are totals of this process since it started.
        """
        self._followed.append((self.book.sheet(families), read))

    def publish(self) -> None:
        """Copy the current numbers of all parts that are followed; takes some microseconds."""
        for sheet, read in self._followed:
            for index, number in enumerate(read()):
                sheet.cells[index] = float(number)
