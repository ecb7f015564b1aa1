"""Intervals and sets of labels: they hold the true value as often as they say, or the request is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import betabinom  # type: ignore[import-untyped]
from sklearn.datasets import make_classification, make_friedman1
from sklearn.ensemble import GradientBoostingRegressor, IsolationForest, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OutputCodeClassifier
from sklearn.svm import LinearSVC

from registry.conformal import MAX_SCORES, threshold
from registry.errors import CannotAdd, InvalidSelection
from registry.model import LoadedModel
from registry.store.add import add_trained
from registry.store.loader import load_version
from registry.training.promotion import find_losses
from registry.training.script import Trained

CALIBRATION, FRESH = 400, 2000


def data(kind: str, seed: int) -> pd.DataFrame:
    """A thousand rows to fit on, then those to calibrate with, then fresh ones; the target is `y`."""
    count = 1000 + CALIBRATION + FRESH
    if kind == "numbers":
        x, y = make_friedman1(count, 5, noise=1.0, random_state=seed)
    else:
        x, y = make_classification(
            count, 5, n_informative=4, n_redundant=0, n_classes=3, n_clusters_per_class=1, flip_y=0.1, random_state=seed
        )
    return pd.DataFrame(x, columns=list("abcde")).assign(y=y)


def add(root: Path, estimator: Any, table: pd.DataFrame, **options: Any) -> LoadedModel:
    """Fitted on the first thousand rows, calibrated with the next; without bounds, so that fresh rows are accepted."""
    fitted = table[:1000]
    estimator.fit(fitted[list("abcde")].to_numpy(), fitted["y"])
    given = {"calibration": table[1000 : 1000 + CALIBRATION], "target": "y", "margin": None} | options
    return add_trained(root, "model", Trained(estimator=estimator, sample=fitted, **given))


MODELS: list[tuple[str, Any]] = [
    ("numbers", LinearRegression()),
    ("numbers", GradientBoostingRegressor(random_state=0)),
    ("classes", LogisticRegression()),
    ("classes", RandomForestClassifier(100, min_samples_leaf=5, random_state=0)),
    ("classes", LinearSVC()),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "estimator"), MODELS)
def test_fresh_rows_are_held_as_often_as_asked(tmp_path: Path, kind: str, estimator: Any, seed: int) -> None:
    table = data(kind, seed)
    model = add(tmp_path, estimator, table)
    fresh = table[-FRESH:]
    for coverage in (0.5, 0.8, 0.9, 0.95):
        answers = model.predict(fresh[list("abcde")].to_numpy(), coverage)
        pairs = zip(answers, fresh["y"], strict=True)
        if kind == "numbers":
            held = sum(one["interval"][0] <= true <= one["interval"][1] for one, true in pairs)
        else:
            held = sum(true in one["set"] for one, true in pairs)
        # a binomial count whose share is itself drawn: the calibration rows are a sample, too
        rank = np.ceil((CALIBRATION + 1) * coverage)
        low, high = betabinom.ppf([1e-4, 1 - 1e-4], FRESH, rank, CALIBRATION + 1 - rank)
        assert low <= held <= high


def test_answers_have_bounds_only_when_they_are_asked_for(tmp_path: Path) -> None:
    table = data("numbers", 0)
    rows = table[list("abcde")].to_numpy()[:5]
    model = add(tmp_path, LinearRegression(), table)
    plain, bounded = model.predict(rows), model.predict(rows, 0.9)
    assert [one["prediction"] for one in bounded] == plain
    widths = {round(high - low, 9) for low, high in (one["interval"] for one in bounded)}
    assert len(widths) == 1
    assert load_version(tmp_path, tmp_path / "model" / "1").predict(rows, 0.9) == bounded


def test_a_set_has_the_models_labels(tmp_path: Path) -> None:
    table = data("classes", 0)
    model = add(tmp_path, LogisticRegression(), table)
    for answer in model.predict(table[list("abcde")].to_numpy()[:20], 0.99):
        assert set(answer) == {"label", "probabilities", "set"}
        assert all(type(label) is int for label in answer["set"])
        assert answer["label"] in answer["set"]


@pytest.mark.parametrize(
    ("coverage", "rank"), [(0.07, 7), (0.5, 50), (0.9, 90), (0.9000001, 91), (0.29, 29), (0.99, 99), (1e-9, 1)]
)
def test_rank_of_the_threshold_is_exact(coverage: float, rank: int) -> None:
    assert threshold(tuple(range(1, 100)), coverage) == rank


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, 2.0, float("nan"), float("inf")])
def test_coverage_is_a_share(coverage: float) -> None:
    with pytest.raises(InvalidSelection, match="between 0 and 1"):
        threshold((1.0, 2.0), coverage)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 99, 1000, 5000])
def test_too_few_rows_name_the_largest_coverage_which_then_works(count: int) -> None:
    scores = tuple(float(score) for score in range(count))
    with pytest.raises(InvalidSelection, match=f"the largest coverage that {count} calibration rows allow is") as error:
        threshold(scores, 0.99999)
    assert threshold(scores, float(str(error.value).rsplit(" ", 1)[1])) == count - 1


def test_without_calibration_there_is_no_coverage(tmp_path: Path) -> None:
    table = data("numbers", 0)
    bare = add(tmp_path, LinearRegression(), table, calibration=None)
    with pytest.raises(InvalidSelection, match="without calibration rows"):
        bare.predict(np.zeros((1, 5)), 0.9)
    assert find_losses(add(tmp_path, LinearRegression(), table), bare) == [
        "it has no calibration rows, so requests for a coverage would fail"
    ]


def test_only_so_many_scores_are_kept(tmp_path: Path) -> None:
    table = data("numbers", 0)
    many = pd.concat([table[1000:]] * 4)
    assert len(add(tmp_path, LinearRegression(), table, calibration=many).manifest.conformal) == MAX_SCORES


@pytest.mark.parametrize(
    ("reason", "estimator", "options"),
    [
        ("needs a target", LinearRegression(), {"target": None, "sample": 1}),
        ("no column 'e'", LinearRegression(), {"calibration": data("numbers", 0)[["a", "b", "c", "d", "y"]]}),
        ("no column 'y'", LinearRegression(), {"calibration": data("numbers", 0)[list("abcde")]}),
        ("missing values", LinearRegression(), {"calibration": data("numbers", 0).assign(y=None)}),
        ("no calibration row fits", LinearRegression(), {"calibration": data("numbers", 0).assign(a=None)[:5]}),
        ("with probabilities or margins", OutputCodeClassifier(LogisticRegression(), random_state=0), {}),
        ("for regressors and classifiers", IsolationForest(n_estimators=5), {}),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    tmp_path: Path, reason: str, estimator: Any, options: dict[str, Any]
) -> None:
    table = data("classes" if isinstance(estimator, OutputCodeClassifier) else "numbers", 0)
    if options.pop("sample", None):
        fitted = estimator.fit(table[list("abcde")].to_numpy(), table["y"])
        given = Trained(estimator=fitted, sample=table[list("abcde")], calibration=table)
        with pytest.raises(CannotAdd, match=reason):
            add_trained(tmp_path, "model", given)
        return
    with pytest.raises(CannotAdd, match=reason):
        add(tmp_path, estimator, table, **options)


def test_several_outputs_cannot_be_calibrated(tmp_path: Path) -> None:
    table = data("numbers", 0).assign(z=1.0)
    fitted = LinearRegression().fit(table[list("abcde")], table[["y", "z"]])
    given = Trained(estimator=fitted, sample=table, targets=["y", "z"], calibration=table)
    with pytest.raises(CannotAdd, match="several outputs cannot be calibrated"):
        add_trained(tmp_path, "model", given)
