"""Sums of outcomes, and the metrics that follow from them, beside scikit-learn's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score, roc_auc_score

from registry.outputs import Layout, Target
from registry.quality import EDGES, MAX_CLASSES, Scorer, add_up, calibration_of, find_shortfall, metrics_of

Shares = NDArray[np.float64]

SPREADS = {
    "even": (1.0, 1.0),
    "rare": (0.3, 30.0),
    "certain": (0.05, 0.05),
    "undecided": (20.0, 20.0),
}


def classifier(*classes: tuple[Any, ...]) -> Layout:
    """With probabilities, of as many targets as there are classes."""
    names = [""] if len(classes) == 1 else [f"t/{number}" for number in range(len(classes))]
    return Layout(
        ("probabilities",), tuple(Target(name=name, classes=own) for name, own in zip(names, classes, strict=True))
    )


def scored(classes: tuple[Any, ...], truth: NDArray[np.intp], shares: Shares) -> list[dict[str, Decimal]]:
    scorer, texts = Scorer("classification", classifier(classes)), [str(one) for one in classes]
    return [
        scorer.sums(classes[true], classes[int(np.argmax(row))], dict(zip(texts, row, strict=True)))
        for true, row in zip(truth.tolist(), shares.tolist(), strict=True)
    ]


def drawn(seed: int, rows: int, spread: str) -> tuple[NDArray[np.intp], Shares]:
    random = np.random.default_rng(seed)
    positive = random.beta(*SPREADS[spread], size=rows)
    return (random.random(rows) < positive).astype(np.intp), np.column_stack([1 - positive, positive])


@given(seed=st.integers(0, 10**6), rows=st.integers(2, 400), spread=st.sampled_from([*SPREADS]))
@settings(max_examples=40, deadline=None)
def test_metrics_of_two_classes_are_those_of_scikit_learn(seed: int, rows: int, spread: str) -> None:
    truth, shares = drawn(seed, rows, spread)
    metrics = metrics_of(add_up(scored(("no", "yes"), truth, shares)))
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, shares.argmax(axis=1)))
    assert metrics["log_loss"] == pytest.approx(log_loss(truth, shares, labels=[0, 1]), abs=1e-9)
    if len(set(truth.tolist())) == 1:
        assert "roc_auc" not in metrics
        return
    bins = np.searchsorted(EDGES, shares[:, 1])
    hits, falls = bins[truth == 1], bins[truth == 0]
    pairs = (hits[:, None] == falls[None, :]).mean()  # those of which the bins do not tell the order
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(truth, shares[:, 1]), abs=pairs / 2 + 1e-9)


@pytest.mark.parametrize("spread", SPREADS)
def test_the_area_under_the_curve_is_wrong_by_less_than_a_thousandth_for_usual_scores(spread: str) -> None:
    truth, shares = drawn(7, 4000, spread)
    area = metrics_of(add_up(scored((0, 1), truth, shares)))["roc_auc"]
    assert area == pytest.approx(roc_auc_score(truth, shares[:, 1]), abs=1e-3)


def test_scores_of_a_forest_have_their_exact_area() -> None:
    truth, shares = drawn(3, 1000, "even")
    shares = np.round(shares, 2)
    area = metrics_of(add_up(scored((False, True), truth, shares)))["roc_auc"]
    assert area == pytest.approx(roc_auc_score(truth, shares[:, 1]), abs=1e-12)


@given(seed=st.integers(0, 10**6), classes=st.integers(3, 7))
@settings(max_examples=20, deadline=None)
def test_metrics_of_several_classes_are_means_of_each_against_the_others(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(classes), 300)
    truth = np.array([random.choice(classes, p=row) for row in shares])
    truth[:classes] = range(classes)
    sums = add_up(scored(tuple(range(classes)), truth, shares))
    metrics = metrics_of(sums)
    assert metrics["log_loss"] == pytest.approx(log_loss(truth, shares), abs=1e-9)
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(truth, shares, multi_class="ovr"), abs=2e-3)
    assert list(EDGES) == sorted(set(EDGES))
    for label in range(classes):
        observed, predicted = calibration_curve(truth == label, shares[:, label], n_bins=10)
        points = calibration_of(sums)["", str(label)]
        assert [one.observed for one in points] == pytest.approx(observed.tolist())
        assert [one.predicted for one in points] == pytest.approx(predicted.tolist(), abs=1e-9)


@pytest.mark.parametrize("spread", SPREADS)
def test_the_calibration_curve_is_that_of_scikit_learn(spread: str) -> None:
    truth, shares = drawn(1, 2000, spread)
    if spread == "even":
        shares = np.round(shares, 1)  # on the edges
    observed, predicted = calibration_curve(truth, shares[:, 1], n_bins=10)
    curves = calibration_of(add_up(scored(("a/b", "yes, no"), truth, shares)))
    assert list(curves) == [("", "yes, no")]
    points = curves["", "yes, no"]
    assert [one.observed for one in points] == pytest.approx(observed.tolist())
    assert [one.predicted for one in points] == pytest.approx(predicted.tolist(), abs=1e-9)
    assert sum(one.outcomes for one in points) == 2000


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-9, 1.0, 1e6]), shift=st.sampled_from([0.0, 1.7e5, -3.0]))
@settings(max_examples=40, deadline=None)
def test_metrics_of_numbers_are_those_of_scikit_learn(seed: int, scale: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    truth = random.normal(size=(50, 2)) * scale + shift * scale
    guesses = truth + random.normal(size=(50, 2)) * scale / 3
    layout = Layout(("value",), (Target(name="a"), Target(name="b c")))
    both = [[dict(zip(("a", "b c"), row, strict=True)) for row in table.tolist()] for table in (truth, guesses)]
    for scorer, pairs, columns in (
        (Scorer("regression", layout), zip(*both, strict=True), [0, 1]),
        (Scorer("regression", Layout(("value",))), zip(truth[:, 0].tolist(), guesses[:, 0].tolist(), strict=True), [0]),
    ):
        metrics = metrics_of(add_up(scorer.sums(*pair) for pair in pairs))
        assert metrics == {
            "mean_absolute_error": pytest.approx(mean_absolute_error(truth[:, columns], guesses[:, columns])),
            "r2": pytest.approx(r2_score(truth[:, columns], guesses[:, columns])),
        }


@pytest.mark.parametrize(
    ("truth", "guesses"), [([2.0, 2.0], [2.0, 2.0]), ([2.0, 2.0], [2.0, 3.0]), ([1e300] * 2, [-1e300] * 2)]
)
def test_values_that_are_all_equal_have_the_r2_of_scikit_learn(truth: list[float], guesses: list[float]) -> None:
    scorer = Scorer("regression", Layout(("value",)))
    metrics = metrics_of(add_up(map(scorer.sums, truth, guesses)))
    assert metrics["r2"] == (1.0 if truth == guesses else 0.0)
    assert "r2" not in metrics_of(scorer.sums(1.0, 2.0))


def test_a_large_mean_takes_nothing_from_r2() -> None:
    truth, guesses = [1.7e15 + number for number in range(50)], [1.7e15 + number + number % 3 for number in range(50)]
    scorer = Scorer("regression", Layout(("value",)))
    shifted = [(float(number), float(number + number % 3)) for number in range(50)]
    metrics = metrics_of(add_up(map(scorer.sums, truth, guesses)))
    assert metrics == metrics_of(add_up(scorer.sums(*pair) for pair in shifted))


def test_several_targets_are_right_together_and_have_their_mean_loss() -> None:
    layout = classifier(("low", "high"), (0, 1, 2))
    first, second = layout.targets
    scorer = Scorer("classification", layout)
    random = np.random.default_rng(0)
    rights, losses, sums = [], [], []
    for _ in range(200):
        shares = [random.dirichlet(np.ones(2)), random.dirichlet(np.ones(3))]
        truth = [int(random.choice(len(one), p=one)) for one in shares]
        outcome, guess = (
            {first.name: first.classes[one], second.name: second.classes[other]}
            for one, other in (truth, [int(one.argmax()) for one in shares])
        )
        named = {
            target.name: dict(zip(map(str, target.classes), own.tolist(), strict=True))
            for target, own in zip(layout.targets, shares, strict=True)
        }
        rights.append(outcome == guess)
        losses.append(-np.log([own[place] for own, place in zip(shares, truth, strict=True)]).mean())
        sums.append(scorer.sums(outcome, guess, named))
    total = add_up(sums)
    metrics = metrics_of(total)
    assert metrics["accuracy"] == np.mean(rights)
    assert metrics["log_loss"] == pytest.approx(np.mean(losses), abs=1e-9)
    assert set(calibration_of(total)) == {("t/0", "high"), ("t/1", "0"), ("t/1", "1"), ("t/1", "2")}


@given(order=st.permutations(range(30)), cuts=st.sets(st.integers(1, 29)))
def test_sums_of_parts_are_the_sums_of_the_whole(order: Sequence[int], cuts: set[int]) -> None:
    truth, shares = drawn(5, 30, "even")
    each = scored((0, 1), truth, shares)
    mixed = [each[place] for place in order]
    parts = [add_up(mixed[start:end]) for start, end in itertools.pairwise([0, *sorted(cuts), 30])]
    assert add_up(parts) == add_up(each)


def test_what_cannot_be_compared_counts_as_an_outcome_only() -> None:
    scorer = Scorer("regression", Layout(("value",)))
    for pair in ((1.0, "text"), (1.0, None), ({"a": 1.0}, 1.0), (float("nan"), 1.0), (True, 1.0)):
        assert scorer.sums(*pair) == {"outcomes": 1}
    binary = Scorer("classification", classifier((0, 1)))
    assert binary.sums(0, 0, {"other": 1.0}) == {"outcomes": 1}
    assert metrics_of(binary.sums(0, 0)) == {"accuracy": 1.0}
    assert Scorer("ranking", Layout(("score",))).sums(1.0, 0.5) == {"outcomes": 1}
    assert Scorer("clustering", Layout(("label",))).sums(1.0, 1) == {"outcomes": 1, "right": 1}


def test_of_many_classes_only_accuracy_and_loss_are_counted() -> None:
    for count, named in ((MAX_CLASSES, True), (MAX_CLASSES + 1, False)):
        (sums,) = scored(tuple(range(count)), np.array([0]), np.full((1, count), 1 / count))
        assert any(name.startswith("bin/") for name in sums) is named
        assert metrics_of(sums)["log_loss"] == pytest.approx(np.log(count))


def test_probabilities_that_do_not_add_up_are_scaled_and_zero_is_the_smallest() -> None:
    (sums,) = scored((0, 1), np.array([1]), np.array([[0.3, 0.1]]))
    assert metrics_of(sums)["log_loss"] == pytest.approx(-np.log(0.25))
    (sums,) = scored((0, 1), np.array([0]), np.array([[0.0, 1.0]]))
    assert metrics_of(sums)["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps))


@pytest.mark.parametrize(
    ("live", "expected", "names"),
    [
        ({"accuracy": 0.79, "roc_auc": 0.95}, {"accuracy": 0.9, "roc_auc": 0.96}, ["accuracy"]),
        ({"log_loss": 0.31}, {"log_loss": 0.2}, ["log_loss"]),
        ({"mean_absolute_error": 111.0}, {"mean_absolute_error": 100.0}, ["mean_absolute_error"]),
        ({"r2": 0.7}, {"r2": 0.9, "mean_absolute_error": 1.0}, ["r2"]),
        ({"mean_absolute_error": 109.0, "accuracy": 1.0}, {"mean_absolute_error": 100.0, "profit": 3.0}, []),
    ],
)
def test_a_shortfall_is_a_metric_that_is_worse_by_more_than_the_tolerance(
    live: dict[str, float], expected: dict[str, float], names: list[str]
) -> None:
    assert [reason.split()[0] for reason in find_shortfall(live, expected, 0.1)] == names
    assert find_shortfall(live, expected, 0.5) == []
