"""Distributions of a model's features and outputs over its sample: what is usual, and no single row of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry.outputs import Layout
from registry.rows.features import DAY_MICROSECONDS, Feature, Rows

BINS = 10
MAX_ROWS = 10_000
"""Rows that are counted, evenly spread."""

MIN_ROWS = 20
"""Known values of a column that is described."""

MIN_COUNT = 5
"""Rows that have a value which is named; rarer ones are counted together."""

MAX_BYTES = 9_900
"""All distributions in a manifest; where there are more, those of the most important features are kept."""

STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
"""Widths of bins, times a power of ten; neighbours are so close that a range takes at least seven bins."""


class Distribution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How often values occur, in thousandths of the rows.

    `shares` are those of the `values`, cells of rows; what is left are other values. Without `values` they are those of
    ten bins of equal width from `low` to `high`, of which the first and the last also hold what lies outside. Both
    bounds are multiples of the bins' width, and so those of no row. Without shares too little is known. A text is
    counted by its characters.
    """

    low: float = 0.0
    high: float = 0.0
    values: tuple[float, ...] = ()
    shares: tuple[int, ...] = ()
    missing: int = 0

    @property
    def edges(self) -> list[float]:
        """The bounds of the bins, one more than there are bins; empty for listed values."""
        if self.values or not self.shares:
            return []
        step = (self.high - self.low) / len(self.shares)
        return [float(f"{self.low + step * place:.12g}") for place in range(len(self.shares))] + [self.high]


class Distributions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Distributions over `rows` of the sample: of features by name, and of the predicted labels or values by target.

    The target of a model that has one has the name "".
    """

    rows: int
    features: dict[str, Distribution]
    outputs: dict[str, Distribution]

    def trimmed(self, importance: Mapping[str, float]) -> Distributions:
        """As many as MAX_BYTES hold: first of outputs, then of features, the most important ones first."""
        left = MAX_BYTES - 100

        def fits(name: str, one: Distribution) -> bool:
            nonlocal left
            left -= _bytes_in_manifest(name, one)
            return left >= 0

        outputs = dict(takewhile(lambda item: fits(*item), self.outputs.items()))
        ranked = sorted(self.features.items(), key=lambda item: -importance.get(item[0], 0.0))
        kept = dict(takewhile(lambda item: fits(*item), ranked))
        features = {name: one for name, one in self.features.items() if name in kept}
        return Distributions(rows=self.rows, features=features, outputs=outputs)


def describe(features: Sequence[Feature], rows: Rows, layout: Layout, outputs: NDArray[np.float64]) -> Distributions:
    """The distributions of all columns of `rows`, shape (rows, features), and of their outputs."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(MAX_ROWS, len(rows))).astype(int))
    rows, outputs = rows[places], outputs[places]
    found = {feature.name: _of_feature(feature, rows[:, index]) for index, feature in enumerate(features)}
    return Distributions(
        rows=len(rows),
        features={name: one for name, one in found.items() if one is not None},
        outputs=dict(_of_outputs(layout, outputs)),
    )


def _of_outputs(layout: Layout, outputs: NDArray[np.float64]) -> Iterator[tuple[str, Distribution]]:
    for index, target in enumerate(layout.targets):
        if "value" in layout.parts:
            made = _binned(outputs[:, layout.columns[index]["value"].start], len(outputs))
        elif "label" in layout.parts or "probabilities" in layout.parts:
            made = _listed(layout.label_indices(outputs, index).astype(np.float64), len(outputs))
        else:
            made = None
        if made is not None:
            yield target.name, made


def _of_feature(feature: Feature, cells: Rows) -> Distribution | None:
    if feature.kind == "text":
        cells = np.array([math.nan if cell is None else len(cell) for cell in cells])
    column = np.asarray(cells, np.float64)
    known = column[np.isfinite(column)]
    if feature.kind in ("category", "boolean"):
        if feature.open:
            known = known[known < len(feature.categories)]  # an unlisted value is somebody's own
        found = _listed(known, len(column))
    else:
        found = _binned(known, len(column), DAY_MICROSECONDS if feature.kind == "datetime" else 0)
    missing = round(1000 * float(np.isnan(column).mean()))
    if found is None:
        return Distribution(missing=missing) if missing else None
    return msgspec.structs.replace(found, missing=missing)


def _listed(known: NDArray[np.float64], rows: int) -> Distribution | None:
    """The commonest values."""
    if len(known) < MIN_ROWS:
        return None
    values, counts = np.unique(known, return_counts=True)
    order = [place for place in np.argsort(-counts, kind="stable")[:BINS] if counts[place] >= MIN_COUNT]
    if not order:
        return None
    return Distribution(values=tuple(values[order].tolist()), shares=_thousandths(counts[order], rows))


def _binned(known: NDArray[np.float64], rows: int, unit: int = 0) -> Distribution | None:
    """The few values that there are, or ten bins; their width is a multiple of the `unit` if it is that long."""
    if len(known) < MIN_ROWS:
        return None
    values, counts = np.unique(known, return_counts=True)
    if len(values) <= BINS and counts.min() >= MIN_COUNT:
        return Distribution(values=tuple(values.tolist()), shares=_thousandths(counts, rows))
    low, high = (float(bound) for bound in np.percentile(known, (1.0, 99.0)))
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = float(values[0]), float(values[-1])
    bounds = _round_bounds(low, high, unit)
    if bounds is None:
        return None
    counted, _ = np.histogram(np.clip(known, *bounds), BINS, bounds)
    return Distribution(low=bounds[0], high=bounds[1], shares=_thousandths(counted, rows))


def _round_bounds(low: float, high: float, unit: int) -> tuple[float, float] | None:
    """Bounds around `low` and `high` that are multiples of a round width; None where numbers have no room for them."""
    width = high / BINS - low / BINS
    if not width > 1e-290 or not math.isfinite(width):
        return None
    power = 10.0 ** math.floor(math.log10(width))
    for step in (power * step for step in STEPS):
        whole = math.ceil(step / unit) * unit if unit and width >= unit else step
        first = math.floor(low / whole) * whole
        if first + BINS * whole >= high and first < first + whole:
            bounds = float(f"{first:.12g}"), float(f"{first + BINS * whole:.12g}")
            return bounds if all(map(math.isfinite, bounds)) and bounds[0] < bounds[1] else None
    return None


def _thousandths(counts: Any, rows: int) -> tuple[int, ...]:
    return tuple(np.round(1000 * np.asarray(counts) / rows).astype(int).tolist())


def _bytes_in_manifest(name: str, one: Distribution) -> int:
    """Bytes that a distribution takes in a manifest, whose lines are indented."""
    content = msgspec.json.format(msgspec.json.encode({name: one}), indent=1)
    return len(content) + 3 * content.count(b"\n")
