"""The features of one model together: JSON instances become rows, and rows instances again; faults are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from registry.errors import Fault, InvalidRows, NestedTooDeep
from registry.rows.features import UNLISTED, Feature, Input, Rows

MAX_LEVELS = 16
"""Levels of arrays and objects; an instance in a request needs four."""


CODED = frozenset({"category", "text", "datetime"})
"""Kinds whose cells in a row are not the values that an estimator takes."""


class Schema:
    """The features of one model, in the order of its rows, and the form of the table that it takes."""

    def __init__(self, features: Sequence[Feature], input: Input = "array") -> None:  # noqa: A002 - as in the manifest
        self.features = tuple(features)
        self.input = input
        self.names = tuple(feature.name for feature in features)
        self._encoders = tuple(feature.encoder() for feature in features)
        self._positions = {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def has_text(self) -> bool:
        """True if rows are arrays of objects, which hold texts."""
        return any(feature.kind == "text" for feature in self.features)

    @cached_property
    def dtype(self) -> type:
        """The type of the cells of rows."""
        return object if self.has_text else np.float64

    @cached_property
    def takes_missing(self) -> bool:
        """True if a row may contain NaN."""
        return any(feature.nullable for feature in self.features)

    def rows(self, instances: Sequence[Any]) -> Rows:
        """JSON instances (objects by name, or arrays in order) as rows of shape (instances, features).

        Raises InvalidRows naming instance and feature, NestedTooDeep for a value that cannot be an instance.
        """
        if not instances:
            raise InvalidRows([Fault(0, None, "there must be at least one instance")])
        faults: list[Fault] = []
        table = []
        for index, instance in enumerate(instances):
            table.append(self._cells(index, instance, type(instances[0]), faults))
            if len(faults) >= InvalidRows.LIMIT:
                break
        if faults:
            if any(depth(instance) > MAX_LEVELS - 2 for instance in instances):
                raise NestedTooDeep(faults)
            raise InvalidRows(faults)
        return np.array(table, dtype=self.dtype)

    def fitting_rows(self, instances: Sequence[Any]) -> tuple[Rows, list[int]]:
        """The rows of those instances that fit, shape (fitting, features), and their indices."""
        rows, places = [], []
        for place, instance in enumerate(instances):
            try:
                rows.append(self.rows([instance])[0])
            except InvalidRows:
                continue
            places.append(place)
        return np.array(rows, dtype=self.dtype).reshape(len(rows), len(self)), places

    def _cells(self, index: int, instance: Any, kind: type, faults: list[Fault]) -> list[Any]:
        if type(instance) is not kind or not isinstance(instance, dict | list):
            shape = {"dict": "an object, like the first", "list": "an array, like the first"}
            faults.append(Fault(index, None, f"must be {shape.get(kind.__name__, 'an object or an array')}"))
            return []
        if isinstance(instance, list):
            if len(instance) != len(self.names):
                faults.append(Fault(index, None, f"must have {len(self.names)} values, has {len(instance)}"))
                return []
            return self._encode(index, zip(self.names, self._encoders, instance, strict=True), faults)
        if instance.keys() != self._positions.keys():
            faults.extend(self.misnamed(index, instance))
        encoders = zip(self.names, self._encoders, strict=True)
        present = [(name, encode, instance[name]) for name, encode in encoders if name in instance]
        return self._encode(index, present, faults)

    def _encode(self, index: int, values: Any, faults: list[Fault]) -> list[Any]:
        cells = []
        for name, encode, value in values:
            try:
                cells.append(encode(value))
            except ValueError as error:
                faults.append(Fault(index, name, str(error)))
        return cells

    def misnamed(self, index: int, instance: Mapping[str, Any]) -> list[Fault]:
        """The faults of an instance whose names are not those of the features."""
        missing = [Fault(index, name, "is missing") for name in self.names if name not in instance]
        # only as many as are shown: an object may have hundreds of thousands
        unknown = islice((name for name in instance if name not in self._positions), InvalidRows.LIMIT)
        # an unknown name is the client's own text, and shown only if it is short and printable
        shown = [name if len(name) <= 64 and name.isprintable() else "(unreadable)" for name in unknown]
        return missing + [Fault(index, name, "is not a feature of this model") for name in shown]

    def instance(self, row: Sequence[Any]) -> dict[str, Any]:
        """The instance of a row, in the user's own terms."""
        return {f.name: f.decode(cell) for f, cell in zip(self.features, row, strict=True)}

    def usual(self, rows: Rows) -> dict[str, Any]:
        """A made-up instance like `rows`, shape (rows, features), and the row of nobody in particular."""
        return {feature.name: feature.usual(rows[:, index]) for index, feature in enumerate(self.features)}

    @cached_property
    def strings(self) -> frozenset[str]:
        """The names of features that take strings only."""
        return frozenset(
            feature.name
            for feature in self.features
            if feature.kind in ("text", "datetime")
            or (feature.kind == "category" and all(type(value) is str for value in feature.categories))
        )

    @cached_property
    def is_plain(self) -> bool:
        """True if rows are given to the estimator as they are."""
        return self.input == "array" and not any(feature.kind in CODED for feature in self.features)

    def sent(self, row: Sequence[Any], instance: Any) -> dict[str, Any]:
        """The instance of a row, with what was sent where an open category does not list it."""
        shown = self.instance(row)
        if UNLISTED in shown.values():
            values = instance if isinstance(instance, dict) else dict(zip(self.names, instance, strict=True))
            shown |= {feature.name: values[feature.name] for feature in self.features if feature.open}
        return shown

    def table(self, rows: Rows) -> Any:
        """Rows in the form that the estimator was fitted on; it may change this table, but not the rows."""
        if self.is_plain:
            return rows.copy()
        if self.input == "array":
            return self._array(rows)
        return self.frame(rows) if self.input == "frame" else self.frame(rows).iloc[:, 0]

    def _array(self, rows: Rows) -> Any:
        """Rows as the array that the estimator was fitted on: of numbers if there are no strings among the values."""
        columns = [np.asarray(f.column(rows[:, i])) for i, f in enumerate(self.features)]
        table = np.empty(rows.shape, object if any(column.dtype.kind in "OUT" for column in columns) else np.float64)
        for index, column in enumerate(columns):
            table[:, index] = column
        return table

    def frame(self, rows: Rows) -> pd.DataFrame:
        """Rows as a DataFrame with the columns and dtypes that the estimator was fitted on."""
        if self._is_one_block:  # one block for all columns: 0.04 ms for 500 of them instead of 10
            return pd.DataFrame(np.array(rows, np.float64), columns=list(self.names))
        return pd.DataFrame({f.name: f.column(rows[:, i]) for i, f in enumerate(self.features)}, copy=False)

    @cached_property
    def _is_one_block(self) -> bool:
        return all(f.dtype == "float64" and f.kind in ("number", "integer") for f in self.features)

    @cached_property
    def object_schema(self) -> dict[str, Any]:
        """JSON Schema of an instance by feature name."""
        return {
            "type": "object",
            "properties": {feature.name: feature.json_schema() for feature in self.features},
            "required": list(self.names),
            "additionalProperties": False,
        }

    @cached_property
    def array_schema(self) -> dict[str, Any]:
        """JSON Schema of an instance as an array in schema order."""
        return {
            "type": "array",
            "prefixItems": [feature.json_schema() for feature in self.features],
            "minItems": len(self),
            "maxItems": len(self),
        }


def depth(value: Any) -> int:
    """Levels of arrays and objects, counted up to MAX_LEVELS + 1; iterative, because the value may be hostile."""
    level, levels = [value], 0
    while levels <= MAX_LEVELS:
        level = [
            inner
            for outer in level
            if type(outer) in (list, dict)
            for inner in (outer if type(outer) is list else outer.values())
        ]
        if not level:
            return levels
        levels += 1
    return levels
