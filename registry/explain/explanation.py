"""Contributions as JSON values: of which classes, and of how many features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from registry.errors import InvalidSelection
from registry.explain.shap_values import Contributions, Explainer

OTHER = "(other)"
"""The sum of the features that are not shown."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What of an explanation is shown.

    `classes`: the predicted one, all, or those listed. `top`: so many features, the largest contributions first, and
    the rest summed; None for all in the model's order.
    """

    classes: Literal["predicted", "all"] | tuple[str, ...] = "predicted"
    top: int | None = None

    def check(self, classes: Sequence[str]) -> None:
        """Raises InvalidSelection where a model of these classes cannot show it."""
        if self.top is not None and self.top < 1:
            raise InvalidSelection("top must be at least 1")
        if isinstance(self.classes, tuple):
            if not classes:
                raise InvalidSelection("the model has no classes")
            if not self.classes or not set(self.classes) <= set(classes):
                raise InvalidSelection("classes must be 'predicted', 'all', or some of the model's classes")
        elif self.classes not in ("predicted", "all"):
            raise InvalidSelection("classes must be 'predicted', 'all', or some of the model's classes")


def present_contributions(
    found: Contributions,
    explainer: Explainer,
    features: Sequence[str],
    classes: Sequence[str],
    labels: Sequence[Any],
    selection: Selection,
) -> list[dict[str, Any]]:
    """One item a row; in each, `base_value` and the sum of `values` make `output`.

    For the predicted class, or a model without classes:

        {"label": ..., "space": ..., "method": ..., "output": ..., "base_value": ..., "values": {feature: ...}}

    For several classes "classes" holds output, base_value and values by class. `labels` are the predicted ones, None
    for a model without. Raises InvalidSelection.
    """
    selection.check(classes)
    positions = {label: index for index, label in enumerate(classes)}
    base_values = found.base_values.tolist()

    def item(row: int, output: int) -> dict[str, Any]:
        return {
            "output": float(found.outputs[row, output]),
            "base_value": base_values[output],
            "values": _shown(features, found.values[row, :, output], selection.top),
        }

    presented = []
    for row, label in enumerate(labels):
        common = {} if label is None else {"label": label}
        common |= {"space": explainer.space, "method": explainer.method}
        if not classes:
            presented.append(common | item(row, 0))
        elif selection.classes == "predicted":
            presented.append(common | item(row, positions[label]))
        else:
            chosen = classes if selection.classes == "all" else selection.classes
            presented.append(common | {"classes": {name: item(row, positions[name]) for name in chosen}})
    return presented


def _shown(features: Sequence[str], values: NDArray[np.float64], top: int | None) -> dict[str, float]:
    if top is None or top >= len(features):
        return dict(zip(features, values.tolist(), strict=True))
    order = np.argsort(-np.abs(values), kind="stable")
    shown = {features[index]: float(values[index]) for index in order[:top]}
    shown[OTHER] = shown.get(OTHER, 0.0) + float(values[order[top:]].sum())  # a feature may be called so, too
    return shown
