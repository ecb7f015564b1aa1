"""Chooses the explainer that fits a model: an exact one first, then the library's own, then sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import structlog

from registry.errors import one_line
from registry.estimator import Compute, last_step, task_of, unwrap
from registry.explain.budget import Sampled
from registry.explain.compiled import linear_explainer, tree_explainer
from registry.explain.interventional import interventional_explainer
from registry.explain.library import ensemble_explainer, margins_of, native_explainer
from registry.explain.shap_values import Budget, CannotExplain, Explainer, Space
from registry.explain.sums import SUMS, exact_explainer
from registry.kernels.compiling import take_apart
from registry.kernels.ensembles import FORESTS, GRADIENT, HISTOGRAM, SINGLE
from registry.kernels.kernel import Unsupported
from registry.kernels.linear import LINEAR
from registry.kernels.transformers import source_matrix
from registry.outputs import Layout, Part, both_margins
from registry.rows.features import Rows
from registry.rows.schema import Schema
from registry.store.manifest import Manifest, layout_in

log = structlog.get_logger(__name__)

PROBE_ROWS = 20
"""Background rows that an exact explainer is tried on."""

PARTS: dict[Part, Space] = {"value": "value", "probabilities": "probability", "margins": "margin"}
"""The parts of the outputs of several targets that are explained, and their spaces."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be explained: its estimator, the function that serves, and background rows."""

    estimator: Any
    compute: Compute
    schema: Schema
    background: Rows
    evaluations: int
    budgets: Mapping[Space, Budget]
    """The decisions that were made when the version was added."""
    layout: Layout

    def natural_space(self) -> Space:
        """Probabilities where there are any, else margins, else values. Raises CannotExplain."""
        task = task_of(self.estimator)
        if self.layout.is_named:
            return self._space_of_targets()
        if task in ("regression", "ranking"):
            return "value"
        if task in ("classification", "clustering") and hasattr(self.estimator, "predict_proba"):
            return "probability"
        if task in ("classification", "outlier-detection") and hasattr(self.estimator, "decision_function"):
            return "margin"
        raise CannotExplain(f"{type(self.estimator).__name__} gives a label and no number to explain")

    def _space_of_targets(self) -> Space:
        """The same for a model with several targets. Raises CannotExplain."""
        part = next((part for part in PARTS if part in self.layout.parts), None)
        if part is None:
            raise CannotExplain(f"{type(self.estimator).__name__} gives labels and no numbers to explain")
        return PARTS[part]

    def other_spaces(self, space: Space) -> tuple[Space, ...]:
        """The outputs besides those in `space` that people ask for: those that are predicted."""
        natural = self.natural_space()
        return (natural,) if natural not in (space, "margin") else ()

    def outputs_in(self, space: Space) -> Compute:
        """A function from rows to the estimator's outputs in `space`, shape (rows, outputs).

        A binary classifier's margins are the negative one of the first class and that of the second.
        """
        compute, schema = self.compute, self.schema
        classes = len(self.layout.targets[0].classes)
        ask = margins_of(self.estimator)

        def margins(rows: Rows) -> Rows:
            if ask is None:
                return np.log(compute(rows))  # of a regressor with a logarithmic link
            made = np.asarray(ask(schema.table(rows)), np.float64).reshape(len(rows), -1)
            if classes == 2:
                return np.hstack([-made, made])
            if made.shape[1] != max(classes, 1):
                raise CannotExplain("it does not have one margin for each class")
            return made

        if self.layout.is_named:
            return self._outputs_of_targets(space)
        if space == "probability":
            return lambda rows: np.ascontiguousarray(compute(rows)[:, :classes])
        places = self.layout.columns[0]
        if space == "margin" and "score" in places:
            return lambda rows: compute(rows)[:, places["score"]]
        if space == "margin" and "margins" in places:
            return lambda rows: both_margins(compute(rows)[:, places["margins"]])
        return margins if space == "margin" else compute

    def _outputs_of_targets(self, space: Space) -> Compute:
        """The outputs of all targets, one target after the other. Raises CannotExplain."""
        part = next((part for part in PARTS if PARTS[part] == space and part in self.layout.parts), None)
        if part is None:
            raise CannotExplain(f"its targets have no outputs in {space} space")
        compute, columns = self.compute, [places[part] for places in self.layout.columns]

        def outputs(rows: Rows) -> Rows:
            made = compute(rows)
            parts = [made[:, places] for places in columns]
            return np.hstack(parts if part != "margins" else [both_margins(one) for one in parts])

        return outputs

    def tried(self, explainer: Explainer) -> Explainer:
        """The explainer, if it explains the estimator's outputs and its values add up. Raises CannotExplain."""
        rows = self.background[:PROBE_ROWS]
        found = explainer.explain(rows)
        expected = self.outputs_in(explainer.space)(rows)
        if not np.allclose(found.outputs, expected, rtol=explainer.tolerance, atol=explainer.tolerance):
            raise CannotExplain("the explainer's outputs are not the estimator's")
        if not found.gap() <= explainer.tolerance:
            raise CannotExplain("contributions do not add up to the output")
        return explainer

    def in_values(self, explainer: Explainer) -> Explainer:
        """The explainer in the space "value" if a regressor's margins are its values: its link is the identity."""
        if task_of(self.estimator) not in ("regression", "ranking") or explainer.space != "margin":
            return explainer
        rows, tolerance = self.background[:PROBE_ROWS], explainer.tolerance
        same = np.allclose(explainer.explain(rows).outputs, self.compute(rows), rtol=tolerance, atol=tolerance)
        return replace(explainer, space="value") if same else explainer


Builder = Callable[[Subject], Explainer]
"""Makes an explainer. Raises CannotExplain, Unsupported, or what an estimator or a library raises."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The explainer of a model and those of its outputs in other spaces; without any, the reason why."""

    explainer: Explainer | None
    others: Mapping[Space, Explainer] = field(default_factory=dict)
    reason: str = ""


def choose_explainers(
    manifest: Manifest, estimator: Any, compute: Compute, background: Rows, evaluations: int
) -> Choice:
    """The explainer that the manifest names, or if it names none the first that fits; and those of other spaces.

    Whatever is wrong with an explainer, the model can predict without it; the log says why there is none.
    """
    record, layout = manifest.explainer, layout_in(manifest)
    schema = Schema(manifest.features, manifest.input)
    budgets = record.budgets if record else {}
    subject = Subject(unwrap(estimator), compute, schema, background, evaluations, budgets, layout)
    explainer, reasons = _first(BUILDERS[record.method if record else None], subject)
    if explainer is None:
        log.warning("Model has no explainer", model=manifest.name, version=manifest.version, reasons=reasons)
        return Choice(None, reason=reasons[-1])
    others: dict[Space, Explainer] = {}
    for space in subject.other_spaces(explainer.space):
        builders = (partial(_interventional, space=space), partial(_sampled, space=space))
        other, reasons = _first(builders, subject)
        if other is None:
            log.info("Outputs not explained", model=manifest.name, space=space, reasons=reasons)
        else:
            others[space] = other
    return Choice(explainer, others)


def _first(builders: Sequence[Builder], subject: Subject) -> tuple[Explainer | None, list[str]]:
    """The first explainer that can be built, and why those before it cannot."""
    reasons: list[str] = []
    for build in builders:
        try:
            return build(subject), reasons
        except (CannotExplain, Unsupported) as error:
            reasons.append(str(error))
        except Exception as error:  # noqa: BLE001 - private parts of estimators and another library's code
            reasons.append(one_line(f"{type(error).__name__}: {error}"))
    return None, reasons


def _compiled(subject: Subject) -> Explainer:
    if subject.layout.is_named:
        raise CannotExplain("several outputs are not explained")
    parts = take_apart(subject.estimator, subject.schema)
    if parts.trees is not None:
        return subject.tried(subject.in_values(tree_explainer(parts)))
    if type(parts.last) in LINEAR:
        return subject.tried(linear_explainer(parts, subject.background))
    raise Unsupported(f"no kernel explains {type(parts.last).__name__}")


def _summed(subject: Subject) -> Explainer:
    if subject.layout.is_named:
        raise CannotExplain("several outputs are not explained")
    if type(last_step(subject.estimator)) not in SUMS:
        raise CannotExplain("it is not a sum of others")
    explainer = exact_explainer(subject.estimator, source_matrix(subject.schema), subject.background)
    return subject.tried(subject.in_values(explainer))


def _native(subject: Subject) -> Explainer:
    explainer = native_explainer(subject.estimator, subject.schema)
    return subject.tried(subject.in_values(explainer))


def _ensemble(subject: Subject) -> Explainer:
    kind = type(subject.estimator)
    if kind not in (*SINGLE, *FORESTS, *GRADIENT, *HISTOGRAM):
        raise CannotExplain(f"{kind.__name__} is not an ensemble of trees")
    space: Space = "margin" if kind in (*GRADIENT, *HISTOGRAM) else subject.natural_space()
    return subject.tried(ensemble_explainer(subject.estimator, subject.outputs_in(space), space))


def _sampling(subject: Subject) -> Explainer:
    return _sampled(subject, subject.natural_space())


def _sampled(subject: Subject, space: Space) -> Explainer:
    sampled = Sampled(subject.outputs_in(space), subject.background, space)
    return sampled.explainer(subject.evaluations, subject.budgets.get(space))


def _interventional(subject: Subject, space: Space) -> Explainer:
    parts = take_apart(subject.estimator, subject.schema)
    if parts.trees is None and type(parts.last) not in LINEAR:
        raise Unsupported(f"no kernel explains {type(parts.last).__name__}")
    return subject.tried(interventional_explainer(parts, subject.background, subject.outputs_in(space), space))


BUILDERS: dict[str | None, tuple[Builder, ...]] = {
    None: (_compiled, _summed, _native, _ensemble, _sampling),
    "tree-path-dependent": (_compiled, _summed, _ensemble),
    "native": (_native,),
    "linear": (_compiled, _summed),
    "exact": (_sampling,),
    "permutation": (_sampling,),
}
"""The explainers to try for the method that a manifest records."""
