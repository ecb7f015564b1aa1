"""Answers of all kinds of estimators: labels in any order and of any type, margins, scores, several targets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMRanker
from sklearn import ensemble, linear_model, mixture, multioutput, neighbors, neural_network, svm, tree
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.cross_decomposition import PLSRegression
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from xgboost import XGBClassifier

from registry.errors import CannotAdd, InvalidSelection, VersionRefused
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.outputs import Labels
from registry.store.add import add_trained
from registry.store.listing import FILENAME
from registry.store.loader import load_version
from registry.store.manifest import read_manifest, write_manifest
from registry.store.options import LoadOptions
from registry.training.candidates import read_held_out, write_held_out
from registry.training.promotion import find_breaches, measure_both
from registry.training.script import Trained

RANDOM = np.random.default_rng(3)
TABLE = pd.DataFrame(RANDOM.normal(size=(80, 3)), columns=["a", "b", "c"])
ROWS = TABLE.to_numpy()
NUMBERS = ROWS @ [1.0, 2.0, -1.0] + RANDOM.normal(size=80) / 5
TWO = (NUMBERS > 0).astype(int)
THREE = np.digitize(NUMBERS, [-1, 1])
TARGETS = np.column_stack([NUMBERS, -2 * ROWS[:, 0]])
FLAGS = np.column_stack([TWO, (ROWS[:, 1] > 0.3).astype(int), (ROWS[:, 2] > 0).astype(int)])
MIXED = np.column_stack([np.array(["low", "mid", "high"])[THREE], np.where(TWO, "yes", "no")])


class OwnOrder(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classes in an order of their own, and one of them for every row; its probabilities are `shares`."""

    def __init__(
        self, classes: Any = ("low", "mid", "high"), shares: Any = (0.1, 0.1, 0.8), label: Any = "high"
    ) -> None:
        self.classes, self.shares, self.label = classes, shares, label

    def fit(self, X: Any, _y: Any = None) -> OwnOrder:  # noqa: N803 - scikit-learn's name
        self.classes_ = np.array(self.classes)
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        return np.array([self.label] * len(X))

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        return np.tile(np.array(self.shares, float), (len(X), 1))


class ThreeHalves(OwnOrder):
    """Answers well while it is added, and probabilities of another release afterwards."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.shares = (0.5, 0.5, 0.5)


def add(root: Path, estimator: Any, sample: pd.DataFrame = TABLE, **options: Any) -> LoadedModel:
    return add_trained(root, "model", Trained(estimator=estimator, sample=sample, **options))


def ask(model: LoadedModel, rows: Any = ROWS) -> list[Any]:
    """Answers as a client reads them."""
    answers: list[Any] = msgspec.json.decode(msgspec.json.encode(model.predict(np.asarray(rows, float))))
    return answers


def typed(values: Any) -> list[str]:
    return [*map(repr, values)]


# --- never wrong


@pytest.mark.parametrize("label", ["low", "mid", "high"])
def test_label_is_the_estimators_whatever_the_order_of_its_classes(tmp_path: Path, label: str) -> None:
    sample = TABLE.assign(y=["low", "high"] * 40)
    model = add(tmp_path, OwnOrder(label=label).fit(TABLE), sample, target="y")
    assert ask(model)[0] == {"label": label, "probabilities": {"low": 0.1, "mid": 0.1, "high": 0.8}}
    assert model.manifest.metrics["accuracy"] == {"low": 0.5, "mid": 0.0, "high": 0.5}[label]
    assert model.manifest.metrics["log_loss"] == pytest.approx(-np.log([0.1, 0.8]).mean())


@pytest.mark.parametrize(
    "shares",
    [
        (4.03, 1.0, 0.0),
        (0.5, 0.5, 0.5),
        (-0.1, 0.6, 0.5),
        (0.3, 0.3, 0.3),
        (np.nan, 0.5, 0.5),
        (0.5, 0.5, 1e-5),
        (0, 0, 0),
    ],
)
def test_probabilities_that_cannot_be_are_refused(tmp_path: Path, shares: Any) -> None:
    with pytest.raises(CannotAdd, match=r"probabilities of a row are .*: they must be between 0 and 1 and add up to 1"):
        add(tmp_path, OwnOrder(shares=shares).fit(TABLE))


def test_probabilities_that_cannot_be_are_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(CannotAdd, match=r"probabilities of a row are 0.5, 0.5, 0.5: they must"):
        add(tmp_path, ThreeHalves().fit(TABLE))


def test_probabilities_that_are_rounded_to_float32_are_served(tmp_path: Path) -> None:
    shares = np.array([1 / 3, 1 / 3, 1 / 3], np.float32)
    assert ask(add(tmp_path, OwnOrder(shares=shares.tolist()).fit(TABLE)))[0]["label"] == "high"


def test_a_label_that_is_none_of_the_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotAdd, match="predicts 'other', which is none of its classes"):
        add(tmp_path, OwnOrder(label="other").fit(TABLE))


def test_a_row_that_no_class_claims_is_served_where_that_is_scikit_learns_answer(tmp_path: Path) -> None:
    estimator = OneVsRestClassifier(tree.DecisionTreeClassifier(random_state=0)).fit(ROWS, THREE)
    rows = RANDOM.permuted(ROWS, axis=0)
    assert not estimator.predict_proba(rows).any(axis=1).all()
    shares = [list(answer["probabilities"].values()) for answer in ask(add(tmp_path, estimator), rows)]
    np.testing.assert_array_equal(shares, estimator.predict_proba(rows))


def test_a_classifier_of_one_class_answers_it(tmp_path: Path) -> None:
    for estimator in (tree.DecisionTreeClassifier(), neighbors.KNeighborsClassifier()):
        model = add(tmp_path, estimator.fit(ROWS, np.full(80, "only")))
        assert ask(model)[0] == {"label": "only", "probabilities": {"only": 1.0}}


# --- labels


@pytest.mark.parametrize("labels", [(0, 1), (-1, 7), (0.5, 1.5), (False, True), ("0", "1"), ("no", "yes")])
@pytest.mark.parametrize("make", [linear_model.LogisticRegression, tree.DecisionTreeClassifier, svm.LinearSVC])
def test_labels_keep_their_type(tmp_path: Path, labels: tuple[Any, Any], make: Any) -> None:
    if isinstance(labels[0], float) and make is not tree.DecisionTreeClassifier:
        pytest.skip("scikit-learn takes fractions for numbers")
    estimator = OwnOrder(labels, (0.3, 0.7), labels[1]).fit(TABLE)
    if not isinstance(labels[0], float):
        estimator = make().fit(ROWS, np.array(labels)[TWO])
    model = add(tmp_path, estimator)
    answers = ask(model)
    assert typed(answer["label"] for answer in answers) == typed(estimator.predict(ROWS).tolist())
    for answer in answers:
        assert list(answer.get("probabilities", answer.get("margins"))) == [*map(str, labels)]
    again = load_version(tmp_path, tmp_path / "model" / "1")
    assert typed(again.labels.classes) == typed(labels)
    in_text = load_version(tmp_path, tmp_path / "model" / "1", LoadOptions(labels_as_text=True))
    assert typed(answer["label"] for answer in ask(in_text)) == typed(map(str, estimator.predict(ROWS).tolist()))
    assert again.content_hash == model.content_hash
    assert (in_text.content_hash == again.content_hash) == isinstance(labels[0], str)


ONE, ZERO = (1, 1.0, "1", "1.0", "1e0"), (0, 0.0, -0.0, "0", "0.0")
TRUE, FALSE = (True, "True", "true"), (False, "False", "false")


@pytest.mark.parametrize(
    ("classes", "forms"),
    [
        *[(classes, (ZERO, ONE)) for classes in ((0, 1), (0.0, 1.0), ("0", "1"), ("0.0", "1.0"))],
        ((False, True), (FALSE, TRUE)),
    ],
)
def test_two_labels_are_found_by_all_their_forms(classes: Any, forms: Any) -> None:
    labels, turned = Labels(classes), Labels(classes[::-1])
    for place, own in enumerate(forms):
        assert [labels.find(sent) for sent in own] == [place] * len(own)
        assert [turned.find(sent) for sent in own] == [1 - place] * len(own)
    strange = (*TRUE, *FALSE) if forms[0] is ZERO else (*ONE, *ZERO)
    others: list[Any] = [*strange, 2, "2", -1, "yes", "", None, [1], {}, math.nan, "nan", 10**400]
    assert {labels.find(sent) for sent in others} == {None}


def test_labels_are_found_by_the_same_number() -> None:
    numbers, words, codes = Labels((0, 1, 2.5)), Labels(("1", "-2.50", "yes")), Labels(("007", "08", "1e999"))
    assert [numbers.find(sent) for sent in (1, "1", 1.0, 2.5, "2.50", True, "true", 3)] == [
        1,
        1,
        1,
        2,
        2,
        None,
        None,
        None,
    ]
    assert [words.find(sent) for sent in ("1", 1, 1.0, -2.5, "yes", True)] == [0, 0, 0, 1, 2, None]
    assert [codes.find(sent) for sent in ("007", 7, 8, "7", math.inf)] == [0, None, None, None, None]
    assert Labels((2**53, 2**53 + 1)).find(str(2**53 + 1)) == 1


def test_a_number_that_two_labels_have_names_neither_unless_it_is_one_of_them() -> None:
    labels = Labels(("1", "1.0", "0"))
    assert [labels.find(sent) for sent in ("1", 1, "1.0", 1.0, "1.00", 0.0)] == [0, 0, 1, 1, None, 2]


@pytest.mark.parametrize("chosen", [(1,), ("1",), (1.0,)])
def test_classes_of_explanations_are_chosen_by_both_forms(tmp_path: Path, chosen: Any) -> None:
    model = add(tmp_path, linear_model.LogisticRegression().fit(ROWS, TWO))
    (item,) = model.explain(ROWS[:1], Selection(classes=chosen))
    assert list(item["classes"]) == ["1"]
    assert item["label"] in (0, 1)
    with pytest.raises(InvalidSelection):
        model.explain(ROWS[:1], Selection(classes=(2,)))


def old(root: Path, **changes: Any) -> None:
    """Let the manifest be one of the release before."""
    directory = root / "model" / "1"
    manifest = read_manifest(directory)
    width = changes.pop("width")
    write_manifest(
        directory,
        msgspec.structs.replace(
            manifest,
            classes=tuple(map(str, manifest.classes)),
            outputs=(),
            expected=tuple(row[:width] for row in manifest.expected),
            baseline=manifest.baseline[:width],
            **changes,
        ),
    )
    assert '"outputs"' in (directory / FILENAME).read_text()


@pytest.mark.parametrize(
    ("estimator", "width"),
    [
        (linear_model.LogisticRegression().fit(ROWS, TWO), 3),
        (ensemble.RandomForestClassifier(5).fit(ROWS, THREE), 3),
        (svm.LinearSVC().fit(ROWS, THREE == 1), 1),
        (ensemble.IsolationForest(n_estimators=5).fit(ROWS), 1),
        (linear_model.Ridge().fit(ROWS, NUMBERS), 1),
        (KMeans(2, n_init=1).fit(ROWS), 1),
    ],
)
def test_a_version_added_before_answers_as_one_added_now(tmp_path: Path, estimator: Any, width: int) -> None:
    model = add(tmp_path, estimator)
    old(tmp_path, width=width)
    again = load_version(tmp_path, tmp_path / "model" / "1")
    assert typed(ask(again)) == typed(ask(model))
    assert again.manifest == read_manifest(tmp_path / "model" / "1")  # as reloads compare them
    assert (again.compiled, again.layout) == (model.compiled, model.layout)
    assert find_breaches(again.manifest, model.manifest) == []


def test_labels_that_were_given_names_keep_them(tmp_path: Path) -> None:
    add(tmp_path, linear_model.LogisticRegression().fit(ROWS, TWO), labels=("no", "yes"))
    old(tmp_path, width=3)
    assert load_version(tmp_path, tmp_path / "model" / "1").labels.classes == ("no", "yes")


def test_labels_of_another_type_are_another_models(tmp_path: Path) -> None:
    numbers = add(tmp_path, linear_model.LogisticRegression().fit(ROWS, TWO)).manifest
    flags = add(tmp_path, linear_model.LogisticRegression().fit(ROWS, TWO == 1), labels=(False, True)).manifest
    words = add(tmp_path, linear_model.LogisticRegression().fit(ROWS, TWO.astype(str))).manifest
    differ = ["its classes differ from those of the live version"]
    assert find_breaches(numbers, flags) == find_breaches(numbers, words) == find_breaches(flags, numbers) == differ
    assert find_breaches(words, numbers) == []  # it may have been added when all labels were strings


# --- margins and scores


@pytest.mark.parametrize(
    "make",
    [
        svm.LinearSVC,
        linear_model.RidgeClassifier,
        linear_model.Perceptron,
        svm.SVC,
        lambda: make_pipeline(StandardScaler(), linear_model.SGDClassifier(random_state=0)),
        lambda: GridSearchCV(svm.LinearSVC(), {"C": [0.1, 1]}),
    ],
)
@pytest.mark.parametrize("target", [TWO, THREE])
def test_classifiers_without_probabilities_answer_margins(tmp_path: Path, make: Any, target: Any) -> None:
    estimator = make().fit(ROWS, target)
    answers = ask(add(tmp_path, estimator))
    assert [answer["label"] for answer in answers] == estimator.predict(ROWS).tolist()
    margins = np.vstack([estimator.decision_function(row[None]) for row in ROWS]).reshape(80, -1)
    expected = np.hstack([-margins, margins]) if margins.shape[1] == 1 else margins
    np.testing.assert_allclose([[*answer["margins"].values()] for answer in answers], expected, rtol=1e-9, atol=1e-12)
    assert list(answers[0]["margins"]) == [*map(str, estimator.classes_)]


def test_rows_without_a_label_are_not_measured(tmp_path: Path) -> None:
    given = np.where(np.arange(80) % 3, TWO, -1)
    estimator = SelfTrainingClassifier(linear_model.LogisticRegression()).fit(ROWS, given)
    model = add(tmp_path, estimator, TABLE.assign(y=given), target="y")
    assert model.manifest.metrics["accuracy"] == (estimator.predict(ROWS) == TWO)[given != -1].mean()


def test_margins_of_pairs_of_classes_are_not_shown_as_those_of_classes(tmp_path: Path) -> None:
    estimator = make_pipeline(StandardScaler(), svm.SVC(decision_function_shape="ovo")).fit(ROWS, THREE)
    assert estimator.decision_function(ROWS).shape == (80, 3)
    assert ask(add(tmp_path, estimator))[0].keys() == {"label"}


@pytest.mark.parametrize(
    "make",
    [
        ensemble.IsolationForest,
        EllipticEnvelope,
        svm.OneClassSVM,
        linear_model.SGDOneClassSVM,
        lambda: neighbors.LocalOutlierFactor(novelty=True),
        lambda: make_pipeline(StandardScaler(), ensemble.IsolationForest(n_estimators=10, contamination=0.2)),
    ],
)
def test_outlier_detectors_answer_a_score(tmp_path: Path, make: Any) -> None:
    estimator = make().fit(ROWS)
    answers = ask(add(tmp_path, estimator))
    assert [answer["label"] for answer in answers] == estimator.predict(ROWS).tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(estimator.decision_function(ROWS).tolist())
    assert all((answer["score"] < 0) == (answer["label"] == -1) for answer in answers)


@pytest.mark.parametrize("kind", [mixture.GaussianMixture, mixture.BayesianGaussianMixture])
def test_mixtures_answer_a_component_and_probabilities(tmp_path: Path, kind: Any) -> None:
    estimator = kind(n_components=3, random_state=0).fit(ROWS)
    model = add(tmp_path, estimator)
    answers = ask(model)
    assert model.manifest.task == "clustering"
    assert [answer["label"] for answer in answers] == estimator.predict(ROWS).tolist()
    assert answers[0]["probabilities"].keys() == {"0", "1", "2"}
    shares = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(shares, estimator.predict_proba(ROWS), rtol=1e-12)
    assert model.explainer is not None


def test_rankers_answer_a_score(tmp_path: Path) -> None:
    estimator = LGBMRanker(n_estimators=5, verbose=-1).fit(ROWS, THREE, group=[40, 40])
    model = add(tmp_path, estimator, TABLE.assign(y=THREE), target="y")
    assert (model.manifest.task, model.manifest.metrics) == ("ranking", {})
    assert [answer["score"] for answer in ask(model)] == pytest.approx(np.asarray(estimator.predict(ROWS)).tolist())


# --- several targets

REGRESSORS: list[Any] = [
    linear_model.LinearRegression(),
    ensemble.RandomForestRegressor(5),
    tree.DecisionTreeRegressor(),
    neighbors.KNeighborsRegressor(),
    neural_network.MLPRegressor(hidden_layer_sizes=(4,), max_iter=20),
    PLSRegression(),
    multioutput.MultiOutputRegressor(ensemble.GradientBoostingRegressor(n_estimators=5)),
    make_pipeline(StandardScaler(), linear_model.MultiTaskLasso()),
]


@pytest.mark.parametrize("estimator", REGRESSORS)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_regressors_of_several_targets_answer_each_by_name(tmp_path: Path, estimator: Any) -> None:
    estimator.fit(ROWS, TARGETS)
    sample = TABLE.assign(up=TARGETS[:, 0], down=TARGETS[:, 1])
    model = add(tmp_path, estimator, sample, targets=["up", "down"])
    expected = [dict(zip(("up", "down"), row, strict=True)) for row in estimator.predict(ROWS).tolist()]
    assert [answer["prediction"] for answer in ask(model)] == [pytest.approx(row, rel=1e-9) for row in expected]
    assert [feature.name for feature in model.manifest.features] == ["a", "b", "c"]
    assert model.manifest.metrics["r2"] == pytest.approx(
        1 - np.mean(((estimator.predict(ROWS) - TARGETS) ** 2).sum(0) / ((TARGETS - TARGETS.mean(0)) ** 2).sum(0))
    )


def test_targets_without_names_are_numbered(tmp_path: Path) -> None:
    model = add(tmp_path, linear_model.Ridge().fit(ROWS, TARGETS))
    assert ask(model)[0]["prediction"].keys() == {"output_0", "output_1"}
    assert model.manifest.metrics == {}


@pytest.mark.parametrize(
    "estimator",
    [
        multioutput.MultiOutputClassifier(linear_model.LogisticRegression()),
        ensemble.RandomForestClassifier(5, random_state=0),
        tree.DecisionTreeClassifier(random_state=0),
        neighbors.KNeighborsClassifier(),
        multioutput.MultiOutputClassifier(svm.LinearSVC()),
    ],
)
def test_classifiers_of_several_targets_answer_each_by_name(tmp_path: Path, estimator: Any) -> None:
    estimator.fit(ROWS, MIXED)
    sample = TABLE.assign(level=MIXED[:, 0], sign=MIXED[:, 1])
    model = add(tmp_path, estimator, sample, targets=["level", "sign"])
    answers = [answer["prediction"] for answer in ask(model)]
    assert [[one["level"]["label"], one["sign"]["label"]] for one in answers] == estimator.predict(ROWS).tolist()
    accuracy = (estimator.predict(ROWS) == MIXED).all(axis=1).mean()
    assert model.manifest.metrics["accuracy"] == pytest.approx(accuracy)
    if hasattr(estimator, "predict_proba"):
        for name, shares in zip(("level", "sign"), estimator.predict_proba(ROWS), strict=True):
            np.testing.assert_allclose([[*one[name]["probabilities"].values()] for one in answers], shares, rtol=1e-12)
        assert list(answers[0]["level"]["probabilities"]) == ["high", "low", "mid"]


@pytest.mark.parametrize(
    "estimator",
    [
        neural_network.MLPClassifier(hidden_layer_sizes=(4,), max_iter=20),
        OneVsRestClassifier(linear_model.LogisticRegression()),
        multioutput.ClassifierChain(linear_model.LogisticRegression()),
        linear_model.RidgeClassifier(),
        XGBClassifier(n_estimators=3),
    ],
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_classifiers_of_several_labels_answer_each(tmp_path: Path, estimator: Any) -> None:
    estimator.fit(ROWS, FLAGS)
    model = add(tmp_path, estimator, targets=["x", "y", "z"])
    answers = [answer["prediction"] for answer in ask(model)]
    assert [[one["label"] for one in each.values()] for each in answers] == estimator.predict(ROWS).astype(int).tolist()
    if hasattr(estimator, "predict_proba"):
        ones = [[one["probabilities"]["1"] for one in each.values()] for each in answers]
        np.testing.assert_allclose(ones, estimator.predict_proba(ROWS), rtol=1e-12)


def test_isotonic_regression_takes_its_one_column(tmp_path: Path) -> None:
    estimator = IsotonicRegression(out_of_bounds="clip").fit(ROWS[:, 0], NUMBERS)
    assert ask(add(tmp_path, estimator, TABLE[["a"]]), ROWS[:, :1]) == estimator.predict(ROWS[:, 0]).tolist()


def test_other_targets_than_the_live_versions_are_a_breach(tmp_path: Path) -> None:
    fitted = linear_model.Ridge().fit(ROWS, TARGETS)
    live, other, single = (
        add(tmp_path, fitted, targets=["x", "y"]).manifest,
        add(tmp_path, fitted, targets=["x", "z"]).manifest,
        add(tmp_path, linear_model.Ridge().fit(ROWS, NUMBERS)).manifest,
    )
    differ = ["its targets differ from those of the live version"]
    assert find_breaches(live, other) == find_breaches(live, single) == find_breaches(single, live) == differ
    assert find_breaches(live, live) == []


def test_a_fallback_answers_in_the_same_form(tmp_path: Path) -> None:
    add(tmp_path, ensemble.RandomForestClassifier(5).fit(ROWS, FLAGS))
    directory = tmp_path / "model" / "1"
    healthy = ask(load_version(tmp_path, directory))[0]
    (directory / read_manifest(directory).artefact).write_bytes(b"damaged")
    with pytest.raises(VersionRefused):
        load_version(tmp_path, directory)
    fallback = ask(load_version(tmp_path, directory, fallback=True))[0]
    assert fallback["prediction"].keys() == healthy["prediction"].keys()
    assert fallback["prediction"]["output_0"].keys() == healthy["prediction"]["output_0"].keys()


def test_a_replaced_layout_is_another_answer(tmp_path: Path) -> None:
    model = add(tmp_path, linear_model.LogisticRegression().fit(ROWS, TWO))
    assert replace(model, other_layout=model.layout.in_text).content_hash != model.content_hash


def test_one_target_column_of_several_outputs_is_no_feature_and_not_measured(tmp_path: Path) -> None:
    model = add(tmp_path, linear_model.Ridge().fit(ROWS, TARGETS), TABLE.assign(y=NUMBERS), target="y")
    assert model.schema.names == ("a", "b", "c")
    assert model.manifest.metrics == {}


@pytest.mark.parametrize(
    ("estimator", "target"),
    [
        (linear_model.Ridge(), TARGETS),
        (ensemble.RandomForestRegressor(5, random_state=0), TARGETS),
        (multioutput.MultiOutputRegressor(svm.SVR()), TARGETS),
        (ensemble.RandomForestClassifier(5, random_state=0), MIXED),
        (multioutput.ClassifierChain(linear_model.LogisticRegression()), FLAGS),
    ],
)
def test_several_targets_are_explained_each(tmp_path: Path, estimator: Any, target: Any) -> None:
    model = add(tmp_path, estimator.fit(ROWS, target))
    assert model.explainer is not None
    for answer, item in zip(ask(model, ROWS[:3]), model.explain(ROWS[:3]), strict=True):
        assert item["targets"].keys() == answer["prediction"].keys()
        for name, own in item["targets"].items():
            predicted = answer["prediction"][name]
            if isinstance(predicted, dict):
                assert own["label"] == predicted["label"]
                predicted = predicted["probabilities"][str(own["label"])]
            assert own["output"] == pytest.approx(predicted)
            assert own["base_value"] + sum(own["values"].values()) == pytest.approx(predicted)
    if target is MIXED:
        (item,) = model.explain(ROWS[:1], Selection("all"))
        assert item["targets"]["output_0"]["classes"].keys() == {"high", "low", "mid"}
        assert sum(one["output"] for one in item["targets"]["output_1"]["classes"].values()) == pytest.approx(1)


def test_labels_of_several_targets_without_numbers_are_not_explained(tmp_path: Path) -> None:
    model = add(tmp_path, multioutput.MultiOutputClassifier(svm.LinearSVC()).fit(ROWS, FLAGS))
    assert model.explainer is None
    assert "gives labels and no numbers to explain" in model.not_explained


@pytest.mark.parametrize(
    ("estimator", "target", "options"),
    [
        (linear_model.Ridge(), TARGETS, {"targets": ["y0", "y1"]}),
        (ensemble.RandomForestClassifier(5, random_state=0), MIXED, {"targets": ["y0", "y1"]}),
        (OwnOrder(label="high"), MIXED[:, :1], {"target": "y0"}),
        (linear_model.LogisticRegression(), TWO[:, None], {"target": "y0", "labels": ("no", "yes")}),
    ],
)
def test_held_out_rows_measure_both_versions_of_a_retraining(
    tmp_path: Path, estimator: Any, target: Any, options: dict[str, Any]
) -> None:
    estimator.fit(ROWS, target if target.shape[1] > 1 else target.ravel())
    whole = TABLE.assign(**{f"y{index}": column for index, column in enumerate(target.T)})
    trained = Trained(estimator=estimator, sample=whole, held_out=whole[:40], **options)
    root = tmp_path / ".candidate-job.1"
    model = add_trained(root, "model", trained)
    write_held_out(root, model, trained)
    held_out = read_held_out(root / "model" / "1")
    measured = measure_both(model, model, held_out)
    assert measured.rows == 40
    assert measured.new == measured.live == pytest.approx(model.manifest.metrics, abs=1e-12)
    assert model.manifest.metrics


def test_numbers_without_end_are_no_labels() -> None:
    assert Labels((0, 1)).find(10**5000) is None


class Shy(OwnOrder):
    """Has probabilities that cannot be asked for, and margins that are not those of its classes."""

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        raise NotImplementedError

    def decision_function(self, X: Any) -> Any:  # noqa: N803
        return np.zeros((len(X), 5))


class WrongShares(multioutput.MultiOutputClassifier):  # type: ignore[misc]
    """Probabilities of several targets as another release of a library might give them."""

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        return [shares * 4.03 for shares in super().predict_proba(X)]


def test_what_a_classifier_cannot_answer_is_left_out(tmp_path: Path) -> None:
    assert ask(add(tmp_path, Shy().fit(TABLE)))[0] == {"label": "high"}


def test_wrong_probabilities_of_several_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotAdd, match="they must be between 0 and 1"):
        add(tmp_path, WrongShares(linear_model.LogisticRegression()).fit(ROWS, MIXED))


class Changing(ensemble.RandomForestClassifier):  # type: ignore[misc]
    """One of one's own that changes the table that it is given."""

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        X["b"] = X["b"] - X["a"]
        return super().predict_proba(X)

    def predict(self, X: Any) -> Any:  # noqa: N803
        return self.predict_proba(X).argmax(axis=1)


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(MinMaxScaler(copy=False), linear_model.LogisticRegression()),
        make_pipeline(MinMaxScaler(copy=False), multioutput.MultiOutputClassifier(linear_model.LogisticRegression())),
        Changing(5, random_state=0),
    ],
)
def test_an_estimator_that_changes_its_input_is_given_one_of_its_own(tmp_path: Path, estimator: Any) -> None:
    table: Any = TABLE if isinstance(estimator, Changing) else ROWS
    several = "multioutputclassifier" in getattr(estimator, "named_steps", {})
    estimator.fit(table.copy(), FLAGS if several else TWO)
    model = add_trained(tmp_path, "m", Trained(estimator=estimator, sample=TABLE))
    rows = TABLE.to_numpy(copy=True)
    outputs = model.compute(rows)
    assert np.array_equal(rows, TABLE)
    for index, labels in enumerate(np.asarray(estimator.predict(table.copy())).reshape(len(rows), -1).T):
        assert np.array_equal(model.layout.label_indices(outputs, index), labels)
