"""Values of any function by sampling: held against shap's own, with their standard errors, and in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.explain import sampling
from registry.explain.sampling import rows_per_explanation, sampling_explainer
from registry.rows.features import Rows
from tests.registry.explanations import CLOSE, assert_additive, assert_same_alone, shap, shapley_values

RANDOM = np.random.default_rng(0)


def table(features: int, rows: int = 40) -> Rows:
    """Numbers, of which the first feature is 0 or 1 and the second missing now and then."""
    made = RANDOM.normal(size=(rows, features))
    made[:, 0] = made[:, 0] > 0
    made[::5, 1] = np.nan
    return made


def entangled(rows: Rows) -> Rows:
    """Two outputs in which three features interact."""
    known = np.nan_to_num(rows, nan=-2.0)
    return np.stack([known.prod(axis=1) + known.sum(axis=1), np.sin(known[:, :3].sum(axis=1)) * known[:, -1]], axis=1)


@pytest.mark.parametrize("features", [1, 2, 5, 8])
def test_all_coalitions_give_what_shap_gives(features: int) -> None:
    background = np.nan_to_num(table(features)) if features > 1 else RANDOM.normal(size=(40, 1))
    function = lambda rows: np.stack([rows.prod(axis=1), np.sin(rows.sum(axis=1))], axis=1)  # noqa: E731
    explainer = sampling_explainer(function, background[5:], "value", 500)
    found = explainer.explain(background[:5])
    masker = shap.maskers.Independent(background[5:], max_samples=1000)
    expected = shap.explainers.Exact(function, masker)(background[:5], max_evals=500, silent=True)
    assert explainer.method == "exact"
    assert found.standard_error is None
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.base_values, expected.base_values[0], rtol=0, atol=CLOSE)
    assert_additive(found)
    assert_same_alone(explainer, background[:5])


def test_missing_value_is_a_value_like_any_other() -> None:
    background = table(3, 10)
    found = sampling_explainer(entangled, background, "value", 8).explain(background[:2])

    def worth(known: Any) -> float:
        mixed = background.copy()
        mixed[:, list(known)] = background[0, list(known)]
        return float(entangled(mixed)[:, 0].mean())

    np.testing.assert_allclose(found.values[0, :, 0], shapley_values(worth, 3), rtol=0, atol=CLOSE)


def test_text_is_known_or_replaced_by_a_text_of_the_background() -> None:
    background = np.array([["bad soup", 1.0, "x"], ["good", 2.0, None], ["good soup", np.nan, "y"]], dtype=object)

    def function(rows: Rows) -> Rows:
        return np.array([["good" in a and b == 2.0, len(a) + (c == "y")] for a, b, c in rows], np.float64)

    def worth(known: Any) -> float:
        mixed = background.copy()
        mixed[:, list(known)] = background[1, list(known)]
        return float(function(mixed)[:, 0].mean())

    for evaluations in (8, 6):
        explainer = sampling_explainer(function, background, "value", evaluations)
        found = explainer.explain(background[:2])
        assert_additive(found)
        assert_same_alone(explainer, background)
        if explainer.method == "exact":
            np.testing.assert_allclose(found.values[1, :, 0], shapley_values(worth, 3), rtol=0, atol=CLOSE)


def test_sampled_values_err_as_their_standard_error_says() -> None:
    background = table(7)
    exact = sampling_explainer(entangled, background, "value", 2**7).explain(background[:8]).values
    scores = {}
    for evaluations in (1, 30, 120):
        explainer = sampling_explainer(entangled, background, "value", evaluations)
        found = explainer.explain(background[:8])
        assert explainer.method == "permutation"
        assert found.standard_error is not None
        assert_additive(found)
        assert_same_alone(explainer, background[:3])
        certain = found.standard_error == 0
        np.testing.assert_allclose(found.values[certain], exact[certain], rtol=0, atol=CLOSE)
        errors = (found.values - exact)[~certain] / found.standard_error[~certain]
        assert np.abs(errors).max() < 6
        scores[evaluations] = float(np.sqrt((errors**2).mean()))
    assert 0.7 < scores[120] < 1.3
    assert scores[1] < 1.0  # of one order and its reverse only a bound is known


def test_sampling_errs_less_than_shap_for_as_many_calls() -> None:
    background = np.nan_to_num(table(9))
    exact = sampling_explainer(entangled, background, "value", 2**9).explain(background[:6]).values
    ours = sampling_explainer(entangled, background, "value", 95).explain(background[:6]).values
    masker = shap.maskers.Independent(background, max_samples=1000)
    theirs = shap.explainers.Permutation(entangled, masker, seed=0)(background[:6], max_evals=95, silent=True).values
    assert np.abs(ours - exact).mean() < np.abs(theirs - exact).mean()


def test_where_no_three_features_interact_one_order_and_its_reverse_are_exact() -> None:
    background = np.nan_to_num(table(6))
    function = lambda rows: (rows[:, :1] * rows[:, 1:2] + rows.sum(axis=1, keepdims=True)) ** 1  # noqa: E731
    exact = sampling_explainer(function, background, "value", 64).explain(background[:4]).values
    once = sampling_explainer(function, background, "value", 1).explain(background[:4]).values
    np.testing.assert_allclose(once, exact, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("evaluations", [1, 5000])
def test_model_is_asked_for_some_rows_at_a_time(evaluations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_CALL_BYTES", 2**20)
    background = RANDOM.normal(size=(10, 450))
    asked: list[int] = []

    def function(rows: Rows) -> Rows:
        asked.append(len(rows))
        return rows.sum(axis=1, keepdims=True)

    found = sampling_explainer(function, background, "value", evaluations).explain(background[:1])
    np.testing.assert_allclose(found.values[0, :, 0], background[0] - background.mean(axis=0), rtol=0, atol=CLOSE)
    assert max(asked) * 450 * 8 <= 2**20
    # the row itself is in the background, and needs no walk
    assert sum(asked) == 10 + 1 + rows_per_explanation(background, evaluations) * 9 // 10


@pytest.mark.parametrize("evaluations", [2, 4])
def test_row_that_is_all_of_the_background_is_explained(evaluations: int) -> None:
    background = np.ones((3, 2))
    found = sampling_explainer(lambda rows: rows, background, "value", evaluations).explain(background[:1])
    assert not found.values.any()
    assert_additive(found)
