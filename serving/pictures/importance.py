"""Pictures of the importance of features: a bar each, the longest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.explain.explanation import OTHER
from serving.pictures.chart import WIDTH, Bar, Chart, draw, number_text
from serving.pictures.explanation import AXES, MAX_BARS, largest


def importance_bars(importance: Mapping[str, Any], title: str, *, most: int = MAX_BARS, width: int = WIDTH) -> str:
    """The importance of features, as the API answers it, as an SVG document; `most` features have bars of their own."""
    values, labels = importance["importance"], importance.get("labels", {})
    total = sum(values.values())
    bars = [
        Bar(
            labels.get(name, "other features" if name == OTHER else name),
            number_text(value),
            0.0,
            value,
            "size",
            hint=f"{value / total:.0%} of all" if total else "",
        )
        for name, value in largest(values, most)
    ]
    notes = [f"mean |SHAP| over {importance['rows']} rows"]
    axis = f"mean |SHAP| in units of the {AXES[importance['space']]}"
    return draw([Chart(f"{title}: importance of features", notes, bars, axis)], width)
