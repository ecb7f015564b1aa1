"""Whether a new version may take the place of the live one: whatever worked must work, and no worse than before."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from registry.estimator import Task
from registry.model import LoadedModel
from registry.rows.features import Feature
from registry.store.manifest import Manifest
from registry.training.candidates import HeldOut
from registry.training.metrics import measure

SCORES = frozenset({"accuracy", "r2", "roc_auc"})
"""Metrics that are better when they are higher; all others are errors."""

UNMEASURED = ("clustering", "outlier-detection")
"""Tasks without a truth to be held against."""


@dataclass(frozen=True)
class Measured:
    """The metrics of both versions, and on how many held-out rows; 0 when those of the manifests are all there is."""

    new: dict[str, float]
    live: dict[str, float]
    rows: int


def find_breaches(live: Manifest, new: Manifest) -> list[str]:
    """Why requests that the live version answers would not be answered, or not in the same terms, by the new one."""
    if new.task != live.task:
        return [f"it does {new.task}, the live version {live.task}"]
    if new.classes != live.classes:
        return ["its classes are not those of the live version"]
    names = [feature.name for feature in new.features]
    if names != [feature.name for feature in live.features]:
        return ["its features are not those of the live version, in their order"]
    pairs = zip(live.features, new.features, strict=True)
    return [f"{before.name} {reason}" for before, after in pairs if (reason := _breach(before, after))]


def _breach(before: Feature, after: Feature) -> str:
    if after.kind != before.kind:
        return f"is of kind {after.kind}, not {before.kind}"
    if before.nullable and not after.nullable:
        return "may not be missing any more"
    if lost := set(before.categories) - set(after.categories):
        return f"lacks {len(lost)} of its categories"
    if after.minimum is not None and (before.minimum is None or after.minimum > before.minimum):
        return "has a higher minimum"
    if after.maximum is not None and (before.maximum is None or after.maximum < before.maximum):
        return "has a lower maximum"
    return ""


def find_losses(live: LoadedModel, new: LoadedModel) -> list[str]:
    """What the live version can do and the new one cannot."""
    lost = []
    if live.compiled and not new.compiled:
        lost.append("it cannot be compiled, so it would answer many times as slowly")
    if live.explainer is not None and new.explainer is None:
        lost.append("it has no explainer")
    if _explains_requests(live) and new.explainer is not None and new.explainer.jobs_only:
        lost.append("its explainer is too slow for requests")
    return lost


def _explains_requests(model: LoadedModel) -> bool:
    return model.explainer is not None and not model.explainer.jobs_only


def measure_both(live: LoadedModel, new: LoadedModel, held_out: HeldOut) -> Measured:
    """Both on the same rows, those that the live version takes; if it takes less than half, what manifests say."""
    if new.manifest.task in UNMEASURED or not len(held_out.truth):
        return by_manifests(live.manifest, new.manifest)
    # category codes are a version's own: rows go by the user's terms
    rows, taken = live.schema.fitting_rows([new.schema.instance(row) for row in held_out.rows])
    if 2 * len(taken) < len(held_out.rows):
        return by_manifests(live.manifest, new.manifest)
    truth = pd.Series(held_out.truth[taken], name="the outcome")
    classes = range(len(new.manifest.classes))
    task = new.manifest.task
    return Measured(
        new=measure(task, truth, new.compute(held_out.rows[taken]), classes),
        live=measure(task, truth, live.compute(rows), classes),
        rows=len(taken),
    )


def by_manifests(live: Manifest, new: Manifest) -> Measured:
    """What was measured when each of them was added."""
    return Measured(dict(new.metrics), dict(live.metrics), 0)


def find_decline(task: Task, measured: Measured, tolerance: float) -> list[str]:
    """Why the new version is too much worse: a score by more than `tolerance`, an error by more than that share."""
    if task in UNMEASURED:
        return []
    common = [name for name in measured.live if name in measured.new]
    if not common:
        return ["there is no metric to compare it with the live version by"]
    return [
        f"{name} is {measured.new[name]:.4g}, that of the live version {measured.live[name]:.4g}"
        for name in common
        if not _is_as_good(name, measured.new[name], measured.live[name], tolerance)
    ]


def _is_as_good(name: str, after: float, before: float, tolerance: float) -> bool:
    """Written so that NaN is not."""
    return after >= before - tolerance if name in SCORES else after <= before * (1 + tolerance)
