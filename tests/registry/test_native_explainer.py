"""XGBoost and LightGBM explain themselves where no kernel does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.explain import choose
from registry.kernels.kernel import Unsupported
from registry.store.add import add_version
from tests.registry.explanations import assert_same_alone
from tests.registry.parity import numbers, target

TABLE = numbers(missing=True)


def booster(library: str, classes: int) -> Any:
    """A small one, fitted."""
    kind = {"lightgbm": "LGBM", "xgboost": "XGB"}[library] + ("Classifier" if classes else "Regressor")
    quiet = {"lightgbm": {"verbose": -1, "min_child_samples": 5}, "xgboost": {}}[library]
    made = getattr(pytest.importorskip(library), kind)(n_estimators=7, n_jobs=1, random_state=0, **quiet)
    y = target(TABLE, classes)
    return made.fit(TABLE.to_numpy(), np.unique(y, return_inverse=True)[1] if classes else y)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for boosters that are not compiled."""

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise Unsupported("not today")

    monkeypatch.setattr(choose, "take_apart", refuse)


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.filterwarnings("ignore")  # of theirs
@pytest.mark.parametrize("classes", [0, 2, 3])
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_booster_explains_itself(library: str, classes: int, tmp_path: Any) -> None:
    estimator = booster(library, classes)
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert model.explainer is not None
    assert (model.explainer.method, model.explainer.space) == ("native", "margin" if classes else "value")
    rows = TABLE.to_numpy()[:20]
    found = model.contributions(rows)
    assert found.gap() < 1e-5
    assert found.values.shape == (20, 5, max(classes, 1))
    assert_same_alone(model.explainer, rows)
    if classes == 0:
        np.testing.assert_allclose(found.outputs[:, 0], estimator.predict(rows), rtol=1e-6)
    elif classes == 2:
        np.testing.assert_allclose(1 / (1 + np.exp(-found.outputs)), estimator.predict_proba(rows), rtol=1e-5)
    else:
        powers = np.exp(found.outputs)
        expected = estimator.predict_proba(rows)
        np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), expected, rtol=1e-5)


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "loss"), [("lightgbm", "poisson"), ("xgboost", "count:poisson")])
def test_booster_with_a_logarithmic_link_is_explained_in_margins(library: str, loss: str, tmp_path: Any) -> None:
    estimator = booster(library, 0).set_params(objective=loss)
    estimator.fit(TABLE.to_numpy(), np.exp(target(TABLE)))
    model = add_version(tmp_path, "model", estimator, TABLE)
    assert model.explainer is not None
    assert (model.explainer.method, model.explainer.space) == ("native", "margin")
    rows = TABLE.to_numpy()[:5]
    np.testing.assert_allclose(np.exp(model.contributions(rows).outputs[:, 0]), estimator.predict(rows), rtol=1e-5)
