"""The way of one prediction behind HTTP: cache, single flight, batch, model, all within a deadline."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog

from cache.flight import Answer
from cache.keys import key_prefix, row_keys
from cache.tiered import TieredCache
from registry.features import Rows
from registry.model import LoadedModel
from serving.batching import Batcher
from serving.errors import DeadlineExceeded

log = structlog.get_logger(__name__)

ANSWER_FORMAT = "1"
"""Part of every key: to be changed with the form of an answer, because caches outlive a deploy."""


@dataclass(slots=True)
class Timing:
    """Where the time of one request went, in seconds."""

    queue: float = 0.0
    model: float = 0.0

    def header(self, started: float, decoded: float, ended: float) -> bytes:
        """Server-Timing, in milliseconds; what is left of the whole was spent on the cache."""
        cache = ended - decoded - self.queue - self.model
        spans = (decoded - started, cache, self.queue, self.model, ended - started)
        return b"decode;dur=%.3f, cache;dur=%.3f, queue;dur=%.3f, model;dur=%.3f, total;dur=%.3f" % tuple(
            span * 1e3 for span in spans
        )


class Predictor:
    """Answers rows with ready JSON. Built before the fork, started after it."""

    def __init__(self, *, batcher: Batcher, cache: TieredCache, timeout: float) -> None:
        self._batcher = batcher
        self._cache = cache
        self._timeout = timeout
        self._prefixes: dict[LoadedModel, bytes] = {}

    def prepare(self, model: LoadedModel) -> None:
        """Compute what is the same for every request of a model."""
        kind = "fallback" if model.fallback else "model"
        self._prefixes[model] = key_prefix("predict", ANSWER_FORMAT, kind, model.content_hash)

    async def predict(self, model: LoadedModel, rows: Rows, timing: Timing, timeout: float | None) -> list[Answer]:
        """One prediction a row, as JSON, and where it is from.

        `timeout`, in seconds, may shorten the deadline, never lengthen it. Raises DeadlineExceeded, Overloaded,
        ModelFailed.
        """

        async def compute(positions: list[int]) -> list[bytes]:
            asked = time.perf_counter()
            ran = await self._batcher.run(model, rows if len(positions) == len(rows) else rows[positions])
            timing.model = ran.seconds
            timing.queue = time.perf_counter() - asked - ran.seconds
            return ran.answers

        keys = row_keys(
            self._prefixes[model],
            rows,
            merge_zeros=model.ignores_sign_of_zero,
            merge_nans=model.schema.takes_missing,
        )
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        if self._cache.is_local and self._batcher.is_quick(model, len(rows)):
            # answered within this turn of the loop or the next: a timer would cost more than it could save
            return await self._cache.get_or_compute(keys, compute)
        try:
            async with asyncio.timeout(seconds):
                return await self._cache.get_or_compute(keys, compute)
        except TimeoutError:
            log.warning(f"Prediction timeout after {seconds:g}s", model=model.name, version=model.version)
            raise DeadlineExceeded(f"the prediction took longer than {seconds:g} s") from None
