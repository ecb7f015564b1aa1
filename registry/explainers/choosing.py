"""Chooses the explainer that fits a model: the exact ones first, then shap's own, then sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from registry.contributions import Explainer
from registry.explainers.budget import Budget
from registry.explainers.library import CannotExplain
from registry.explainers.linear import linear_explainer
from registry.explainers.outputs import natural_space, outputs_in
from registry.explainers.reference import reference_explainer
from registry.explainers.sampling import sampling_explainer
from registry.explainers.trees import tree_explainer
from registry.features import Rows
from registry.kernels.compiling import take_apart
from registry.kernels.ensembles import FORESTS, GRADIENT, SINGLE
from registry.kernels.histogram import HISTOGRAM
from registry.kernels.linear import LINEAR
from registry.kernels.unsupported import Unsupported
from registry.manifest import Manifest
from registry.model import Compute
from registry.schema import Schema

log = structlog.get_logger(__name__)

PROBES = 20
"""Background rows that an exact explainer is tried on."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be explained: its estimator, what answers in its stead, and background rows."""

    estimator: Any
    compute: Compute
    schema: Schema
    frame: bool
    background: Rows
    budget: Budget


def choose_explainer(
    manifest: Manifest, estimator: Any, compute: Compute, budget: Budget | None = None
) -> Explainer | None:
    """The explainer that the manifest names, or for one that names none the first that fits; None if there is none.

    Whatever is wrong with an explainer, the model can predict without it: the log says why there is none.
    """
    schema = Schema(manifest.features)
    background = schema.rows([list(row) for row in manifest.background])
    subject = Subject(estimator, compute, schema, manifest.input == "frame", background, budget or Budget())
    recorded = manifest.explainer.method if manifest.explainer else None
    reasons = []
    for build in BUILDERS[recorded]:
        try:
            return build(subject)
        except (CannotExplain, Unsupported) as error:
            reasons.append(str(error))
        except Exception as error:  # noqa: BLE001 - private parts of estimators and another library's code
            reasons.append(f"{type(error).__name__}: {error}")
    log.warning("Model has no explainer", model=manifest.name, version=manifest.version, reasons=reasons)
    return None


def _compiled(subject: Subject) -> Explainer:
    parts = take_apart(subject.estimator, subject.schema, frame=subject.frame)
    if parts.trees is not None:
        return _tried(tree_explainer(parts), subject)
    if type(parts.last) in LINEAR:
        return _tried(linear_explainer(parts, subject.background), subject)
    raise Unsupported(f"no kernel explains {type(parts.last).__name__}")


def _reference(subject: Subject) -> Explainer:
    kind = type(subject.estimator)
    if kind not in (*SINGLE, *FORESTS, *GRADIENT, *HISTOGRAM):
        raise CannotExplain(f"{kind.__name__} is no ensemble of trees")
    space = "margin" if kind in (*GRADIENT, *HISTOGRAM) else natural_space(subject.estimator)
    return _tried(reference_explainer(subject.estimator, _outputs(subject, space), space), subject)


def _sampling(subject: Subject) -> Explainer:
    space = natural_space(subject.estimator)
    return sampling_explainer(_outputs(subject, space), subject.background, space, subject.budget)


def _outputs(subject: Subject, space: Any) -> Compute:
    return outputs_in(space, subject.estimator, subject.compute, subject.schema, frame=subject.frame)


def _tried(explainer: Explainer, subject: Subject) -> Explainer:
    """The explainer, if what it explains is what the estimator answers, and adds up. Raises CannotExplain."""
    rows = subject.background[:PROBES]
    found = explainer.explain(rows)
    expected = _outputs(subject, explainer.space)(rows)
    if not np.allclose(found.outputs, expected, rtol=explainer.tolerance, atol=explainer.tolerance):
        raise CannotExplain("what is explained is not what the estimator answers")
    if not found.gap() <= explainer.tolerance:
        raise CannotExplain("contributions do not add up to the output")
    return explainer


Build = Callable[[Subject], Explainer]

EXACT: tuple[Build, ...] = (_compiled, _reference)

BUILDERS: dict[str | None, tuple[Build, ...]] = {
    None: (*EXACT, _sampling),
    "tree-path-dependent": EXACT,
    "linear": EXACT,
    "exact": (_sampling,),
    "permutation": (_sampling,),
}
"""What is tried for the method that a manifest records."""
