"""Chooses the explainer that fits a model: the exact ones first, then shap's own, then sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import structlog

from registry.estimator import Compute, task_of
from registry.explain.library import CannotExplain
from registry.explain.linear import linear_explainer
from registry.explain.native import NativeExplainer, native_explainer
from registry.explain.outputs import natural_space, outputs_in
from registry.explain.reference import reference_explainer
from registry.explain.sampling import sampling_explainer
from registry.explain.shap_values import Explainer, Space
from registry.explain.trees import TreeExplainer, tree_explainer
from registry.kernels.compiling import take_apart
from registry.kernels.ensembles import FORESTS, GRADIENT, HISTOGRAM, SINGLE
from registry.kernels.kernel import Unsupported
from registry.kernels.linear import LINEAR
from registry.rows.features import Rows
from registry.rows.schema import Schema
from registry.store.manifest import Manifest
from registry.store.options import DEFAULT_OPTIONS

log = structlog.get_logger(__name__)

Margins = TypeVar("Margins", TreeExplainer, NativeExplainer)

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
    evaluations: int


def choose_explainer(
    manifest: Manifest, estimator: Any, compute: Compute, evaluations: int = DEFAULT_OPTIONS.shap_evaluations
) -> Explainer | None:
    """The explainer that the manifest names, or for one that names none the first that fits; None if there is none.

    Whatever is wrong with an explainer, the model can predict without it: the log says why there is none.
    """
    schema = Schema(manifest.features)
    background = schema.rows([list(row) for row in manifest.background])
    subject = Subject(estimator, compute, schema, manifest.input == "frame", background, evaluations)
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
        return _tried(_in_values(tree_explainer(parts), subject), subject)
    if type(parts.last) in LINEAR:
        return _tried(linear_explainer(parts, subject.background), subject)
    raise Unsupported(f"no kernel explains {type(parts.last).__name__}")


def _native(subject: Subject) -> Explainer:
    explainer = native_explainer(subject.estimator, subject.schema, frame=subject.frame)
    return _tried(_in_values(explainer, subject), subject)


def _in_values(explainer: Margins, subject: Subject) -> Margins:
    """Margins of a regressor that are its values are called so: its link is the identity."""
    if task_of(subject.estimator) != "regression" or explainer.space != "margin":
        return explainer
    rows, tolerance = subject.background[:PROBES], explainer.tolerance
    same = np.allclose(explainer.explain(rows).outputs, subject.compute(rows), rtol=tolerance, atol=tolerance)
    return replace(explainer, space="value") if same else explainer


def _reference(subject: Subject) -> Explainer:
    kind = type(subject.estimator)
    if kind not in (*SINGLE, *FORESTS, *GRADIENT, *HISTOGRAM):
        raise CannotExplain(f"{kind.__name__} is no ensemble of trees")
    space: Space = "margin" if kind in (*GRADIENT, *HISTOGRAM) else natural_space(subject.estimator)
    return _tried(reference_explainer(subject.estimator, _outputs(subject, space), space), subject)


def _sampling(subject: Subject) -> Explainer:
    space = natural_space(subject.estimator)
    return sampling_explainer(_outputs(subject, space), subject.background, space, subject.evaluations)


def _outputs(subject: Subject, space: Space) -> Compute:
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

BUILDERS: dict[str | None, tuple[Build, ...]] = {
    None: (_compiled, _native, _reference, _sampling),
    "tree-path-dependent": (_compiled, _reference),
    "native": (_native,),
    "linear": (_compiled,),
    "exact": (_sampling,),
    "permutation": (_sampling,),
}
"""What is tried for the method that a manifest records."""
