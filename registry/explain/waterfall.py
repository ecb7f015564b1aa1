"""An explanation as a picture: shap's waterfall plot, written to a file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import CannotDraw


def draw_waterfall(explanation: Mapping[str, Any], instance: Mapping[str, Any], path: Path) -> None:
    """Draw one explanation, as `LoadedModel.explain` gives it for one class; `instance` has the row's values.

    Needs the extra `plot`, which it imports. Raises CannotDraw.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their own imports
            import matplotlib as mpl

            mpl.use("Agg")  # before pyplot looks for a screen
            import shap
            from matplotlib import pyplot
    except ImportError as error:
        raise CannotDraw("drawing needs shap and matplotlib: pip install 'forkserve[plot]'") from error
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
