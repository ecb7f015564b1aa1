"""The importance of features: explanations of many rows, summed up feature by feature."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry.explain.explanation import OTHER, Selection
from registry.rows.features import Feature, Rows
from registry.store.distributions import MIN_COUNT, MIN_ROWS, Distribution

MAX_POINTS = 500
"""Rows of which each has a point; of more, evenly spread ones."""

MAX_POINT_FEATURES = 20
"""Features that have points, or a dependence: the most important ones of each output."""

MAX_PAIRS = 20
"""Pairs of features whose interactions are shown: those with the largest ones of each output."""

MAX_GROUPS = 5
"""Values of a feature that a dependence on another is told apart by."""

Detail = Literal["none", "shares", "rows"]
"""How much is shown of the rows: sums over all of them; points and bins that tell no row; or every chosen row."""

Array = NDArray[np.float64]


def of_all_classes(selection: Selection) -> Selection:
    """What explanations have to show to be summed up: all features, and all classes unless some are listed."""
    return dataclasses.replace(
        selection, top=None, classes="all" if selection.classes == "predicted" else selection.classes
    )


def outputs_of(explanation: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """The target, the class and the numbers of each output in an explanation; names that it does not have are empty.

    The class of an explanation of the predicted class is None, because the next row's may be another.
    """
    targets = explanation.get("targets", {"": explanation})
    for target, of_target in targets.items():
        if "classes" in of_target:
            for name, item in of_target["classes"].items():
                yield target, name, item
        else:
            yield target, None, of_target


class _Sums(msgspec.Struct):
    """Sums over the rows of one output, of shape (features,), and the values of chosen rows."""

    base_value: float
    magnitudes: list[float]
    values: list[float]
    points: list[list[float]] = []
    pairs: list[list[float]] = []
    """Of magnitudes of interactions, shape (features, features); empty where none are explained."""


class _Summed(msgspec.Struct):
    """What has been summed up so far."""

    rows: int = 0
    about: dict[str, Any] = {}
    """What all explanations say alike."""
    names: list[str] = []
    """Of the features in explanations."""
    cells: list[list[Any]] = []
    """The chosen rows."""
    sums: dict[str, dict[str, _Sums]] = {}
    """By target and class; the name of what there is only one of is empty."""


class Importance:
    """Sums up explanations as they are answered, without holding them."""

    def __init__(
        self,
        features: Sequence[Feature],
        rows: int,
        *,
        detail: Detail,
        first: int = 0,
        distributions: Mapping[str, Distribution] | None = None,
        pair: tuple[str, str] | None = None,
    ) -> None:
        """Of `rows` rows in all those from the `first` on; `distributions` have the bins of dependences, by feature.

        Of a `pair` the dependence on the first feature is told apart by the values of the second.
        """
        self._features = {feature.name: index for index, feature in enumerate(features)}
        self._kinds = features
        self._detail = detail
        self._distributions = distributions or {}
        self._pair = pair
        self._stride = max(1, -(-rows // MAX_POINTS))
        self._first = first
        self._found = _Summed()

    def add(self, explanations: Sequence[Mapping[str, Any]], rows: Rows) -> None:
        """Add rows, shape (rows, features), and their explanations."""
        found = self._found
        if not explanations:
            return
        if not found.about:
            kept = ("space", "method", "sampled", "labels")
            found.about = {name: explanations[0][name] for name in kept if name in explanations[0]}
        values: dict[tuple[str, str], list[list[float]]] = {}
        pairs: dict[tuple[str, str], list[list[list[float]]]] = {}
        base_values: dict[tuple[str, str], float] = {}
        for explanation in explanations:
            for target, name, item in outputs_of(explanation):
                found.names = found.names or list(item["values"])
                key = (target, name or "")
                values.setdefault(key, []).append(list(item["values"].values()))
                base_values[key] = item["base_value"]
                if "interactions" in item:
                    pairs.setdefault(key, []).append([list(one.values()) for one in item["interactions"].values()])
        chosen = self._chosen(len(explanations))
        for (target, name), of_rows in values.items():
            table = np.array(of_rows)
            magnitudes, sums = np.abs(table).sum(axis=0).tolist(), table.sum(axis=0).tolist()
            points = [of_rows[place] for place in chosen]
            both = np.abs(pairs[target, name]).sum(axis=0).tolist() if (target, name) in pairs else []
            self._add(target, name, _Sums(base_values[target, name], magnitudes, sums, points, both))
        found.cells += rows[chosen].tolist()
        found.rows += len(explanations)

    def _chosen(self, count: int) -> list[int]:
        """Which of the next rows have a point."""
        if self._detail == "none":
            return []
        next_row = self._first + self._found.rows
        return list(range(-next_row % self._stride, count, self._stride))

    def _add(self, target: str, name: str, more: _Sums) -> None:
        by_class = self._found.sums.setdefault(target, {})
        if name not in by_class:
            by_class[name] = msgspec.structs.replace(more, points=list(more.points))
            return
        sums = by_class[name]
        sums.magnitudes = np.add(sums.magnitudes, more.magnitudes).tolist()
        sums.values = np.add(sums.values, more.values).tolist()
        sums.points += more.points
        if more.pairs:
            sums.pairs = np.add(sums.pairs, more.pairs).tolist()

    def packed(self) -> bytes:
        """What has been summed up, for `merge`."""
        return msgspec.msgpack.encode(self._found)

    def merge(self, packed: bytes) -> None:
        """Add what another one has summed up of later rows."""
        more, found = msgspec.msgpack.decode(packed, type=_Summed), self._found
        found.about, found.names = found.about or more.about, found.names or more.names
        found.rows += more.rows
        found.cells += more.cells
        for target, by_class in more.sums.items():
            for name, sums in by_class.items():
                self._add(target, name, sums)

    def result(self) -> dict[str, Any]:
        """The importance of all features, the largest first: the mean of |SHAP|, and over outputs if there are several.

        `mean` is that of the values with their signs.
        """
        found = self._found
        cells = np.array(found.cells, object)
        outputs = [
            self._output(target, name, sums, cells)
            for target, by_class in found.sums.items()
            for name, sums in by_class.items()
        ]
        return {"rows": found.rows, **found.about, "importance": _mean_importance(outputs), "outputs": outputs}

    def _output(self, target: str, name: str, sums: _Sums, cells: Any) -> dict[str, Any]:
        names, rows = self._found.names, self._found.rows
        importance, means = np.array(sums.magnitudes) / rows, np.array(sums.values) / rows
        order = np.argsort(-importance, kind="stable").tolist()
        found: dict[str, Any] = {} if not target else {"target": target}
        found |= {"class": name} if name else {}
        found["base_value"] = sums.base_value
        found["importance"] = {names[index]: float(importance[index]) for index in order}
        found["mean"] = {names[index]: float(means[index]) for index in order}
        if sums.pairs:
            found["interactions"] = _largest_pairs(names, np.array(sums.pairs) / rows)
        if self._detail == "none" or (self._detail == "shares" and rows < MIN_ROWS):
            return found
        points = np.array(sums.points)
        shown = [(names[index], points[:, index]) for index in order[:MAX_POINT_FEATURES]]
        found["points"] = {feature: self._points(feature, values, cells) for feature, values in shown}
        if self._detail == "shares":
            curves = {feature: self._dependence(feature, values, cells) for feature, values in shown}
            found["dependence"] = {feature: curve for feature, curve in curves.items() if curve is not None}
            if self._pair is not None and self._pair[0] in names:
                by_other = self._dependence_by(*self._pair, points[:, names.index(self._pair[0])], cells)
                found |= {} if by_other is None else {"dependence_by": by_other}
        return found

    def _points(self, name: str, values: Array, cells: Any) -> dict[str, Any]:
        """A point a row: its SHAP value, rounded, and its feature's value.

        Where rows are not to be told, the points are sorted, so that those of two features cannot be joined, and a
        feature's value is a tenth: 0 for the smallest values of the chosen rows, 1 for the largest.
        """
        index = self._features.get(name)
        column = None if index is None else cells[:, index]
        if self._detail == "rows":
            shap = [float(f"{value:.6g}") for value in values.tolist()]
            if column is None or index is None:
                return {"shap": shap}
            return {"shap": shap, "value": [self._kinds[index].decode(cell) for cell in column]}
        order = np.argsort(values, kind="stable")
        found: dict[str, Any] = {"shap": [float(f"{value:.3g}") for value in values[order].tolist()]}
        if column is None or index is None or self._kinds[index].kind in ("text", "category"):
            return found
        return found | {"rank": [None if np.isnan(one) else float(one) for one in _tenths(column)[order]]}

    def _dependence(self, name: str, values: Array, cells: Any) -> dict[str, Any] | None:
        """The mean SHAP value by the bins or values of the feature's distribution; None of a bin with few rows."""
        bins = self._bins(name, cells)
        return None if bins is None else bins.described() | {"mean": [_mean(values, rows) for rows in bins.inside]}

    def _dependence_by(self, name: str, other: str, values: Array, cells: Any) -> dict[str, Any] | None:
        """The same for each value, or half of the values, of another feature; in wider bins, to have enough rows."""
        bins, others = self._bins(name, cells), self._bins(other, cells)
        if bins is None or others is None:
            return None
        bins, others = bins.merged(4 * MIN_COUNT), others.merged(int(0.4 * len(values)))
        groups = [
            one.described() | {"mean": [_mean(values, rows & one.inside[0]) for rows in bins.inside]}
            for one in others.each()[:MAX_GROUPS]
        ]
        return {"feature": name, "by": other, **bins.described(), "groups": groups}

    def _bins(self, name: str, cells: Any) -> _Bins | None:
        """The bins of a feature's distribution; None if it has none."""
        index, bins = self._features.get(name), self._distributions.get(name)
        if index is None or bins is None or not bins.shares:
            return None
        feature = self._kinds[index]
        column = cells[:, index]
        if feature.kind == "text":
            column = [np.nan if cell is None else len(cell) for cell in column]
        column = np.asarray(column, np.float64)
        known = ~np.isnan(column)
        coded = feature.kind in ("category", "boolean", "datetime")
        shown = [feature.decode(one) if coded else one for one in bins.values or bins.edges]
        if bins.values:
            return _Bins(shown, [known & (column == value) for value in bins.values], has_edges=False)
        places = np.searchsorted(bins.edges[1:-1], column, side="right")
        return _Bins(shown, [known & (places == place) for place in range(len(bins.edges) - 1)], has_edges=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Bins:
    """Values, or bounds of bins, and which rows are inside."""

    shown: list[Any]
    inside: list[NDArray[np.bool_]]
    has_edges: bool

    def described(self) -> dict[str, Any]:
        return {"edges" if self.has_edges else "values": self.shown}

    def merged(self, least: int) -> _Bins:
        """Neighbouring bins joined until each has at least so many rows; values stay as they are."""
        if not self.has_edges:
            return self
        edges, joined = [self.shown[0]], []
        rows = np.zeros(len(self.inside[0]), bool)
        for edge, inside in zip(self.shown[1:], self.inside, strict=True):
            rows = rows | inside
            if rows.sum() >= least:
                edges.append(edge)
                joined.append(rows)
                rows = np.zeros(len(rows), bool)
        if not joined:
            return _Bins([self.shown[0], self.shown[-1]], [rows], has_edges=True)
        edges[-1], joined[-1] = self.shown[-1], joined[-1] | rows  # what is left is too little for a bin
        return _Bins(edges, joined, has_edges=True)

    def each(self) -> list[_Bins]:
        """Every bin by itself."""
        width = 2 if self.has_edges else 1
        return [
            _Bins(self.shown[place : place + width], [rows], has_edges=self.has_edges)
            for place, rows in enumerate(self.inside)
        ]


def _mean(values: Array, rows: NDArray[np.bool_]) -> float | None:
    return float(values[rows].mean()) if rows.sum() >= MIN_COUNT else None


def _largest_pairs(names: Sequence[str], pairs: Array) -> list[dict[str, Any]]:
    """The pairs that do most together; each is there twice, in either order."""
    first, second = np.triu_indices(len(names), 1)
    effects = pairs[first, second] + pairs[second, first]
    return [
        {"features": [names[first[place]], names[second[place]]], "mean": float(effects[place])}
        for place in np.argsort(-effects, kind="stable")[:MAX_PAIRS]
    ]


def _tenths(column: Any) -> Array:
    """For each cell how many of the others are smaller, rounded to tenths; NaN for a missing one."""
    cells = np.asarray(column, np.float64)
    known = np.sort(cells[~np.isnan(cells)])
    shares = (np.searchsorted(known, cells, "left") + np.searchsorted(known, cells, "right") - 1) / 2
    ranks: Array = np.round(shares / max(1, len(known) - 1), 1)
    ranks[np.isnan(cells)] = np.nan
    return ranks


def _mean_importance(outputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over outputs, the largest first."""
    names = list(outputs[0]["importance"])
    means = {name: sum(output["importance"][name] for output in outputs) / len(outputs) for name in names}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def select_importance(found: Mapping[str, Any], classes: Sequence[str] | None, top: int | None) -> dict[str, Any]:
    """What was summed up, for some classes and the `top` features, the others as one sum; None for all."""
    outputs = [one for one in found["outputs"] if classes is None or one.get("class") in classes]
    shown = [
        one
        | {"importance": _cut(one["importance"], top)}
        | {part: dict(list(one[part].items())[:top]) for part in ("mean", "points") if part in one}
        for one in outputs
    ]
    for one in shown:
        if "dependence" in one:
            one["dependence"] = {name: curve for name, curve in one["dependence"].items() if name in one["points"]}
    return {**found, "importance": _cut(_mean_importance(outputs), top), "outputs": shown}


def _cut(values: Mapping[str, float], top: int | None) -> dict[str, float]:
    items = list(values.items())
    shown = dict(items[:top])
    if len(shown) < len(items):
        shown[OTHER] = shown.get(OTHER, 0.0) + sum(value for _, value in items[top:])
    return shown
