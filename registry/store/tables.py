"""Reads a sample of a model's input from a CSV, each column as the fitted estimator knows it.

A CSV has no types. What pandas makes of it ("01069" becomes 1069, "NA" a gap, "true" a boolean) is right for numbers;
where an encoder knows categories that are strings, where a vectorizer takes texts, or where classes are strings, cells
are read as they are written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from registry.errors import CannotAdd
from registry.estimator import input_names, with_categories
from registry.rows.infer_schema import NO_OPTIONS, FeatureOptions, Use, is_named
from registry.store.fitted import uses_of
from registry.store.intake import TRIED_ROWS, answers_to, are_equal

GAPS = frozenset(
    {
        *(
            "",
            " ",
            "#N/A",
            "#N/A N/A",
            "#NA",
            "-1.#IND",
            "-1.#QNAN",
            "-NaN",
            "-nan",
            "1.#IND",
            "1.#QNAN",
            "<NA>",
            "N/A",
        ),
        *("NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    }
)
"""What pandas takes for a gap."""

EMPTY = frozenset({"", " "})
"""Gaps for those who take every letter as it is written."""

CODE = r"0\d+"
"""Digits after a leading zero: a code, such as a postcode, rather than a number."""


def read_table(
    path: Path,
    estimator: Any = None,
    options: FeatureOptions = NO_OPTIONS,
    targets: Sequence[str] = (),
    strings: Collection[str] = (),
) -> pd.DataFrame:
    """A CSV file with a header: the input of `estimator`, and its `targets`. Raises CannotAdd.

    The columns `strings` are known to be such.
    """
    try:
        _check_header(path)
        plain = pd.read_csv(path, dtype=dict.fromkeys(strings, "str"))
        written = _Written(path, plain)
        if estimator is None:
            return plain
        for name, categories in _known_strings(estimator, plain, options, targets).items():
            written.restore(name, categories)
        written.restore_hashed(estimator, [name for name in plain.columns if name not in targets])
        written.restore_codes(estimator, [name for name in plain.columns if name not in targets], options.fractions)
    except (OSError, ValueError) as error:
        raise CannotAdd(f"{path}: {error}") from error
    return written.table


def _check_header(path: Path) -> None:
    """Raises CannotAdd for two columns of the same name, the second of which pandas would rename."""
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    if len(twice := header[header.duplicated() & (header != "")]):
        raise CannotAdd(f"{path}: the header has two columns {twice.iloc[0]!r}")


class _Written:
    """A table whose columns can be put back to what is written in the file."""

    def __init__(self, path: Path, table: pd.DataFrame) -> None:
        self.table = table
        self._path = path

    def cells(self, names: Collection[str]) -> pd.DataFrame:
        return pd.read_csv(self._path, usecols=list(names), dtype=str, keep_default_na=False)

    def restore(self, name: str, categories: Collection[str] | None) -> None:
        """Strings as they are written. What pandas takes for a gap is one, unless it is among the categories.

        Without categories the column holds texts, which have no gaps.
        """
        cells = self.cells([name])[name]
        if categories is not None:
            gaps = GAPS - set(categories)
            cells = cells.mask(cells.isin(list(gaps)))
        self.table = self.table.assign(**{name: cells})

    def restore_hashed(self, estimator: Any, names: Sequence[str]) -> None:
        """Values that the estimator knows by their letters, where pandas would write others: 1069 for 01069."""
        inputs = self._named(estimator, names)
        known = uses_of(estimator, with_categories(estimator, self.table[inputs]))
        for name, uses in zip(inputs, known, strict=True):
            hashed = any(use.role == "written" for use in uses)
            if hashed and (self.table[name].astype(str) != self.cells([name])[name]).any():
                self.restore(name, GAPS - EMPTY)

    def restore_codes(self, estimator: Any, names: Sequence[str], numbers: Collection[str]) -> None:
        """Codes with leading zeros that pandas takes for numbers, if the estimator answers them in another way.

        Not those that an encoder knows as numbers, nor the columns `numbers`.
        """
        inputs = self._named(estimator, names)
        known = uses_of(estimator, with_categories(estimator, self.table[inputs]))
        free = [
            name
            for name, uses in zip(inputs, known, strict=True)
            if pd.api.types.is_integer_dtype(self.table[name]) and not any(use.role == "encoder" for use in uses)
        ]
        if not free:
            return
        cells = self.cells(free)
        codes = [name for name in free if not is_named(name, numbers) and cells[name].str.fullmatch(CODE).any()]
        if not codes:
            return
        of_numbers = answers_to(estimator, self._inputs(estimator, names))
        plain, self.table = self.table, self.table.assign(**{name: cells[name] for name in codes})
        of_codes = answers_to(estimator, self._inputs(estimator, names))
        if of_codes is None or (of_numbers is not None and are_equal(of_codes, of_numbers)):
            self.table = plain

    def _inputs(self, estimator: Any, names: Sequence[str]) -> pd.DataFrame:
        rows = self.table.iloc[:: max(1, len(self.table) // TRIED_ROWS)]
        return rows[self._named(estimator, names)]

    def _named(self, estimator: Any, names: Sequence[str]) -> list[str]:
        """The columns of the estimator's input."""
        expected = input_names(estimator, list(map(str, names)))
        return [name for name in expected or names if name in self.table]


def _known_strings(
    estimator: Any, table: pd.DataFrame, options: FeatureOptions, targets: Sequence[str]
) -> dict[str, Collection[str] | None]:
    """The columns that hold strings whatever they look like: their categories, None for texts."""
    others = [str(name) for name in table.columns if name not in targets]
    names = [name for name in input_names(estimator, others) or others if name in table]
    inputs = with_categories(estimator, table[names])
    found: dict[str, Collection[str] | None] = {}
    for name, uses in zip(names, uses_of(estimator, inputs), strict=True):
        if name in options.text or any(use.role == "text" for use in uses):
            found[name] = None
        elif strings := _strings(uses):
            found[name] = strings
        elif name in options.open or name in options.datetimes:
            found[name] = ()
    classes = getattr(estimator, "classes_", None)
    if len(targets) == 1 and targets[0] in table and isinstance(classes, np.ndarray) and classes.dtype.kind in "OU":
        strings = [value for value in classes.tolist() if isinstance(value, str)]
        if strings:
            found[targets[0]] = strings
    return found


def _strings(uses: Sequence[Use]) -> list[str]:
    return [value for use in uses if use.role == "encoder" for value in use.categories if isinstance(value, str)]
