"""The two steps of a retraining that run foreign code, each in a forked process of its own that can be killed.

`fit` runs the model's train.py and writes the new version aside, as a candidate. `judge` tries the candidate as a
reload would, in a process in which train.py has never run, and compares it with the live version.
"""

from __future__ import annotations

import asyncio
import dataclasses
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from registry.errors import CannotTrain, VersionRefused
from registry.model import LoadedModel
from registry.outputs import Labels
from registry.store.add import add_trained, next_version, pickled
from registry.store.loader import load_version
from registry.store.manifest import Manifest
from registry.store.options import LoadOptions
from registry.threads import keep_to_one_thread
from registry.training.candidates import candidate_root, find_candidate, read_held_out, root_of, write_held_out
from registry.training.promotion import Measured, by_manifests, find_breaches, find_decline, find_losses, measure_both
from registry.training.script import OUTCOME, TIME, TrainingData, checked, execute_script, live_manifest
from serving.entities.store import EntityStore
from serving.jobs.job import Job
from serving.monitoring.predictions.store import PredictionStore
from serving.monitoring.replay import agree_with_log
from serving.process.child import mute
from serving.process.executor import Function
from serving.process.trial import try_version
from serving.training.job import TrainingResult

MAX_ERROR_CHARACTERS = 500
MAX_TRACEBACK_CHARACTERS = 4000


class Fitted(msgspec.Struct, frozen=True):
    """The result of `fit`: there is a candidate now, unless there is an error."""

    error: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Steps:
    """Both steps over the model directory `root`.

    A training is given the last `max_outcomes` that `source` has of its model. `tolerance`: see `find_decline`. A
    candidate has to agree with `agreement` of the predictions in the `log`, as a share; 0 asks for none. Its trial may
    take `seconds`; `options` are how the service loads versions.
    """

    root: Path
    source: EntityStore
    max_outcomes: int
    tolerance: float
    agreement: float
    log: PredictionStore
    options: LoadOptions
    seconds: float

    def functions(self) -> dict[str, Function]:
        """The functions for an executor that uses each process once; a payload is the Job as JSON."""
        return {"fit": self._fit, "judge": self._judge}

    def _fit(self, payload: bytes) -> bytes:
        mute()
        try:
            self._write_candidate(msgspec.json.decode(payload, type=Job))
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001 - train.py may raise anything, SystemExit included
            text = "".join(traceback.format_exception(error))
            return msgspec.json.encode(Fitted(_describe(error), text[-MAX_TRACEBACK_CHARACTERS:]))
        return msgspec.json.encode(Fitted())

    def _write_candidate(self, job: Job) -> None:
        directory = self.root / job.model
        live = live_manifest(directory)
        if live.training is None:
            raise CannotTrain(f"version {live.version} names no training function")
        script = execute_script(self.root, directory, live.training, live)
        outcomes = asyncio.run(self.read_outcomes(live))
        trained = checked(script.train(TrainingData(job.model, live, outcomes)))
        keep_to_one_thread(trained.estimator)
        metrics = trained.metrics or live.custom_metrics
        artefact = pickled(trained.estimator, script.code_for, names=metrics)
        trained = dataclasses.replace(
            trained,
            artefact=artefact,
            metrics=metrics,
            groups=trained.groups or live.groups,
            feature_labels=trained.feature_labels or live.feature_labels,
        )
        aside = candidate_root(self.root, job.id, job.attempts)
        model = add_trained(
            aside,
            job.model,
            trained,
            version=next_version(directory),
            training=live.training,
            trained_by=job.id,
            accepting=live.features,
            entities=live.kind or live.entities,
        )
        write_held_out(aside, model, trained)

    async def read_outcomes(self, live: Manifest) -> pd.DataFrame:
        """The last outcomes of a model, oldest first, as the table that its train.py is given. Raises StoreUnavailable.

        It may be called in a forked process, in an event loop of its own, and leaves nothing open there.
        """
        try:
            outcomes = await self.source.outcomes(live.name, self.max_outcomes)
        finally:
            await self.source.close()
        outcomes = sorted(outcomes, key=lambda outcome: outcome.time)
        labels = Labels(live.classes)
        table = pd.DataFrame(
            [{**one.instance, OUTCOME: _as_live(one.outcome, labels), TIME: one.time} for one in outcomes]
        )
        return table.reindex(columns=[*(feature.name for feature in live.features), OUTCOME, TIME])

    def _judge(self, payload: bytes) -> bytes:
        mute()
        job = msgspec.json.decode(payload, type=Job)
        candidate = find_candidate(self.root, job.id, job.model)
        if candidate is None:
            raise CannotTrain("the candidate is gone")
        live = live_manifest(self.root / job.model)
        try:
            reasons, measured = self.compare(candidate, live)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the new version raises, it is not fit to serve
            reasons, measured = [_describe(error)], _by_live_alone(live)
        return msgspec.json.encode(
            TrainingResult(
                model=job.model,
                version=candidate.name,
                promoted=not reasons,
                reasons=tuple(reasons),
                metrics=measured.new,
                live=live.version,
                live_metrics=measured.live,
                held_out_rows=measured.rows,
            )
        )

    def compare(self, candidate: Path, before: Manifest) -> tuple[list[str], Measured]:
        """The reasons against a candidate, and the metrics of both versions."""
        # metrics of the user's own compare labels of the type that the version was fitted on
        options = dataclasses.replace(self.options, labels_as_text=False)
        load = partial(load_version, root_of(candidate), options=options)
        if reason := try_version(load, candidate, seconds=self.seconds):
            return [reason], _by_live_alone(before)
        new = load(candidate)
        if breaches := find_breaches(before, new.manifest):
            return breaches, by_manifests(before, new.manifest)
        try:
            live = load_version(self.root, self.root / before.name / before.version, options)
        except VersionRefused:  # what serves is in memory, or a fallback; its manifest can still be read
            measured, losses = by_manifests(before, new.manifest), []
        else:
            measured, losses = measure_both(live, new, read_held_out(candidate)), find_losses(live, new)
        reasons = losses + find_decline(before.task, measured, self.tolerance, new.manifest.custom_metrics)
        return reasons or self._find_disagreement(new, before.version), measured

    def _find_disagreement(self, new: LoadedModel, live: str) -> list[str]:
        """The reason against a candidate that answers too many logged requests differently; none if none is logged."""
        if not self.agreement:
            return []
        found = asyncio.run(agree_with_log(new, live, self.log))
        if found.share is None or found.share >= self.agreement:
            return []
        least = f"less than {self.agreement:.2%} (TRAIN_MIN_AGREEMENT)"
        return [f"agrees with {found.share:.2%} of the last {found.rows} logged predictions of version {live}, {least}"]


def _as_live(outcome: Any, labels: Labels) -> Any:
    """A label as the live version has it: outcomes stored before labels kept their types are strings."""
    place = labels.find(outcome)
    return outcome if place is None else labels.classes[place]


def _by_live_alone(live: Manifest) -> Measured:
    """The verdict if the new version cannot be measured."""
    return Measured({}, dict(live.metrics), 0)


def _describe(error: BaseException) -> str:
    """An error for the client, without the place of the model directory."""
    text = str(error) if isinstance(error, CannotTrain) else f"{type(error).__name__}: {error}"
    if isinstance(error, VersionRefused):
        text = f"{error.path.name} {error.reason}"
    return text[:MAX_ERROR_CHARACTERS]
