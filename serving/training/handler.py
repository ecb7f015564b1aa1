"""The job of a retraining: fit a candidate, judge it, make it live.

The job may be killed at any moment and is then taken up by another runner. The disk shows by
the job's id what is done: a complete candidate is judged and not made again, a version is added only once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from registry.errors import CannotAdd, ModelNotFound, RegistryError, Superseded, VersionRefused
from registry.store import aliases
from registry.store.directory import find_model
from registry.store.manifest import Manifest, read_manifest
from registry.training.candidates import find_candidate, find_trained, remove_candidates, take_in
from serving.errors import CallFailed, DeadlineExceeded, MemoryExceeded
from serving.events.log import EventLog, tell
from serving.jobs.attempt import AttemptFailed, JobFailed, Report
from serving.jobs.job import Job
from serving.process.executor import Executor
from serving.training.job import Ending, TrainingResult, write_last
from serving.training.steps import Fitted

log = structlog.get_logger(__name__)

FITTED, JUDGED = 0.8, 0.95
"""The job's progress after each step."""


@dataclass(frozen=True)
class TrainHandler:
    """Trains the models below `root`. `executor` runs the functions of `Steps`.

    Masters see by themselves what becomes live. A training may take `timeout` seconds, its judgement `judging`.
    """

    root: Path
    executor: Executor
    events: EventLog
    timeout: float
    judging: float

    async def __call__(self, job: Job, _chunk: int, _data: bytes, report: Report) -> bytes:
        """The TrainingResult as JSON. Raises JobFailed, AttemptFailed, ExecutorGone."""
        try:
            directory = find_model(self.root, job.model)
        except RegistryError as error:
            raise JobFailed(_reason(error)) from error
        try:
            result = await self._resume(job, directory) or await self._train(job, directory, report)
        except (JobFailed, RegistryError) as error:
            write_last(directory, "failed", "")
            raise JobFailed(_reason(error)) from error
        ending: Ending = "promoted" if result.promoted else "refused"
        shown = ("version", "metrics", "live", "live_metrics", *(("reasons",) if result.reasons else ()))
        await self._tell(job, ending, **{name: getattr(result, name) for name in shown})
        write_last(directory, ending, result.version)
        log.info(
            "Model trained",
            job=job.id,
            model=job.model,
            version=result.version,
            promoted=result.promoted,
            reasons=result.reasons,
        )
        return msgspec.json.encode(result)

    async def _resume(self, job: Job, directory: Path) -> TrainingResult | None:
        """Finish a job whose earlier attempt has added its version; None if there is no such version."""
        version = find_trained(directory, job.id)
        if version is None:
            return None
        remove_candidates(self.root)
        held = aliases.current(directory)
        if version.version not in (held.live, held.previous):  # neither made live nor rolled back
            if held.live != job.version:
                return _resumed(job, version, None, "another version has become live meanwhile")
            held = aliases.promote(directory, version.version)
        before = held.previous if held.live == version.version else held.live
        return _resumed(job, version, None if before is None else read_manifest(directory / before))

    async def _train(self, job: Job, directory: Path, report: Report) -> TrainingResult:
        candidate = find_candidate(self.root, job.id, job.model)
        remove_candidates(self.root, but=candidate)
        if candidate is None:
            await self._tell(job, "training")
            candidate = await self._fit(job)
        report(FITTED)
        await self._tell(job, "verifying", version=candidate.name)
        answer = await self._call("judge", "the verification", job, self.judging)
        result = msgspec.json.decode(answer, type=TrainingResult)
        report(JUDGED)
        if result.promoted:
            self._take_in(candidate, directory, result.live)
        remove_candidates(self.root)
        return result

    async def _fit(self, job: Job) -> Path:
        answer = await self._call("fit", "the training", job, self.timeout)
        fitted = msgspec.json.decode(answer, type=Fitted)
        if fitted.error:
            log.warning("Training failed", job=job.id, model=job.model, traceback=fitted.traceback)
            raise JobFailed(f"the training failed: {fitted.error}")
        candidate = find_candidate(self.root, job.id, job.model)
        if candidate is None:
            raise AttemptFailed("the new version is gone")
        return candidate

    async def _call(self, step: str, what: str, job: Job, timeout: float) -> bytes:
        try:
            return await self.executor.run(step, msgspec.json.encode(job), timeout=timeout)
        except CallFailed as error:
            raise AttemptFailed(f"{step}: {error}") from error
        except DeadlineExceeded:
            raise JobFailed(f"{what} took longer than {timeout:g} s") from None
        except MemoryExceeded:
            raise JobFailed(f"{what} needs more memory than it may") from None

    def _take_in(self, candidate: Path, directory: Path, live: str) -> None:
        try:
            take_in(candidate, directory, instead_of=live)
        except Superseded as error:
            raise AttemptFailed(str(error)) from error  # the candidate is compared with what is live then
        except CannotAdd as error:
            remove_candidates(self.root)
            raise AttemptFailed(str(error)) from error

    async def _tell(self, job: Job, kind: str, **data: Any) -> None:
        await tell(self.events, job.id, kind, msgspec.json.encode(data))


def _reason(error: Exception) -> str:
    """The error for the client, without the place of the model directory."""
    if isinstance(error, ModelNotFound):
        return "the model is gone"
    return f"{error.path.name} {error.reason}" if isinstance(error, VersionRefused) else str(error)


def _resumed(job: Job, version: Manifest, before: Manifest | None, *reasons: str) -> TrainingResult:
    """The result for a version that was judged in an earlier attempt."""
    return TrainingResult(
        model=job.model,
        version=version.version,
        promoted=not reasons,
        reasons=reasons,
        metrics=version.metrics,
        live=job.version if before is None else before.version,
        live_metrics={} if before is None else before.metrics,
    )
