"""Explanations as they are shown: contributions as JSON values of selected classes and features, and as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from registry.errors import CannotDraw, InvalidSelection
from registry.explain.shap_values import Contributions, Explainer

OTHER = "(other)"
"""The sum of the features that are not shown."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of an explanation is shown.

    `classes`: the predicted one, all, or those listed. `top`: this many features with the largest contributions, and
    the rest summed; None for all in the model's order.
    """

    classes: Literal["predicted", "all"] | tuple[str, ...] = "predicted"
    top: int | None = None

    def check(self, classes: Sequence[str]) -> None:
        """Raises InvalidSelection where a model of these classes cannot show it."""
        if self.top is not None and self.top < 1:
            raise InvalidSelection("top must be at least 1")
        if not isinstance(self.classes, tuple):
            known = self.classes in ("predicted", "all")
        elif classes:
            known = bool(self.classes) and set(self.classes) <= set(classes)
        else:
            raise InvalidSelection("the model has no classes")
        if not known:
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
    for a model without classes. Raises InvalidSelection.
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
    shown[OTHER] = shown.get(OTHER, 0.0) + float(values[order[top:]].sum())  # a feature may have this name, too
    return shown


def draw_waterfall(explanation: Mapping[str, Any], instance: Mapping[str, Any], path: Path) -> None:
    """Write shap's waterfall plot of one explanation, as `LoadedModel.explain` gives it for one class, to a file.

    `instance` has the row's values. Needs the extra `plot`, which it imports. Raises CannotDraw.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their own imports warn
            import matplotlib as mpl

            mpl.use("Agg")  # before pyplot looks for a screen
            import shap
            from matplotlib import pyplot
    except ImportError as error:
        raise CannotDraw("drawing needs matplotlib: pip install 'forkserve[plot]'") from error
    values = explanation["values"]
    drawn = shap.Explanation(
        values=np.array(list(values.values())),
        base_values=explanation["base_value"],
        data=np.array([_text(name, instance) for name in values], dtype=object),
        feature_names=list(values),
    )
    figure = pyplot.figure()
    try:
        shap.plots.waterfall(drawn, max_display=20, show=False)
        pyplot.title(" ".join(str(explanation[key]) for key in ("label", "space") if key in explanation))
        pyplot.savefig(path, bbox_inches="tight", dpi=150)
    except (OSError, ValueError) as error:
        raise CannotDraw(f"{path}: {error}") from error
    finally:
        pyplot.close(figure)


def _text(name: str, instance: Mapping[str, Any]) -> str:
    """A value beside its feature; nothing beside a sum of features."""
    if name not in instance:
        return ""
    value = instance[name]
    if value is None:
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)
