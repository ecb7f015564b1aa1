"""A canary: a version that answers a share of the requests that name none, and goes back by itself if it does worse.

Context: whoever tries a version on real requests must neither lose one nor watch. Decision: what a canary cannot
answer, the live version answers; both versions' answers and failures are counted in shared memory, and any process that
finds the canary worse writes one number that all workers read before they ask it, then records it on the disk, where
the masters of all instances see it. Consequence: a canary is given up within one request of the one that decides it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from registry.errors import RegistryError
from registry.model import LoadedModel
from registry.registry import Registry
from registry.store import aliases
from registry.store.aliases import Canary
from serving.predict.batcher import Batcher
from serving.predict.operation import VERBS, Verb
from serving.shared.book import Book, Family, Sheet
from serving.shared.histogram import BOUNDS, BUCKETS, quantile
from serving.shared.numbers import shared_integers

log = structlog.get_logger(__name__)

SECONDS = Family(
    "canary_seconds", "histogram", "Computed answers of a canary and of the live version beside it, a few rows each"
)
ANSWERED, FAILED = OUTCOMES = ("answered", "failed")
REQUESTS = Family(
    "canary_requests", "counter", "Requests to a canary and to the live version beside it", "outcome", OUTCOMES
)

FEW_ROWS = 16
"""Only answers to so many rows are compared in time: larger ones take as long as their clients choose."""

MIN_FAILURES = 3
SIGMAS = 3.0
"""Failures beyond those that the live version would have had may be chance up to so many standard deviations."""

SLOWER = 1.5
SLOWER_SECONDS = 0.005
"""A canary is slower if it takes longer than so many times the live version's time, and so much more: a hand-over to a
thread of a busy machine takes milliseconds."""

QUANTILES: Mapping[float, int] = {0.5: 50, 0.95: 500}
"""The quantiles of the time that are compared, each once both versions have so many answers."""

JUDGE_SECONDS = 0.5
"""Between two comparisons by one process; a failure is judged at once."""

SHARE_OF_DEADLINE = 0.5
"""A canary may use so much of a request's time; the rest is for the live version."""

MIN_SECONDS = 2.0
"""A request with less time than this is the live version's: a canary that is late for it is no worse."""


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """The requests of one version and verb since the canary began."""

    answered: int
    failed: int
    times: Sequence[float]
    """Computed answers to a few rows, in the buckets of a histogram."""

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        middle, high = (quantile(self.times, share) for share in (0.5, 0.95))
        return {
            "answered": self.answered,
            "failed": self.failed,
            "p50_seconds": None if middle is None else round(middle, 6),
            "p95_seconds": None if high is None else round(high, 6),
        }


class VersionCounters:
    """Counts the requests of one version and verb."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._requests = sheet.start(REQUESTS)

    def answered(self, seconds: float, sources: Sequence[str]) -> None:
        cells = self._sheet.cells
        cells[self._requests] += 1.0
        if len(sources) <= FEW_ROWS and sources.count("miss") == len(sources):  # the live one's rows are in the cache
            cells[bisect_left(BOUNDS, seconds)] += 1.0  # the histogram is the first family of the sheet
            cells[BUCKETS] += seconds

    def failed(self) -> None:
        self._sheet.cells[self._requests + 1] += 1.0

    def read(self) -> VersionFigures:
        (_, times), (_, (answered, failed)) = self._sheet.read().totals()
        return VersionFigures(int(answered), int(failed), times[:BUCKETS])


def find_worse(verb: Verb, canary: VersionFigures, live: VersionFigures) -> str | None:
    """Why a canary should go back; None if it is no worse, or nothing can be said yet."""
    asked, asked_live = canary.answered + canary.failed, live.answered + live.failed
    expected = asked * live.failed / asked_live if asked_live else 0.0
    if canary.failed >= max(MIN_FAILURES, expected + SIGMAS * math.sqrt(expected)):
        others = f"the live version fails {live.failed} of {asked_live}"
        return f"it fails {canary.failed} of {asked} requests to {verb}, {others}"
    for share, enough in QUANTILES.items():
        if min(sum(canary.times), sum(live.times)) < enough:
            continue
        mine, lives = quantile(canary.times, share) or 0.0, quantile(live.times, share) or 0.0
        if mine > SLOWER * lives + SLOWER_SECONDS:
            times = f"{mine * 1e3:.3g} ms, those of the live version {lives * 1e3:.3g} ms"
            return f"{share:.0%} of its answers to {verb} take up to {times}"
    return None


@dataclass(frozen=True, eq=False)
class RunningCanary:
    """The canary of one model. Built before the fork."""

    state: Canary
    live: LoadedModel
    candidate: LoadedModel
    directory: Path
    """That of the model."""
    counters: Mapping[tuple[LoadedModel, Verb], VersionCounters]
    _given_up: memoryview[int] = field(default_factory=lambda: shared_integers(1))
    _judged: list[float] = field(default_factory=lambda: [0.0])
    _recording: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def is_on(self) -> bool:
        """Whether it answers requests; for all processes."""
        return not self._given_up[0]

    def takes(self, who: str) -> bool:
        """Whether it answers a request of `who`: in every process and instance alike, and still at a larger share.

        The hash is no secret: whoever may choose who they are, by a request's id, chooses a version that they could
        name as well.
        """
        if self._given_up[0]:
            return False
        text = f"{self.candidate.name}/{self.candidate.version}:{who}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        return number < self.state.percent / 100 * 2**64

    def answered(self, model: LoadedModel, verb: Verb, seconds: float, sources: Sequence[str]) -> None:
        """Count an answer of one of the two versions."""
        self.counters[model, verb].answered(seconds, sources)
        if time.monotonic() >= self._judged[0] + JUDGE_SECONDS:
            self._judge()

    def failed(self, model: LoadedModel, verb: Verb) -> None:
        """Count a request that one of the two versions could not answer."""
        self.counters[model, verb].failed()
        if model is self.candidate:
            self._judge()

    @property
    def explains(self) -> bool:
        """Whether both versions explain within a request."""
        explainers = (self.live.explainer, self.candidate.explainer)
        return all(explainer is not None and not explainer.jobs_only for explainer in explainers)

    def note_failure(self, verb: Verb, error: Exception) -> None:
        """Count and log that the candidate could not answer a request; the live version is asked."""
        log.warning(
            "Canary failed", model=self.candidate.name, version=self.candidate.version, error=type(error).__name__
        )
        self.failed(self.candidate, verb)

    def figures(self, model: LoadedModel) -> dict[str, Any]:
        """What is counted of one of the versions, by verb, as JSON."""
        return {verb: self.counters[model, verb].read().shown() for verb in VERBS}

    def _judge(self) -> None:
        self._judged[0] = time.monotonic()
        if self._given_up[0]:
            return
        for verb in VERBS:
            counted, beside = (self.counters[model, verb].read() for model in (self.candidate, self.live))
            reason = find_worse(verb, counted, beside)
            if reason is not None:
                self._given_up[0] = 1
                recording = asyncio.get_running_loop().create_task(self._record(reason))
                self._recording.add(recording)
                recording.add_done_callback(self._recording.discard)
                return

    async def _record(self, reason: str) -> None:
        """Record on the disk that it has gone back, for the next start; the first process that does so logs it."""
        name, version = self.candidate.name, self.candidate.version
        try:
            is_first = await asyncio.to_thread(aliases.give_up_canary, self.directory, self.state, reason)
        except (OSError, RegistryError) as error:
            log.error("Canary not recorded as ended", model=name, version=version, error=str(error))
            is_first = True
        if is_first:
            log.error("Canary has gone back", model=name, version=version, reason=f"{name}/{version}: {reason}")


class Canaries:
    """The canaries of all models, found by either of their two versions."""

    def __init__(self, registry: Registry, book: Book, root: Path, batcher: Batcher) -> None:
        """Of the models below `root`, all that have one.

        `batcher` runs what the candidates answer: one that hangs keeps no thread from the live versions.
        """
        self.batcher = batcher
        self._running: dict[LoadedModel, RunningCanary] = {}
        for live in registry.live():
            state = registry.aliases(live.name).canary
            if state is not None and not state.ended:
                self._add(state, live, registry, book, root)

    def _add(self, state: Canary, live: LoadedModel, registry: Registry, book: Book, root: Path) -> None:
        candidate = registry.versions(live.name)[state.version]
        if candidate.fallback:
            log.warning("Canary not begun", model=live.name, version=state.version, reason="it could not be loaded")
            return
        counters = {
            (model, verb): VersionCounters(
                book.sheet(
                    (SECONDS, REQUESTS), since=state.since, model=model.name, version=model.version, operation=verb
                )
            )
            for model in (live, candidate)
            for verb in VERBS
        }
        running = RunningCanary(state, live, candidate, root / live.name, counters)
        self._running |= {live: running, candidate: running}

    def __bool__(self) -> bool:
        return bool(self._running)

    def of(self, model: LoadedModel) -> RunningCanary | None:
        """The canary of which a version is one of the two."""
        return self._running.get(model)

    def instead_of(self, model: LoadedModel, who: str) -> RunningCanary | None:
        """The canary that answers a request of `who` that names no version; `model` is the live one."""
        running = self._running.get(model)
        return running if running is not None and running.live is model and running.takes(who) else None

    def batchers(self) -> Mapping[LoadedModel, Batcher]:
        """The batcher of each version that is tried."""
        return dict.fromkeys((running.candidate for running in self._running.values()), self.batcher)
