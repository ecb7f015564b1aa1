"""How two answers to a row are compared, and how the sums over rows are added up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.estimators import FragileRegressor
from registry.store.add import add_version
from serving.monitoring.agreement import MOST_SHOWN, Agreement, Difference, Given, LabelChange, compare, compared

SURE, UNSURE = (
    {"label": "yes", "probabilities": {"yes": share, "no": round(1 - share, 6)}} for share in (0.875, 0.625)
)
OTHER = {"label": "no", "probabilities": {"yes": 0.25, "no": 0.75}}


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (100.0, 100.5, (None, True, 0.5)),
        (100.0, 102.0, (None, False, 2.0)),
        (0, 0.0, (None, True, 0.0)),
        (SURE, UNSURE, (None, True, 0.25)),
        (UNSURE, OTHER, (LabelChange("", "yes", "no"), False, 0.375)),
        ({"label": 1}, {"label": 0}, (LabelChange("", "1", "0"), False, 1.0)),
        ({"score": 1.0}, {"score": 1.5}, (None, False, 0.5)),
        ({"prediction": 100.0, "interval": [90.0, 110.0]}, 100.0, (None, True, 0.0)),
        ("a", "b", (LabelChange("", "a", "b"), False, 1.0)),
    ],
)
def test_labels_are_equal_and_numbers_close(before: Any, after: Any, found: Any) -> None:
    assert list(compared(before, after, 0.01)) == [found]


def test_each_target_is_compared_by_its_name() -> None:
    before = {"prediction": {"size": 10.0, "kind": SURE}}
    after = {"prediction": {"size": 10.0, "kind": OTHER}}
    assert sorted(compared(before, after, 0.01), key=lambda one: one[2]) == [
        (None, True, 0.0),
        (LabelChange("kind", "yes", "no"), False, 0.625),
    ]


def test_rows_that_do_not_fit_or_break_the_version_do_not_agree(tmp_path: Path) -> None:
    sample = pd.DataFrame({"value": np.linspace(0.0, 1.0, 20)})
    model = add_version(tmp_path, "line", FragileRegressor().fit(sample.to_numpy(), None), sample, margin=1e6)
    rows: list[Any] = [0.5, 1.5, "a word", 2.5, 0.25]
    given = [Given({"value": row}, 0.5, "1", f"r{place}", place) for place, row in enumerate(rows)]
    found = compare(model, given, 0.01)
    assert (found.rows, found.agreed, found.unfit, found.failed) == (5, 1, 1, 2)
    assert [(one.request_id, one.difference, one.after) for one in found.largest] == [("r4", 0.25, 0.25)]
    assert found.versions == {"1": 5}
    assert found.shown()["mean_difference"] == 0.125


def test_sums_are_added_up() -> None:
    yes, no = LabelChange("", "no", "yes"), LabelChange("", "yes", "no")
    largest = [Difference("r", place, "1", float(place), 0, place) for place in range(MOST_SHOWN)]
    one = Agreement(rows=2, agreed=1, versions={"1": 2}, changes=[(yes, 1)], largest=largest)
    one.add(Agreement(rows=4, agreed=1, versions={"1": 1, "2": 3}, changes=[(yes, 1), (no, 3)], largest=largest[:1]))
    assert (one.rows, one.share, one.versions) == (6, 1 / 3, {"1": 3, "2": 3})
    assert one.changes == [(no, 3), (yes, 2)]
    assert [found.place for found in one.largest] == list(reversed(range(MOST_SHOWN)))
    assert Agreement().shown()["share"] is None
