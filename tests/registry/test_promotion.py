"""What keeps a new version from taking the place of the live one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from harness.training import small_table
from registry.model import LoadedModel
from registry.rows.features import Feature
from registry.store.add import add_trained, add_version
from registry.store.manifest import Manifest
from registry.training.candidates import HeldOut
from registry.training.promotion import Measured, find_breaches, find_decline, find_losses, measure_both
from registry.training.script import Trained

WORDS = ("high", "low")


def add_plane(root: Path, table: pd.DataFrame | None = None, **options: Any) -> LoadedModel:
    """A version of a linear model."""
    table = small_table() if table is None else table
    estimator = LinearRegression().fit(table[["x", "y"]].to_numpy(), table["z"])
    return add_trained(root, "plane", Trained(estimator=estimator, sample=table, target="z", margin=1.0), **options)


@pytest.fixture
def live(tmp_path: Path) -> LoadedModel:
    return add_plane(tmp_path)


def changed(manifest: Manifest, **changes: Any) -> Manifest:
    """With its second feature changed."""
    first, second = manifest.features
    return msgspec.structs.replace(manifest, features=(first, msgspec.structs.replace(second, **changes)))


BREACHES: list[tuple[dict[str, Any], str]] = [
    ({"name": "why"}, "its features, or their order, differ from those of the live version"),
    ({"kind": "integer"}, "y is of kind integer, not number"),
    ({"minimum": 0.0}, "y has a higher minimum"),
    ({"maximum": 0.0}, "y has a lower maximum"),
]


@pytest.mark.parametrize(("changes", "breach"), BREACHES)
def test_request_that_worked_and_would_not_is_a_breach(live: LoadedModel, changes: Any, breach: str) -> None:
    assert find_breaches(live.manifest, changed(live.manifest, **changes)) == [breach]


def test_same_or_wider_features_are_none(live: LoadedModel) -> None:
    assert find_breaches(live.manifest, live.manifest) == []
    wider = changed(live.manifest, minimum=None, maximum=1e9, nullable=True)
    assert find_breaches(live.manifest, wider) == []
    assert find_breaches(wider, live.manifest) == ["y must not be missing any more"]


def test_category_that_is_lost_and_classes_in_another_order_are_breaches(live: LoadedModel) -> None:
    before = changed(live.manifest, kind="category", categories=("a", "b"))
    assert find_breaches(before, changed(before, categories=("b", "a", "c"))) == []
    assert find_breaches(before, changed(before, categories=("b",))) == ["y lacks 1 of its categories"]
    classes = msgspec.structs.replace(live.manifest, classes=WORDS)
    assert find_breaches(classes, msgspec.structs.replace(classes, classes=WORDS[::-1])) == [
        "its classes differ from those of the live version"
    ]


TEXT = {"kind": "text", "max_length": 100}
OPEN = {"kind": "category", "categories": ("a", "b"), "open": True}
KINDS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kind": "integer"}, {"kind": "number"}, ""),
    (OPEN, {**OPEN, "categories": ("a",)}, ""),
    (OPEN, {**OPEN, "open": False}, "y takes no categories any more that are not listed"),
    (OPEN, TEXT, ""),
    ({**OPEN, "open": False}, OPEN, ""),
    ({**OPEN, "open": False}, TEXT, ""),
    ({**OPEN, "categories": (1, 2), "open": False}, {"kind": "integer"}, ""),
    ({**OPEN, "categories": ("1", "2"), "open": False}, {"kind": "integer"}, "y lacks 2 of its categories"),
    ({**OPEN, "categories": ("2024-05-01",), "open": False}, {"kind": "datetime"}, ""),
    ({**OPEN, "categories": ("2024-05-01", "x"), "open": False}, {"kind": "datetime"}, "y lacks 1 of its categories"),
    (TEXT, {**TEXT, "max_length": 10}, "y takes texts of 10 characters only"),
    (TEXT, {**TEXT, "max_length": 1000}, ""),
    (TEXT, OPEN, "y is of kind category, not text"),
    ({"kind": "datetime"}, {"kind": "datetime", "format": "%Y-%m-%d"}, "y takes no times as fine any more"),
    ({"kind": "datetime", "format": "%Y-%m-%d"}, {"kind": "datetime"}, ""),
]


@pytest.mark.parametrize(("before", "after", "breach"), KINDS)
def test_features_of_all_kinds_may_become_wider(live: LoadedModel, before: Any, after: Any, breach: str) -> None:
    unbounded = {"minimum": None, "maximum": None}
    found = find_breaches(changed(live.manifest, **unbounded, **before), changed(live.manifest, **unbounded, **after))
    assert found == ([breach] if breach else [])


def test_model_that_was_compiled_and_explained_must_be_again(live: LoadedModel) -> None:
    assert find_losses(live, live) == []
    assert find_losses(live, replace(live, compiled=False, explainer=None)) == [
        "it cannot be compiled, so it would be many times slower",
        "it has no explainer",
    ]
    assert find_losses(replace(live, compiled=False, explainer=None), live) == []


METRICS = {"r2": 0.8, "mean_absolute_error": 10.0}


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({}, []),
        ({"r2": 0.79, "mean_absolute_error": 10.1}, []),
        ({"r2": 0.77}, ["r2"]),
        ({"mean_absolute_error": 10.3}, ["mean_absolute_error"]),
        ({"r2": float("nan")}, ["r2"]),
        ({"r2": 0.99, "mean_absolute_error": 1.0}, []),
    ],
)
def test_scores_may_fall_and_errors_may_grow_by_the_tolerance(changes: dict[str, float], worse: list[str]) -> None:
    found = find_decline("regression", Measured(METRICS | changes, METRICS, 10), 0.02)
    assert [reason.split()[0] for reason in found] == worse


def test_without_a_common_metric_nothing_goes_live_but_where_there_is_no_truth() -> None:
    nothing = Measured({}, METRICS, 0)
    assert find_decline("regression", nothing, 0.02) == ["it has no metric in common with the live version"]
    assert find_decline("clustering", nothing, 0.02) == []


def test_both_are_measured_on_the_rows_that_both_take(live: LoadedModel, tmp_path: Path) -> None:
    table = small_table()
    new = add_plane(tmp_path, table.assign(x=table["x"] * 100))
    rows = table[["x", "y"]].to_numpy(copy=True)
    rows[:10, 0] = 200.0  # far outside what the live version takes
    measured = measure_both(live, new, HeldOut(rows, table["z"].to_numpy()))
    assert (measured.rows, measured.live["r2"] > 0.9, measured.new["r2"] < 0.5) == (110, True, True)
    rows[:, 0] = 200.0
    measured = measure_both(live, new, HeldOut(rows, table["z"].to_numpy()))
    assert measured == Measured(new.manifest.metrics, live.manifest.metrics, 0)


def test_labels_are_measured_by_their_places(tmp_path: Path) -> None:
    table = small_table()
    truth = np.where(table["z"] > 0, "high", "low")
    estimator = LogisticRegression().fit(table[["x", "y"]].to_numpy(), truth)
    named = table.drop(columns="z").assign(word=truth)
    model = add_version(tmp_path, "words", estimator, named, target="word")
    places = np.searchsorted(estimator.classes_, truth).astype(float)
    measured = measure_both(model, model, HeldOut(table[["x", "y"]].to_numpy(), places))
    assert measured.new == measured.live == model.manifest.metrics


def test_numbers_that_the_live_version_takes_are_taken_by_the_new_one(live: LoadedModel, tmp_path: Path) -> None:
    narrow = small_table()[:20] * 0.1
    new = add_plane(tmp_path, narrow, accepting=live.manifest.features)
    assert find_breaches(live.manifest, new.manifest) == []
    assert find_breaches(live.manifest, add_plane(tmp_path, narrow).manifest) != []


def test_feature_of_another_kind_or_without_bounds_is_widened_rightly() -> None:
    number = Feature(name="a", kind="number", minimum=0.0, maximum=1.0)
    assert number.widened(Feature(name="a", kind="integer", minimum=-5, maximum=5)) == number
    wide = number.widened(Feature(name="a", kind="number", minimum=None, maximum=5.0))
    assert (wide.minimum, wide.maximum) == (None, 5.0)
