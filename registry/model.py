"""A model as it is served: a loaded estimator and its manifest, with one interface for all kinds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from registry.conformal import add_bounds, threshold
from registry.errors import InvalidSelection, ModelFailed, NotExplained, ResultNotFinite
from registry.estimator import Compute, Outputs
from registry.explain.explanation import Names, Selection, present_contributions
from registry.explain.shap_values import Contributions, Explainer, Space
from registry.outputs import Labels, Layout
from registry.rows.features import Rows, characters
from registry.rows.schema import Schema
from registry.store.code import OwnCode
from registry.store.manifest import Manifest, layout_in

MAX_INTERACTIONS = 2**19
"""Interactions of one row, for all outputs: 4 MB while they are computed."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """One version of one model, ready to predict."""

    manifest: Manifest
    compute: Compute
    fallback: bool = False
    """True if a minimal model replaces the version because it could not be loaded."""
    compiled: bool = False
    """True if a compiled form, verified bit for bit against the estimator, answers instead of it."""
    python_steps: tuple[str, ...] = ()
    """The transformers and members whose own code runs beside what is compiled; a row may take them any time."""
    reason: str = ""
    """Why it is not compiled; "" if it is."""
    explainer: Explainer | None = None
    other_explainers: Mapping[Space, Explainer] = field(default_factory=dict)
    """Explainers of other outputs than those that `explainer` explains, by their space."""
    not_explained: str = ""
    """Why there is no explainer; empty where there is one."""
    code: OwnCode | None = None
    """The version's own code, if it has any."""

    ignores_sign_of_zero: bool = False
    """True if 0.0 and -0.0 certainly get equal answers, so that they may share a cached one."""

    other_layout: Layout | None = None
    """The layout of the outputs where it is not that of the manifest: an old one's, or with labels as text."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @cached_property
    def content_hash(self) -> bytes:
        """Hash of the manifest, which contains the artefact's: all that an answer depends on besides the row."""
        content = msgspec.json.encode(self.manifest)
        if self.other_layout is not None:
            content += msgspec.json.encode(self.other_layout)
        return hashlib.sha256(content).digest()

    @cached_property
    def schema(self) -> Schema:
        return Schema(self.manifest.features, self.manifest.input)

    @property
    def background(self) -> Rows:
        """The manifest's background, shape (rows, features)."""
        return self.schema.rows([list(row) for row in self.manifest.background])

    @cached_property
    def example(self) -> dict[str, Any]:
        """A made-up instance to show to anybody; that of the manifest is a row of somebody's data."""
        return self.schema.usual(self.background)

    @cached_property
    def usual_characters(self) -> float:
        """The characters of a usual row's texts, at least 1."""
        background = self.background
        return max(1.0, characters(background) / len(background))

    @cached_property
    def instance_schema(self) -> dict[str, Any]:
        """JSON Schema of an instance by feature name, with the features' labels for people as titles."""
        schema, labels = self.schema.object_schema, self.manifest.feature_labels
        properties = {
            name: feature | {"title": labels[name]} if name in labels else feature
            for name, feature in schema["properties"].items()
        }
        return schema | {"properties": properties}

    @cached_property
    def layout(self) -> Layout:
        """The columns of the outputs, and the labels that are answered."""
        return self.other_layout or layout_in(self.manifest)

    @cached_property
    def labels(self) -> Labels:
        """The labels of a classifier with one target; none of any other model."""
        return Labels(() if self.layout.is_named else self.layout.targets[0].classes)

    @cached_property
    def target_labels(self) -> tuple[Labels, ...]:
        """The labels of each target; none of one whose value is a number."""
        return tuple(Labels(target.classes) for target in self.layout.targets)

    def predict(self, rows: Rows, coverage: float | None = None) -> list[Any]:
        """One prediction a row, as API.md shows it. `rows` has shape (rows, features).

        With a `coverage` it has an interval or a set of labels. Raises ModelFailed, InvalidSelection.
        """
        outputs = self.outputs(rows)
        answers = self.layout.present(outputs)
        if coverage is None:
            return answers
        return add_bounds(answers, outputs, self.layout, self.bound(coverage))

    def outputs(self, rows: Rows) -> Outputs:
        """The outputs that `layout` names the columns of, shape (rows, width). Raises ModelFailed."""
        outputs = self.compute(rows)
        if not np.isfinite(outputs).all():
            raise ResultNotFinite(f"{self.name}/{self.version}")
        return outputs

    def bound(self, coverage: float) -> float:
        """The largest score of intervals and sets of this coverage. Raises InvalidSelection."""
        return threshold(() if self.fallback else self.manifest.conformal, coverage)

    def explain(self, rows: Rows, selection: Selection | None = None) -> list[dict[str, Any]]:
        """One explanation a row, as `present_contributions` shows it. `rows` has shape (rows, features).

        Raises NotExplained, InvalidSelection, ModelFailed.
        """
        selection = selection or Selection()
        explainer = self.explainer_for(selection)
        if selection.interactions and len(rows) > 1:  # they are large: of one row at a time
            return [self.explain(row[None], selection)[0] for row in rows]
        answers = self.predict(rows)  # first: of a result that is not finite, nothing can be explained
        found = self.contributions(rows, selection.space)
        if selection.interactions and explainer.interact is not None:
            found = found.with_interactions(explainer.interact(rows))
        labels = [_labels_by_name(one) for one in answers] if self.layout.is_named else [_label(one) for one in answers]
        return present_contributions(found, explainer, self.names, labels, selection)

    @cached_property
    def names(self) -> Names:
        """The names that explanations use."""
        manifest = self.manifest
        targets = zip((target.name for target in self.layout.targets), self.target_labels, strict=True)
        return Names(
            self.schema.names,
            self.labels,
            manifest.groups,
            manifest.feature_labels,
            tuple(targets) if self.layout.is_named else (),
        )

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The outputs that can be explained, the default first."""
        return () if self.explainer is None else (self.explainer.space, *self.other_explainers)

    def explainer_for(self, selection: Selection) -> Explainer:
        """The explainer of what is selected. Raises NotExplained, InvalidSelection."""
        selection.check(self.labels)
        explainer = self._explainer_in(selection.space)
        if selection.interactions:
            self._check_interactions(explainer)
        return explainer

    def _check_interactions(self, explainer: Explainer) -> None:
        """Raises InvalidSelection."""
        if explainer.interact is None:
            how = f"in {explainer.space} space this model is explained by {explainer.method}"
            raise InvalidSelection(f"interactions are those of compiled trees, path-dependent; {how}")
        features, outputs = len(self.schema), sum(max(1, len(labels)) for labels in self.target_labels)
        if features**2 * outputs > MAX_INTERACTIONS:
            raise InvalidSelection(
                f"interactions of {features} features would be more than {MAX_INTERACTIONS} numbers a row"
            )

    def _explainer_in(self, space: Space | None) -> Explainer:
        if self.explainer is None:
            reason = f": {self.not_explained}" if self.not_explained else ""
            raise NotExplained(f"{self.name}/{self.version} has no explainer{reason}")
        if space is None or space == self.explainer.space:
            return self.explainer
        if space not in self.other_explainers:
            raise InvalidSelection(f"space must be one of {', '.join(self.spaces)} for this model")
        return self.other_explainers[space]

    def contributions(self, rows: Rows, space: Space | None = None) -> Contributions:
        """The SHAP values of rows, verified to add up to the outputs; in the model's own space unless one is given.

        Raises NotExplained, InvalidSelection, ModelFailed.
        """
        explainer = self._explainer_in(space)
        found = explainer.explain(rows)
        if not found.gap() <= explainer.tolerance:  # NaN is not
            raise ModelFailed(f"{self.name}/{self.version}: contributions do not add up to the output")
        return found


def _label(answer: Any) -> Any:
    """The label of a prediction; None of a number."""
    return answer.get("label") if isinstance(answer, dict) else None


def _labels_by_name(answer: Any) -> dict[str, Any]:
    """The label of each target of a prediction."""
    return {name: _label(one) for name, one in answer["prediction"].items()}
