"""Compiled boosters are explained by the kernel as they explain themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.explain.library import native_explainer
from registry.rows.schema import Schema
from registry.store.add import add_version
from tests.registry.explanations import assert_same_alone, shap
from tests.registry.parity import numbers
from tests.registry.test_native_explainer import booster

TABLE = numbers(missing=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [0, 2, 3])
@pytest.mark.parametrize(("library", "close"), [("lightgbm", 1e-9), ("xgboost", 1e-5)])
def test_compiled_booster_is_explained_by_the_kernel(library: str, close: float, classes: int, tmp_path: Any) -> None:
    estimator = booster(library, classes)
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert model.compiled
    assert model.explainer is not None
    assert model.explainer.method == "tree-path-dependent"
    assert model.explainer.space == ("margin" if classes else "value")
    rows = TABLE.to_numpy()[:20]
    found = model.contributions(rows)
    native = native_explainer(estimator, Schema(model.manifest.features)).explain(rows)
    np.testing.assert_allclose(found.values, native.values, rtol=0, atol=close)
    np.testing.assert_allclose(found.base_values, native.base_values, rtol=0, atol=close)
    np.testing.assert_allclose(found.outputs, native.outputs, rtol=0, atol=close)
    assert_same_alone(model.explainer, rows)
    assert model.explainer.interact is not None
    pairs = found.with_interactions(model.explainer.interact(rows)).interactions
    assert pairs is not None
    theirs = np.asarray(shap.TreeExplainer(estimator).shap_interaction_values(rows))
    theirs = theirs if theirs.ndim == 4 else theirs[..., None]
    np.testing.assert_allclose(pairs[..., -theirs.shape[3] :], theirs, rtol=0, atol=close)
