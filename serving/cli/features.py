"""The options of `forkserve add` for single columns, and the table of what a model takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from serving.cli.command import Argument, argument, repeated

if TYPE_CHECKING:
    from registry.rows.features import Feature
    from registry.rows.infer_schema import FeatureOptions

MARGINS = {"none": None, "wide": 1.0, "seen": 0.0, "enforce": 1.0}

COLUMN = "COL"


def _column(name: str, text: str) -> Argument:
    return repeated(name, text, metavar=COLUMN)


COLUMN_ARGUMENTS = (
    repeated("--text", "a column of texts, of at most LENGTH characters (default 10000)", metavar="COL[:LENGTH]"),
    _column("--open", "a column of categories that takes any other string, too"),
    _column("--closed", "a column of categories that takes no other string; * is every column"),
    _column("--nullable", "a column whose values may be missing"),
    _column("--required", "a column whose values may not be missing, whatever the pipeline takes; * is every column"),
    _column("--float", "a column of whole numbers that takes fractions, too"),
    _column("--datetime", "a column of dates or times in ISO 8601"),
    argument(
        "--bounds",
        choices=tuple(MARGINS),
        default="none",
        help="numbers to accept: all that fit (default); as far outside the range seen as it is wide (wide, enforce); "
        "only that range (seen)",
    ),
)


def feature_options(arguments: argparse.Namespace) -> FeatureOptions:
    """The options of single columns."""
    from registry.rows.features import MAX_TEXT_CHARACTERS
    from registry.rows.infer_schema import FeatureOptions

    texts = {}
    for column in arguments.text:
        name, _, length = column.rpartition(":")
        texts.update({name: int(length)} if name and length.isdecimal() else {column: MAX_TEXT_CHARACTERS})
    return FeatureOptions(
        text=texts,
        open=arguments.open,
        closed=arguments.closed,
        nullable=arguments.nullable,
        required=arguments.required,
        fractions=arguments.float,
        datetimes=arguments.datetime,
    )


def feature_table(features: Sequence[Feature]) -> Iterator[str]:
    """The lines of a table: what each feature takes, and where that comes from."""
    rows = [("feature", "takes", "missing", "seen", "decided by")]
    rows += [
        (feature.name, takes(feature), "yes" if feature.nullable else "no", _seen(feature), feature.origin or "sample")
        for feature in features
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def takes(feature: Feature) -> str:
    """The values of a feature in a few words."""
    match feature.kind:
        case "text":
            return f"text of at most {feature.max_length} characters"
        case "datetime":
            return f"datetime, as {feature.format or feature.dtype}"
        case "category":
            return f"category, {len(feature.categories)} listed{' or any other string' if feature.open else ' only'}"
        case "boolean":
            return "boolean"
    low, high = feature.minimum, feature.maximum
    if feature.seen is None or low is None or high is None or low <= feature.seen[0] - LIMITLESS:
        return feature.kind
    return f"{feature.kind} from {low:g} to {high:g}"


LIMITLESS = 2.0**52
"""A bound that lies so far outside is the column's own."""


def _seen(feature: Feature) -> str:
    return f"{feature.seen[0]:g} to {feature.seen[1]:g}" if feature.seen else ""
