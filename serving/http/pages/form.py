"""The form of a model: a field for each feature, filled from a request's values, and the instance that it makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import msgspec

from registry.model import LoadedModel
from registry.rows.features import Feature
from registry.rows.times import are_times

PREFIX, OTHER_PREFIX = "x.", "y."
"""Before the names of features in a request: of the row that is asked about, and of the one to compare it with."""

MAX_OPTIONS = 12
"""Choices in a list that is not searched."""

SLIDER_STEPS = 200

Control = Literal["number", "choice", "search", "date", "time", "text"]


@dataclass(frozen=True, slots=True)
class Field:
    """One input of the form. `low` and `high` are the ends of the slider; equal for none."""

    name: str
    label: str
    control: Control
    value: str
    initial: str
    is_nullable: bool
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    low: float = 0.0
    high: float = 0.0
    step: float = 1.0
    max_length: int = 0
    bins: tuple[tuple[float, float, float], ...] = ()
    """The distribution in training above the slider: start, width and height of each bin, in per cent."""
    faults: list[str] = field(default_factory=list)

    @property
    def is_changed(self) -> bool:
        return self.value != self.initial

    @property
    def key(self) -> str:
        """The name of the field in a request."""
        return PREFIX + self.name

    @property
    def position(self) -> float:
        """Where the slider stands."""
        try:
            return min(max(float(self.value), self.low), self.high)
        except ValueError:
            return (self.low + self.high) / 2


def initial_instance(model: LoadedModel, *, show_example: bool) -> dict[str, Any]:
    """The values of a form that nobody has filled in: the example, or neutral values where no client may see it."""
    if show_example:
        return model.example
    return {feature.name: _neutral(feature) for feature in model.schema.features}


def _neutral(feature: Feature) -> Any:
    if feature.nullable:
        return None
    match feature.kind:
        case "boolean":
            return False
        case "category":
            return feature.categories[0] if feature.categories else ""
        case "text":
            return ""
        case "datetime":
            return "2000-01-01"
    low = feature.minimum if feature.minimum is not None else 0.0
    high = feature.maximum if feature.maximum is not None else low
    middle = (low + high) / 2
    return math.floor(middle) if feature.kind == "integer" else middle


def read_instance(
    model: LoadedModel, sent: Mapping[str, str], initial: Mapping[str, Any], prefix: str = PREFIX
) -> dict[str, Any]:
    """The instance of a request: values that were not sent are the initial ones.

    What is no value of its feature stays a text, which the model refuses with the reason.
    """
    return {
        feature.name: _parse(feature, sent[prefix + feature.name])
        if prefix + feature.name in sent
        else initial[feature.name]
        for feature in model.schema.features
    }


def _parse(feature: Feature, text: str) -> Any:
    if feature.kind == "text":
        return None if not text and feature.nullable else text.replace("\r\n", "\n")
    text = text.strip()
    if not text:
        return None
    match feature.kind:
        case "boolean":
            return {"true": True, "false": False}.get(text, text)
        case "category":
            return {show_value(one): one for one in reversed(feature.categories)}.get(text, text)
        case "datetime":
            return text
    return _parse_number(text)


def _parse_number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return text
    return int(value) if value.is_integer() and abs(value) < 2**53 and "e" not in text.lower() else value


def show_value(value: Any) -> str:
    """A value as a form has it: a text as it is, all else as JSON has it, empty if it is missing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return msgspec.json.encode(value).decode()


def make_fields(
    model: LoadedModel, instance: Mapping[str, Any], initial: Mapping[str, Any], faults: Iterable[Any] = ()
) -> list[Field]:
    """The fields of a form with the values of `instance`, and what is wrong with them."""
    fields = [_field(model, feature, instance, initial) for feature in model.schema.features]
    by_name = {one.name: one for one in fields}
    for fault in faults:
        if fault.feature in by_name:
            by_name[fault.feature].faults.append(fault.reason)
    return fields


def _field(model: LoadedModel, feature: Feature, instance: Mapping[str, Any], initial: Mapping[str, Any]) -> Field:
    name = feature.name
    value, first = show_value(instance[name]), show_value(initial[name])
    label = model.manifest.feature_labels.get(name, name)
    choices = tuple(dict.fromkeys(map(show_value, feature.categories)))
    control: Control = "number"
    low, high, step = 0.0, 0.0, 1.0
    match feature.kind:
        case "boolean":
            control, choices = "choice", ("true", "false")
        case "category":
            control = "search" if feature.open or len(choices) > MAX_OPTIONS else "choice"
        case "text":
            control = "text"
        case "datetime":
            is_date = (feature.format and "%H" not in feature.format) or all(len(one) == 10 for one in (value, first))
            is_known = all(not one or are_times([one]) for one in (value, first))
            control = "date" if is_date and is_known else "time"
        case _:
            low, high, step = _slider(feature)
    return Field(
        name=name,
        label=label,
        control=control,
        value=value,
        initial=first,
        is_nullable=feature.nullable,
        choices=choices,
        minimum=feature.minimum,
        maximum=feature.maximum,
        low=low,
        high=high,
        step=step,
        max_length=feature.max_length,
        bins=_bins(model, name, low, high),
    )


def _bins(model: LoadedModel, name: str, low: float, high: float) -> tuple[tuple[float, float, float], ...]:
    """The density of a feature in training between the ends of its slider."""
    found = model.manifest.distributions
    one = found.features.get(name) if found else None
    if one is None or not one.edges or not low < high:
        return ()
    spans = [(left, right, share) for (left, right), share in zip(pairwise(one.edges), one.shares, strict=True)]
    densities = [share / (right - left) if right > left else 0.0 for left, right, share in spans]
    highest, scale = max(densities, default=0.0) or 1.0, 100 / (high - low)
    return tuple(
        (round((left - low) * scale, 2), round((right - left) * scale, 2), round(100 * density / highest, 1))
        for (left, right, _), density in zip(spans, densities, strict=True)
    )


def _slider(feature: Feature) -> tuple[float, float, float]:
    """The ends of a slider, which are those of the sample, and its step."""
    low, high = feature.seen or (feature.minimum, feature.maximum)
    if low is None or high is None or not low < high or not math.isfinite(high - low):
        return 0.0, 0.0, 1.0
    if feature.kind == "integer":
        return low, high, float(max(1, round((high - low) / SLIDER_STEPS)))
    # a power of ten, so that the values of the slider have few digits
    return low, high, 10.0 ** math.floor(math.log10((high - low) / SLIDER_STEPS * 2))
