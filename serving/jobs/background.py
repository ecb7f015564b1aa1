"""What takes too long for a request goes on as a job: the same rows, the same answer, fetched later.

Context: a request that reaches its deadline has cost its worker a whole deadline, and its client has nothing. Decision:
with USE_BACKGROUND_INFERENCE its rows become a job, and the client is told where. Consequence: the job begins anew, in
a runner, with the longer limits of jobs; equal requests share one job for as long as it is kept, done or not, and where
no more jobs are taken the request is answered as it would have been without.
"""

from __future__ import annotations

import dataclasses
import hashlib

import structlog

from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.rows.features import Rows
from serving.errors import DeadlineExceeded, QueueFull, StoreUnavailable
from serving.jobs.job import Job
from serving.jobs.requests import JobReader
from serving.jobs.store import JobStore
from serving.predict.operation import Verb

log = structlog.get_logger(__name__)


class Background:
    """Turns the rows of requests into jobs."""

    def __init__(self, store: JobStore, reader: JobReader) -> None:
        self._store = store
        self._reader = reader

    async def submit(self, model: LoadedModel, verb: Verb, rows: Rows, selection: Selection) -> Job:
        """The job that will answer these rows, or has. Raises QueueFull, StoreUnavailable, InvalidSelection."""
        request = await self._reader.take(model, verb, rows, selection)
        # with a space, so that no client can have taken it
        key = hashlib.sha256(f"background {request.unique_key}".encode()).hexdigest()
        job = (await self._store.submit(dataclasses.replace(request, idempotency_key=key))).job
        if job.state in ("failed", "cancelled"):
            # that was then; an equal job that waits or runs is still found
            job = (await self._store.submit(request)).job
        log.info(f"{verb} of {model.name} goes on as a job", version=model.version, rows=len(rows), job=job.id)
        return job

    async def take_over(
        self, late: DeadlineExceeded, model: LoadedModel, verb: Verb, rows: Rows, selection: Selection
    ) -> Job:
        """The same for a request whose deadline has passed. Raises `late` when no job can be made of it."""
        try:
            return await self.submit(model, verb, rows, selection)
        except (QueueFull, StoreUnavailable) as error:
            log.warning("No job for a late request", reason=str(error))
            raise late from None
