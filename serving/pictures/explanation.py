"""Pictures of explanations: a waterfall for each output, from its base value to the output, feature by feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from sys import float_info
from typing import Any, NamedTuple

from registry.explain.explanation import OTHER
from registry.explain.importance import outputs_of
from serving.pictures.chart import WIDTH, Bar, Chart, Kind, draw, html_page, number_text

MAX_BARS = 15
"""Features in a picture of which nobody said how many are to be shown; the others are summed."""

MAX_TOP = 30
"""Features in any picture."""

MAX_OUTPUTS = 8
"""Outputs in a picture."""

AXES = {"probability": "probability", "margin": "margin (log-odds)", "value": "predicted value"}
"""What is explained, by its space."""


class _Shown(NamedTuple):
    """One output of an explanation, as the API answers it: what it is of, and its numbers."""

    of: str
    item: Mapping[str, Any]


def waterfall(
    explanation: Mapping[str, Any], instance: Mapping[str, Any], title: str, *, most: int = MAX_BARS, width: int = WIDTH
) -> str:
    """One explanation, as the API answers it, as an SVG document: a waterfall for each of its outputs.

    `instance` has the row's values by feature; `title` says which model it is; `most` features have bars of their own.
    """
    charts = [_chart(one, explanation, instance, title, most) for one in _outputs(explanation)]
    return draw(charts, width)


def waterfall_page(explanation: Mapping[str, Any], instance: Mapping[str, Any], title: str, *, most: int) -> str:
    """The picture and the table of its numbers, as one self-contained HTML file."""
    picture = waterfall(explanation, instance, title, most=most)
    labels = explanation.get("labels", {})
    outputs = list(_outputs(explanation))
    several = len(outputs) > 1
    rows = [
        [*[shown.of] * several, labels.get(name, name), value_text(name, instance), repr(value)]
        for shown in outputs
        for name, value in shown.item["values"].items()
    ]
    return html_page(title, picture, [*["Output"] * several, "Feature", "Value", "Contribution"], rows)


def value_text(name: str, instance: Mapping[str, Any]) -> str:
    """A value beside its feature; nothing beside a sum of features."""
    if name not in instance:
        return ""
    value = instance[name]
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return str(value).lower()
    return number_text(value) if isinstance(value, float) else str(value)


def _outputs(explanation: Mapping[str, Any]) -> Iterator[_Shown]:
    """Each output that is explained; for several targets or classes, those of one after the other."""
    for target, name, item in outputs_of(explanation):
        label = item.get("label") if name is None else name
        yield _Shown(": ".join(filter(None, (target, "" if label is None else _label(label)))), item)


def _label(label: Any) -> str:
    """A label of a class, as JSON has it."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def _chart(shown: _Shown, explanation: Mapping[str, Any], instance: Mapping[str, Any], title: str, most: int) -> Chart:
    item, labels = shown.item, explanation.get("labels", {})
    base, output, errors = item["base_value"], item["output"], item.get("standard_error", {})
    axis = AXES[explanation["space"]]
    bars = [Bar("base value", number_text(base), base, base, "mark", hint="the output when nothing is known")]
    total = sum(map(abs, item["values"].values()))
    here = base
    for rank, (name, value) in enumerate(largest(item["values"], most), 1):
        kind: Kind = "rise" if value >= 0 else "fall"
        error = f" \N{PLUS-MINUS SIGN} {errors[name]:.2g}" if name in errors else ""
        share = f"{abs(value) / total:.0%} of all contributions" if total else ""
        place = f", rank {rank}" if name in item["values"] and name != OTHER else ""
        bars.append(
            Bar(
                labels.get(name, "other features" if name == OTHER and name not in instance else name),
                number_text(value, signed=True) + error,
                here,
                here + value,
                kind,
                value=value_text(name, instance),
                hint=f"{number_text(value, signed=True)}: {share}{place}",
            )
        )
        here = max(-float_info.max, min(here + value, float_info.max))
    bars.append(Bar("output", number_text(output), here, output, "mark", hint=axis))
    notes = [f"{axis} {number_text(output)}, base value {number_text(base)}"]
    return Chart(": ".join(filter(None, (title, shown.of))), notes, bars, axis, linked=True)


def largest(values: Mapping[str, float], most: int) -> list[tuple[str, float]]:
    """The largest contributions first, and last the sum of all others."""
    order = sorted(values.items(), key=lambda one: (one[0] == OTHER, -abs(one[1])))
    kept = order if len(order) <= most else order[: most - 1]
    rest = [value for _, value in order[len(kept) :]]
    if not rest:
        return kept
    several = len(rest) > 1 and OTHER not in values
    return [*kept, (f"{len(rest)} other features" if several else OTHER, sum(rest))]
