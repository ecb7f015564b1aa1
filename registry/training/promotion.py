"""Decides whether a new version may replace the live one: every request that worked must work, and no worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.estimator import Task
from registry.model import LoadedModel
from registry.outputs import Label
from registry.rows.features import Feature, Kind, Rows
from registry.rows.times import step_of
from registry.store.manifest import Manifest
from registry.training.candidates import HeldOut
from registry.training.metrics import MEASURED, Better, custom_functions, measure, measure_custom, short_name

SCORES = frozenset({"accuracy", "r2", "roc_auc"})
"""Metrics that should be high; all others are errors, which should be low."""


WIDER_KINDS: Mapping[Kind, tuple[Kind, ...]] = {
    "integer": ("number",),
    "category": ("integer", "number", "text", "datetime"),
}
"""Kinds that may take all that another one takes; the values of a category are tried."""


@dataclass(frozen=True)
class Measured:
    """The metrics of both versions, and the number of held-out rows they come from; 0 for those of the manifests."""

    new: dict[str, float]
    live: dict[str, float]
    rows: int


def find_breaches(live: Manifest, new: Manifest) -> list[str]:
    """Reasons why the new version would refuse requests that the live one answers, or answer in other terms."""
    if new.task != live.task:
        return [f"its task is {new.task}, that of the live version is {live.task}"]
    if not _alike(live.classes, new.classes):
        return ["its classes differ from those of the live version"]
    pairs_of_targets = zip(live.targets, new.targets, strict=False)
    if len(live.targets) != len(new.targets) or any(
        before.name != after.name or not _alike(before.classes, after.classes) for before, after in pairs_of_targets
    ):
        return ["its targets differ from those of the live version"]
    names = [feature.name for feature in new.features]
    if names != [feature.name for feature in live.features]:
        return ["its features, or their order, differ from those of the live version"]
    pairs = zip(live.features, new.features, strict=True)
    return [f"{before.name} {reason}" for before, after in pairs if (reason := _breach(before, after))]


def _alike(before: Sequence[Label], after: Sequence[Label]) -> bool:
    """Return whether the labels are equal; manifests written before these kept their types have strings."""
    if tuple(map(str, before)) != tuple(map(str, after)):
        return False
    in_text = all(isinstance(label, str) for label in before)
    return in_text or [*map(type, before)] == [*map(type, after)]


def _breach(before: Feature, after: Feature) -> str:
    """What the feature takes no more, in words; a number may become one with fractions, a category a text."""
    if after.kind not in (before.kind, *WIDER_KINDS.get(before.kind, ())):
        return f"is of kind {after.kind}, not {before.kind}"
    encode = after.encoder()
    lost = sum(not _fits(encode, value) for value in before.categories)
    breaches = {
        "must not be missing any more": before.nullable and not after.nullable,
        "takes no categories any more that are not listed": before.open and not (after.open or after.kind == "text"),
        f"lacks {lost} of its categories": lost > 0,
        f"takes texts of {after.max_length} characters only": before.kind == "text"
        and after.max_length < before.max_length,
        "takes no times as fine any more": before.kind == "datetime" and step_of(after.format) > step_of(before.format),
        "has a higher minimum": after.minimum is not None
        and (before.minimum is None or after.minimum > before.minimum),
        "has a lower maximum": after.maximum is not None and (before.maximum is None or after.maximum < before.maximum),
    }
    return next((reason for reason, is_broken in breaches.items() if is_broken), "")


def _fits(encode: Callable[[Any], Any], value: Any) -> bool:
    try:
        encode(value)
    except ValueError:
        return False
    return True


def find_losses(live: LoadedModel, new: LoadedModel) -> list[str]:
    """Reasons why the new version would be slower, or explained less, than the live one."""
    lost = []
    if live.manifest.conformal and not new.manifest.conformal:
        lost.append("it has no calibration rows, so requests for a coverage would fail")
    if live.compiled and not new.compiled:
        lost.append("it cannot be compiled, so it would be many times slower")
    if live.explainer is None:
        return lost
    if new.explainer is None:
        lost.append("it has no explainer")
    elif new.explainer.jobs_only and not live.explainer.jobs_only:
        lost.append("its explainer is too slow for requests")
    return lost


def measure_both(live: LoadedModel, new: LoadedModel, held_out: HeldOut) -> Measured:
    """Metrics of both versions on the held-out rows that the live one accepts.

    If it accepts less than half of them, the metrics are those of the manifests. Raises CannotAdd where a metric of the
    user's own fails.
    """
    if new.manifest.task not in MEASURED or not len(held_out.truth):
        return by_manifests(live.manifest, new.manifest)
    # category codes are a version's own: rows go by the user's terms
    rows, taken = live.schema.fitting_rows([new.schema.instance(row) for row in held_out.rows])
    if 2 * len(taken) < len(held_out.rows):
        return by_manifests(live.manifest, new.manifest)
    truth, own = held_out.truth[taken], custom_functions(new.manifest.custom_metrics, new.code)

    def measured(model: LoadedModel, rows: Rows) -> dict[str, float]:
        outputs = model.compute(rows)
        return measure(new.manifest.task, truth, outputs, model.layout) | measure_custom(
            own, truth, outputs, model.layout
        )

    return Measured(new=measured(new, held_out.rows[taken]), live=measured(live, rows), rows=len(taken))


def by_manifests(live: Manifest, new: Manifest) -> Measured:
    """The metrics that were measured when each version was added."""
    return Measured(dict(new.metrics), dict(live.metrics), 0)


def find_decline(
    task: Task, measured: Measured, tolerance: float, custom: Mapping[str, Better] | None = None
) -> list[str]:
    """Reasons why the new version is worse: a score lower by more than `tolerance`, an error by that share higher.

    Metrics of the user's own, `custom`, may be worse by that share, whichever values are better.
    """
    better = {short_name(name): kind for name, kind in (custom or {}).items()}
    if task not in MEASURED:
        return []
    common = [name for name in measured.live if name in measured.new]
    if not common:
        return ["it has no metric in common with the live version"]
    return [
        f"{name} is {measured.new[name]:.4g}, that of the live version is {measured.live[name]:.4g}"
        for name in common
        if not _is_as_good(name, measured.new[name], measured.live[name], tolerance, better.get(name))
    ]


def _is_as_good(name: str, after: float, before: float, tolerance: float, better: Better | None) -> bool:
    """Return whether a metric has not become worse; NaN is worse."""
    if better is not None:
        margin = tolerance * abs(before)
        return after >= before - margin if better == "higher" else after <= before + margin
    return after >= before - tolerance if name in SCORES else after <= before * (1 + tolerance)
