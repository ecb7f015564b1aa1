"""The two steps of a retraining that run foreign code, each in a forked process of its own that can be killed.

`fit` runs the model's train.py and writes what it gives aside. `judge` loads that as a reload would, in a process that
train.py has never been in, and holds it against the live version.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from registry.errors import CannotTrain, VersionRefused
from registry.model import LoadedModel
from registry.store.add import add_trained, next_version
from registry.store.loader import load_version
from registry.store.manifest import Manifest
from registry.store.options import LoadOptions
from registry.training.candidates import candidate_root, find_candidate, read_held_out, write_held_out
from registry.training.promotion import Measured, by_manifests, find_breaches, find_decline, find_losses, measure_both
from registry.training.script import OUTCOME, TIME, TrainingData, checked, live_manifest, read_train_function
from serving.process.executor import Function
from serving.process.kernel import thread_names

ReadOutcomes = Callable[[str], Awaitable[pd.DataFrame]]
"""A model's name -> what really happened: columns as of TrainingData.outcomes, or an empty table.

Asked in a forked process, in an event loop of its own.
"""

LONGEST_ERROR = 500


class Order(msgspec.Struct, frozen=True):
    """What to do: the payload of a call."""

    model: str
    job: str
    attempt: int


class Fitted(msgspec.Struct, frozen=True):
    """What came of `fit`: a candidate, unless there is an error."""

    error: str = ""
    traceback: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the candidate may become live: it may if there is no reason why not."""

    version: str
    live: str
    metrics: dict[str, float] = {}
    live_metrics: dict[str, float] = {}
    held_out_rows: int = 0
    """How many rows both were measured on; 0 if only what the manifests say could be compared."""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Steps:
    """Both steps over the model directory `root`. `tolerance`: see `find_decline`."""

    root: Path
    read_outcomes: ReadOutcomes
    tolerance: float
    options: LoadOptions

    def functions(self) -> dict[str, Function]:
        """For an executor that does not use a process twice."""
        return {"fit": self._fit, "judge": self._judge}

    def _fit(self, payload: bytes) -> bytes:
        _say_nothing()
        try:
            self._write_candidate(msgspec.json.decode(payload, type=Order))
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001 - train.py may raise anything, SystemExit included
            text = "".join(traceback.format_exception(error))
            return msgspec.json.encode(Fitted(_describe(error), text[-8 * LONGEST_ERROR :]))
        return msgspec.json.encode(Fitted())

    def _write_candidate(self, order: Order) -> None:
        directory = self.root / order.model
        live = live_manifest(directory)
        if live.training is None:
            raise CannotTrain(f"version {live.version} names no training function")
        train = read_train_function(self.root, directory, live.training)
        trained = checked(train(TrainingData(order.model, live, self._outcomes(live))))
        aside = candidate_root(self.root, order.job, order.attempt)
        model = add_trained(
            aside,
            order.model,
            trained,
            version=next_version(directory),
            training=live.training,
            trained_by=order.job,
            accepting=live.features,
            entities=live.entities,
        )
        write_held_out(aside, model, trained)

    def _outcomes(self, live: Manifest) -> pd.DataFrame:
        table = asyncio.run(_await(self.read_outcomes(live.name)))
        return table.reindex(columns=[*(feature.name for feature in live.features), OUTCOME, TIME])

    def _judge(self, payload: bytes) -> bytes:
        _say_nothing()
        order = msgspec.json.decode(payload, type=Order)
        directory = self.root / order.model
        candidate = find_candidate(self.root, order.job, order.model)
        if candidate is None:
            raise CannotTrain("the candidate is gone")
        live = live_manifest(directory)
        version = candidate.directory.name
        try:
            new = load_version(candidate.root, candidate.directory, self.options)
            _rehearse(new)
            reasons, measured = self._compare(directory, live, new, read_held_out(candidate))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the new version raises, it is not fit to serve
            reasons, measured = [_describe(error)], Measured({}, dict(live.metrics), 0)
        return msgspec.json.encode(
            Verdict(
                version=version,
                live=live.version,
                metrics=measured.new,
                live_metrics=measured.live,
                held_out_rows=measured.rows,
                reasons=tuple(reasons),
            )
        )

    def _compare(
        self, directory: Path, before: Manifest, new: LoadedModel, held_out: Any
    ) -> tuple[list[str], Measured]:
        if breaches := find_breaches(before, new.manifest):
            return breaches, by_manifests(before, new.manifest)
        try:
            live = load_version(self.root, directory / before.version, self.options)
        except VersionRefused:  # what serves is in memory, or a fallback; its manifest can still be read
            measured, losses = by_manifests(before, new.manifest), []
        else:
            measured, losses = measure_both(live, new, held_out), find_losses(live, new)
        return losses + find_decline(before.task, measured, self.tolerance), measured


async def _await(reading: Awaitable[pd.DataFrame]) -> pd.DataFrame:
    return await reading


def _rehearse(model: LoadedModel) -> None:
    """As at a reload: what breaks on the example, or starts a thread, must not get into the master."""
    rows = model.schema.rows([model.manifest.example])
    model.predict(rows)
    if model.explainer is not None and not model.explainer.jobs_only:
        model.explain(rows)
    names = thread_names(os.getpid())
    if len(names) != 1:
        raise CannotTrain(f"the new version starts threads: {', '.join(sorted(names))}")


def _say_nothing() -> None:
    """What is printed here would stand between the service's log lines."""
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _describe(error: BaseException) -> str:
    text = str(error) if isinstance(error, CannotTrain) else f"{type(error).__name__}: {error}"
    if isinstance(error, VersionRefused):
        text = f"{error.path.name} {error.reason}"  # not where the model directory is
    return text[:LONGEST_ERROR]
