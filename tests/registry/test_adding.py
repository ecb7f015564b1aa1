"""New versions from estimators of all sorts; and nothing on disk from those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from registry.errors import CannotAdd
from registry.model import LoadedModel
from registry.store.add import add_trained, add_version
from registry.store.loader import load_version
from registry.training.script import Trained

RANDOM = np.random.default_rng(7)
TABLE = pd.DataFrame(RANDOM.normal(size=(60, 3)), columns=["a", "b", "c"])
WORDS = pd.Series(np.where(TABLE["a"] + TABLE["b"] > 0, "yes", "no"))
THREE = pd.Series(np.select([TABLE["a"] > 0.5, TABLE["a"] < -0.5], ["high", "low"], "mid"))


class UnfriendlyRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Answers whatever it was made with, for every row."""

    def __init__(self, answer: Any = 0.0) -> None:
        self.answer = answer

    def fit(self, X: Any, _y: Any = None) -> UnfriendlyRegressor:  # noqa: N803 - scikit-learn's name
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.repeat([self.answer], len(X), axis=0)


def add(root: Path, estimator: Any, sample: pd.DataFrame = TABLE, **options: Any) -> LoadedModel:
    placing = {name: options.pop(name) for name in ("version",) if name in options}
    return add_trained(root, "model", Trained(estimator=estimator, sample=sample, **options), **placing)


def labels(model: LoadedModel, table: pd.DataFrame = TABLE) -> list[Any]:
    """What the model answers for a table, asked as a client would."""
    predictions = model.predict(model.schema.rows(table.to_dict("records")))
    return [one["label"] if isinstance(one, dict) else one for one in predictions]


CLASSIFIERS: list[Callable[[], Any]] = [
    LogisticRegression,
    lambda: RandomForestClassifier(10, random_state=0),
    lambda: DecisionTreeClassifier(random_state=0),
    LinearSVC,
    RidgeClassifier,
    lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    lambda: make_pipeline(StandardScaler(), SVC()),
]


@pytest.mark.parametrize("frame", ["array", "frame"])
@pytest.mark.parametrize("target", [WORDS, THREE, WORDS == "yes", THREE.map({"low": 10, "mid": 20, "high": 30})])
@pytest.mark.parametrize("make", CLASSIFIERS)
def test_classifier_answers_its_own_labels(tmp_path: Path, make: Callable[[], Any], target: Any, frame: str) -> None:
    estimator = make().fit(TABLE if frame == "frame" else TABLE.to_numpy(), target)
    model = add(tmp_path, estimator)
    expected = estimator.predict(TABLE if frame == "frame" else TABLE.to_numpy())
    assert model.manifest.input == frame
    assert model.manifest.task == "classification"
    assert [*map(repr, labels(model))] == [*map(repr, expected.tolist())]  # true is not 1
    (first, *_) = model.predict(model.schema.rows([model.manifest.example]))
    assert ("probabilities" in first) == hasattr(estimator, "predict_proba")
    if "probabilities" in first:
        assert list(first["probabilities"]) == [str(label) for label in estimator.classes_.tolist()]
        assert sum(first["probabilities"].values()) == pytest.approx(1)


def test_label_of_a_tuned_threshold_is_not_simply_the_most_probable_class(tmp_path: Path) -> None:
    estimator = FixedThresholdClassifier(LogisticRegression(), threshold=0.95).fit(TABLE, WORDS)
    model = add(tmp_path, estimator)
    predictions = model.predict(model.schema.rows(TABLE.to_dict("records")))
    assert labels(model) == estimator.predict(TABLE).tolist()
    assert any(one["label"] == "no" and one["probabilities"]["yes"] > 0.5 for one in predictions)


def test_labels_can_be_renamed_in_the_order_of_the_classes(tmp_path: Path) -> None:
    estimator = LogisticRegression().fit(TABLE.to_numpy(), WORDS == "yes")
    model = add(tmp_path, estimator, labels=["rejected", "accepted"])
    assert labels(model) == np.where(estimator.predict(TABLE.to_numpy()), "accepted", "rejected").tolist()


def test_regressor_answers_numbers_and_is_measured(tmp_path: Path) -> None:
    sample = TABLE.assign(y=TABLE["a"] * 2 + 1)
    model = add(tmp_path, LinearRegression().fit(TABLE, sample["y"]), sample, target="y")
    assert labels(model) == pytest.approx(sample["y"].tolist())
    assert model.manifest.task == "regression"
    assert model.manifest.metrics["r2"] == pytest.approx(1)
    assert [feature.name for feature in model.manifest.features] == ["a", "b", "c"]


def test_clusters_are_numbers(tmp_path: Path) -> None:
    estimator = KMeans(3, n_init=1, random_state=0).fit(TABLE.to_numpy())
    model = add(tmp_path, estimator)
    assert model.manifest.task == "clustering"
    assert labels(model) == estimator.predict(TABLE.to_numpy()).tolist()


def test_outliers_are_minus_one(tmp_path: Path) -> None:
    estimator = IsolationForest(n_estimators=20, random_state=0, contamination=0.2).fit(TABLE.to_numpy())
    model = add(tmp_path, estimator)
    assert model.manifest.task == "outlier-detection"
    assert set(labels(model)) == {-1, 1}
    assert labels(model) == estimator.predict(TABLE.to_numpy()).tolist()


@pytest.mark.parametrize("dtype", ["str", "object", "category"])
def test_pipeline_gets_the_columns_that_it_was_fitted_on(tmp_path: Path, dtype: str) -> None:
    table = TABLE.assign(
        word=pd.Series(np.where(TABLE["c"] > 0, "x", "y")).astype(dtype),
        count=RANDOM.integers(0, 9, 60),
        flag=TABLE["b"] > 0,
        small=TABLE["a"].astype("float32"),
    )
    columns = make_column_transformer(
        (OneHotEncoder(), make_column_selector(dtype_include=[dtype])), remainder="passthrough"
    )
    estimator = make_pipeline(columns, RandomForestClassifier(10, random_state=0)).fit(table, WORDS)
    model = add(tmp_path, estimator, table)
    assert [feature.kind for feature in model.manifest.features] == [
        *["number"] * 3,
        "category",
        "number",
        "boolean",
        "number",
    ]
    frame = model.schema.frame(model.schema.rows(table.to_dict("records")))
    pd.testing.assert_frame_equal(frame, table, check_categorical=False)
    assert labels(model, table) == estimator.predict(table).tolist()


def test_version_written_is_the_version_read(tmp_path: Path) -> None:
    model = add(tmp_path, LogisticRegression().fit(TABLE, WORDS), source="drawn at random")
    again = load_version(tmp_path, tmp_path / "model" / "1")
    assert again.manifest == model.manifest
    assert again.manifest.source == "drawn at random"
    assert labels(again) == labels(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_next_version_follows_the_newest(tmp_path: Path) -> None:
    estimator = LogisticRegression().fit(TABLE, WORDS)
    (tmp_path / "model").mkdir()
    for name in (".DS_Store", "aliases.json", "train.py"):
        (tmp_path / "model" / name).touch()
    assert add(tmp_path, estimator).version == "1"
    assert add(tmp_path, estimator, version="9").version == "9"
    assert [add(tmp_path, estimator).version for _ in range(2)] == ["10", "11"]


def test_next_version_after_a_name_must_be_named(tmp_path: Path) -> None:
    estimator = LogisticRegression().fit(TABLE, WORDS)
    add(tmp_path, estimator, version="2024-spring")
    with pytest.raises(CannotAdd, match="2024-spring"):
        add(tmp_path, estimator)


FITTED = LogisticRegression().fit(TABLE, WORDS)
BY_POSITION = LogisticRegression().fit(TABLE.to_numpy(), WORDS)
TWO_PLANES = LinearRegression().fit(TABLE, TABLE[["a", "b"]])
TWICE = pd.concat([TABLE, TABLE[["a"]]], axis=1)
REFUSED: list[tuple[str, Any, pd.DataFrame, dict[str, Any]]] = [
    ("is not fitted", LogisticRegression(), TABLE, {}),
    ("is not a scikit-learn estimator that predicts", StandardScaler().fit(TABLE), TABLE, {}),
    ("is not a scikit-learn estimator that predicts", {"no": "estimator"}, TABLE, {}),
    ("fitted on b, c, which the table lacks", FITTED, TABLE[["a"]], {}),
    ("takes 3 features, the table has 2", BY_POSITION, TABLE[["a", "b"]], {}),
    ("takes 3 features, the table has 4", BY_POSITION, TABLE.assign(y=1), {}),
    ("two columns of the same name", FITTED, TWICE, {}),
    ("has no rows", FITTED, TABLE[:0], {}),
    ("has no column 'y'", FITTED, TABLE, {"target": "y"}),
    ("columns of text", BY_POSITION, TABLE.assign(c=WORDS), {}),
    ("3 labels for 2 classes", FITTED, TABLE, {"labels": ["a", "b", "c"]}),
    ("two classes have the same label", FITTED, TABLE, {"labels": ["a", "a"]}),
    ("not classes of the estimator", FITTED, TABLE.assign(y="maybe"), {"target": "y"}),
    ("has missing values", FITTED, TABLE.assign(y=None), {"target": "y"}),
    ("is not a version", FITTED, TABLE, {"version": "../1"}),
    ("is not a version", FITTED, TABLE, {"version": ".hidden"}),
    ("cannot predict this table", FITTED, TABLE.assign(a=[*[None] * 59, 1.0]), {}),
    ("is not finite", UnfriendlyRegressor(np.nan).fit(TABLE), TABLE, {}),
    ("is not finite", UnfriendlyRegressor(np.inf).fit(TABLE), TABLE, {}),
    (
        "cannot predict this table: ZeroDivisionError",
        UnfriendlyRegressor(ZeroDivisionError("no")).fit(TABLE),
        TABLE,
        {},
    ),
    ("1 output, but 2 targets", FITTED, TABLE, {"targets": ["y", "z"]}),
    ("2 outputs, but 3 targets", UnfriendlyRegressor([1.0, 2.0]).fit(TABLE), TABLE, {"targets": ["x", "y", "z"]}),
    ("has no column 'z'", TWO_PLANES, TABLE.assign(y=1), {"targets": ["y", "z"]}),
    ("a name of its own", TWO_PLANES, TABLE, {"targets": ["y", "y"]}),
    ("either the target or the targets", TWO_PLANES, TABLE.assign(y=1), {"target": "y", "targets": ["y", "z"]}),
    (
        "cannot be pickled",
        make_pipeline(FunctionTransformer(lambda table: table), LinearRegression()).fit(TABLE, TABLE["a"]),
        TABLE,
        {},
    ),
]


@pytest.mark.parametrize(("reason", "estimator", "sample", "options"), REFUSED)
def test_what_makes_no_version_is_refused_and_leaves_nothing(
    tmp_path: Path, reason: str, estimator: Any, sample: pd.DataFrame, options: dict[str, Any]
) -> None:
    with pytest.raises(CannotAdd, match=reason):
        add(tmp_path / "models", estimator, sample, **options)
    assert not (tmp_path / "models").exists() or list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../model", "a/b", ".hidden", "a b", "ä", "x" * 65, "a\n", "-a"])
def test_name_that_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotAdd, match="is not a model name"):
        add_version(tmp_path, name, FITTED, TABLE)
    assert list(tmp_path.iterdir()) == []


def test_version_never_changes(tmp_path: Path) -> None:
    add(tmp_path, FITTED, version="1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model" / "1").iterdir()}
    with pytest.raises(CannotAdd, match="a version never changes"):
        add(tmp_path, LinearRegression().fit(TABLE, TABLE["a"]), version="1")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model" / "1").iterdir()} == before


def test_columns_that_are_numbered_have_their_numbers_for_names(tmp_path: Path) -> None:
    rows = np.arange(12.0).reshape(6, 2)
    model = add_version(tmp_path, "model", LinearRegression().fit(rows, rows[:, 0]), pd.DataFrame(rows))
    assert model.schema.names == ("0", "1")


def test_labels_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    labels = np.array(["\ud800", "b"] * 5, dtype=object)
    estimator = DecisionTreeClassifier().fit(np.arange(10.0).reshape(10, 1), labels)
    with pytest.raises(CannotAdd, match="JSON"):
        add_version(tmp_path, "model", estimator, pd.DataFrame({"x": np.arange(10.0)}))
    assert not (tmp_path / "model").exists()
