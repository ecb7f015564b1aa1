"""The fitted models of `bench.zoo`: every class of scikit-learn that predicts, and what people make of them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from sklearn import (
    calibration,
    compose,
    decomposition,
    ensemble,
    feature_extraction,
    feature_selection,
    frozen,
    impute,
    linear_model,
    model_selection,
    multiclass,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)
from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401 - by being imported
from sklearn.utils import all_estimators

ROWS, HELD_OUT = 400, 60
TARGET = "target"

NUMBERS = ["age", "income", "visits"]
WORDS = [
    "late delivery of the parcel",
    "great value and fast",
    "does not work at all",
    "would buy it again",
    "too small",
]


@dataclass(frozen=True)
class Animal:
    """A fitted model, its table with the target last, and options of `forkserve add`."""

    estimator: Any
    table: pd.DataFrame
    form: str = "frame"
    """What the estimator was fitted on: frame, array, or series (of its only column)."""
    options: tuple[str, ...] = ()

    @property
    def inputs(self) -> Any:
        """The last rows of the table, as the estimator takes them."""
        given = self.table.drop(columns=TARGET).iloc[-HELD_OUT:]
        return {"frame": given, "array": given.to_numpy(), "series": given.iloc[:, 0]}[self.form]


Make = Callable[[], Animal]


def mixed_table(seed: int = 0) -> pd.DataFrame:
    """Numbers, whole numbers, a flag, categories, a date and a text, with no gaps, and numbers to predict."""
    random = np.random.default_rng(seed)
    age, income = random.uniform(18, 90, ROWS), random.normal(3000, 900, ROWS)
    city = random.choice(["Bern", "Rome", "Oslo", "Lima"], ROWS, p=[0.5, 0.3, 0.15, 0.05])
    words = random.integers(0, len(WORDS), ROWS)
    frame = pd.DataFrame(
        {
            "age": age.round(2),
            "income": income.round(1),
            "visits": random.integers(0, 20, ROWS),
            "member": random.random(ROWS) < 0.3,
            "city": city,
            "size": random.integers(1, 4, ROWS),
            "since": (pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 1500, ROWS), unit="D")).strftime(
                "%Y-%m-%d"
            ),
            "note": [
                f"{WORDS[i]} {WORDS[(i * 3 + j) % len(WORDS)]} {j}"
                for i, j in zip(words, random.integers(0, 90, ROWS), strict=True)
            ],
        }
    )
    frame[TARGET] = age / 10 + income / 1000 + (city == "Rome") + 2.0 * (words == 2) + random.normal(0, 0.5, ROWS)
    return frame


def _target(kind: str, numbers: pd.Series[Any]) -> Any:
    if kind == "numbers":
        return numbers.round(3)
    if kind == "two":
        return np.where(numbers > numbers.median(), "yes", "no")
    return np.array(["low", "mid", "high"])[np.digitize(numbers, numbers.quantile([0.33, 0.66]))]


def _fitted(estimator: Any, table: pd.DataFrame, form: str, *options: str) -> Animal:
    given = table.drop(columns=TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_on = {"frame": given, "array": given.to_numpy(), "series": given.iloc[:, 0]}[form]
        estimator.fit(fit_on, table[TARGET].to_numpy())
    return Animal(estimator, table, form, options)


# --- every class of scikit-learn that predicts


def _arguments(kind: type) -> dict[str, Any]:
    """What a class needs to be made."""
    name = kind.__name__
    given: dict[str, Any] = {}
    regresses = any(word in name for word in ("Regressor", "Regression"))
    inner = linear_model.Ridge() if regresses else linear_model.LogisticRegression()
    parameters = inspect.signature(kind).parameters
    if "estimators" in parameters:
        given["estimators"] = [
            ("linear", inner),
            ("tree", (tree.DecisionTreeRegressor if regresses else tree.DecisionTreeClassifier)(max_depth=3)),
        ]
    for parameter in ("estimator", "base_estimator"):
        if parameter in parameters and (
            name
            not in (
                "BaggingClassifier",
                "BaggingRegressor",
                "AdaBoostClassifier",
                "AdaBoostRegressor",
                "RANSACRegressor",
            )
        ):
            given[parameter] = inner
    given |= {name: {"C": [0.1, 1.0]} for name in ("param_grid", "param_distributions") if name in parameters}
    if name == "RandomizedSearchCV":
        given["n_iter"] = 2
    if name == "Pipeline":
        given["steps"] = [("scale", preprocessing.StandardScaler()), ("last", inner)]
    return given


def of_class(kind: type) -> Animal:
    """A model of one class, fitted on an array of numbers."""
    random = np.random.default_rng(1)
    name = kind.__name__
    columns = 1 if name == "IsotonicRegression" else 5
    values = random.normal(size=(ROWS, columns))
    if name in ("CategoricalNB", "ComplementNB", "MultinomialNB"):
        values = np.floor(np.abs(values) * 2)
    total = values.sum(axis=1) + random.normal(0, 0.3, ROWS)
    estimator = kind(**_arguments(kind))
    table = pd.DataFrame(values, columns=[f"x{i}" for i in range(columns)])
    several = name.startswith(("MultiTask", "MultiOutput", "CCA", "PLS", "RegressorChain", "ClassifierChain"))
    tags = getattr(estimator, "_estimator_type", None) or getattr(estimator.__sklearn_tags__(), "estimator_type", None)
    if name in ("GammaRegressor", "PoissonRegressor", "TweedieRegressor"):
        total = np.exp(total / 3)
    target: Any = (
        total if tags == "regressor" or name in ("CCA", "PLSCanonical", "RegressorChain") else (total > 0).astype(int)
    )
    wide = np.column_stack([target, target if tags != "regressor" and name != "RegressorChain" else -target])
    if several and tags == "classifier":
        wide = np.column_stack([target, (values[:, 0] > 0).astype(int)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "LocalOutlierFactor":
            estimator.set_params(novelty=True)
        if name == "SelfTrainingClassifier":
            target = np.where(random.random(ROWS) < 0.2, -1, target)
        estimator.fit(values, wide if several else target)
    table[TARGET] = target
    return Animal(estimator, table, "array")


def classes() -> Iterator[tuple[str, Make]]:
    """Every class of scikit-learn that has `predict`."""
    for name, kind in all_estimators():
        if hasattr(kind, "predict"):
            yield name, partial(of_class, kind)


# --- pipelines, kinds of columns, wrappers, boosters


def regressors() -> dict[str, Callable[[], Any]]:
    """Estimators of numbers by name."""
    return {
        "Ridge": linear_model.Ridge,
        "forest": partial(ensemble.RandomForestRegressor, 20, random_state=0, n_jobs=-1),
        "histogram": partial(ensemble.HistGradientBoostingRegressor, max_iter=20),
        "SVR": svm.SVR,
        "XGBoost": _booster("xgboost", "XGBRegressor", n_estimators=20),
        "LightGBM": _booster("lightgbm", "LGBMRegressor", n_estimators=20, verbose=-1),
    }


def classifiers() -> dict[str, Callable[[], Any]]:
    """Estimators of classes by name."""
    return {
        "logistic": partial(linear_model.LogisticRegression, max_iter=300),
        "forest": partial(ensemble.RandomForestClassifier, 20, random_state=0),
        "extra trees": partial(ensemble.ExtraTreesClassifier, 20, random_state=0, n_jobs=-1),
        "boosting": partial(ensemble.GradientBoostingClassifier, n_estimators=20),
        "histogram": partial(ensemble.HistGradientBoostingClassifier, max_iter=20),
        "LinearSVC": svm.LinearSVC,
        "SVC": svm.SVC,
        "neighbours": neighbors.KNeighborsClassifier,
        "Bayes": naive_bayes.GaussianNB,
        "network": partial(neural_network.MLPClassifier, (16,), max_iter=60, random_state=0),
        "SGD": partial(linear_model.SGDClassifier, loss="log_loss", random_state=0),
        "XGBoost": _booster("xgboost", "XGBClassifier", n_estimators=20),
        "LightGBM": _booster("lightgbm", "LGBMClassifier", n_estimators=20, verbose=-1),
        "CatBoost": _booster("catboost", "CatBoostClassifier", iterations=20, verbose=False, allow_writing_files=False),
    }


def _booster(library: str, name: str, **arguments: Any) -> Callable[[], Any]:
    """A class of a library that is imported when it is first called."""

    def make() -> Any:
        return getattr(__import__(library), name)(**arguments)

    return make


def _columns(encoder: Any, numbers: Any = "passthrough", words: tuple[str, ...] = ("city",)) -> Any:
    return compose.ColumnTransformer([("words", encoder, list(words)), ("numbers", numbers, NUMBERS)])


def _dense(step: Any) -> Any:
    return pipeline.make_pipeline(
        _columns(preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False)), step
    )


def heads(own: ModuleType) -> dict[str, tuple[Callable[[], Any], list[str]]]:
    """Steps before the estimator, by name, with the columns that they take; `own` are steps of one's own."""
    encode, steps = preprocessing.OneHotEncoder, preprocessing
    city = [*NUMBERS, "city"]
    return {
        "scaled": (steps.StandardScaler, NUMBERS),
        "one-hot, ignore": (
            lambda: _columns(encode(handle_unknown="ignore", sparse_output=False), steps.StandardScaler()),
            city,
        ),
        "one-hot, infrequent": (
            lambda: _columns(encode(handle_unknown="infrequent_if_exist", min_frequency=30, sparse_output=False)),
            city,
        ),
        "one-hot, error": (lambda: _columns(encode(sparse_output=False)), city),
        "one-hot of whole numbers": (
            lambda: _columns(encode(sparse_output=False), words=("size",)),
            [*NUMBERS, "size"],
        ),
        "ordinal, unknown": (
            lambda: _columns(steps.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)),
            city,
        ),
        "target encoder": (lambda: _columns(steps.TargetEncoder()), city),
        "imputed": (lambda: pipeline.make_pipeline(impute.SimpleImputer(), steps.MinMaxScaler()), NUMBERS),
        "imputed by neighbours": (lambda: pipeline.make_pipeline(impute.KNNImputer(), steps.StandardScaler()), NUMBERS),
        "polynomial": (lambda: pipeline.make_pipeline(steps.StandardScaler(), steps.PolynomialFeatures(2)), NUMBERS),
        "components": (lambda: pipeline.make_pipeline(steps.StandardScaler(), decomposition.PCA(2)), NUMBERS),
        "bins": (
            lambda: steps.KBinsDiscretizer(5, encode="onehot-dense", quantile_method="averaged_inverted_cdf"),
            NUMBERS,
        ),
        "splines": (steps.SplineTransformer, NUMBERS),
        "quantiles": (partial(steps.QuantileTransformer, n_quantiles=50), NUMBERS),
        "power": (steps.PowerTransformer, NUMBERS),
        "selected": (lambda: _dense(feature_selection.SelectKBest(k=3)), city),
        "own, frame": (own.Ratios, NUMBERS),
        "own, array": (own.Clip, NUMBERS),
        "dates": (
            lambda: compose.ColumnTransformer(
                [("dates", own.DateParts(), ["since"]), ("numbers", "passthrough", NUMBERS)]
            ),
            [*NUMBERS, "since"],
        ),
        "text and numbers": (
            lambda: compose.ColumnTransformer(
                [
                    ("text", feature_extraction.text.TfidfVectorizer(max_features=60), "note"),
                    ("numbers", "passthrough", NUMBERS),
                ],
                sparse_threshold=0,
            ),
            [*NUMBERS, "note"],
        ),
        "flag and numbers": (
            lambda: compose.ColumnTransformer([("all", "passthrough", [*NUMBERS, "member"])]),
            [*NUMBERS, "member"],
        ),
    }


def _behind(head: Callable[[], Any], columns: list[str], make: Callable[[], Any], kind: str) -> Animal:
    table = mixed_table()
    table = table[[*columns, TARGET]].assign(**{TARGET: _target(kind, table[TARGET])})
    if "since" in table:
        return _fitted(pipeline.make_pipeline(head(), make()), table, "frame", "--datetime", "since")
    return _fitted(pipeline.make_pipeline(head(), make()), table, "frame")


def pipelines(own: ModuleType) -> Iterator[tuple[str, Make]]:
    """Every head before every estimator."""
    for (head, (before, columns)), (name, make) in product(heads(own).items(), classifiers().items()):
        yield (
            f"{head} | {name}",
            partial(_behind, before, columns, _text_labels(make), "three" if name != "SGD" else "two"),
        )
    for (head, (before, columns)), (name, make) in product(heads(own).items(), regressors().items()):
        yield f"{head} | {name} of numbers", partial(_behind, before, columns, make, "numbers")


def _text_labels(make: Callable[[], Any]) -> Callable[[], Any]:
    """XGBoost takes labels from 0 only; others any."""

    def wrapped() -> Any:
        made = make()
        return _Encoded(made) if type(made).__module__.startswith("xgboost") else made

    return wrapped


def _Encoded(booster: Any) -> Any:  # noqa: N802 - stands for a class
    return multiclass.OneVsRestClassifier(booster)


def texts() -> Iterator[tuple[str, Make]]:
    """Classifiers and regressors of a single text."""
    vectorizers = {
        "tf-idf": feature_extraction.text.TfidfVectorizer,
        "tf-idf of pairs": partial(feature_extraction.text.TfidfVectorizer, ngram_range=(1, 2), sublinear_tf=True),
        "counts": partial(feature_extraction.text.CountVectorizer, binary=True),
        "tf-idf of characters": partial(
            feature_extraction.text.TfidfVectorizer, analyzer="char_wb", ngram_range=(2, 3)
        ),
        "hashes": partial(feature_extraction.text.HashingVectorizer, n_features=512),
    }
    lasts = {
        "logistic": linear_model.LogisticRegression,
        "LinearSVC": svm.LinearSVC,
        "Bayes": naive_bayes.ComplementNB,
        "SGD": partial(linear_model.SGDClassifier, random_state=0),
        "forest": partial(ensemble.RandomForestClassifier, 20, random_state=0),
    }

    def make(vectorizer: Callable[[], Any], last: Callable[[], Any]) -> Animal:
        table = mixed_table()
        table = table[["note", TARGET]].assign(**{TARGET: _target("two", table[TARGET])})
        return _fitted(pipeline.make_pipeline(vectorizer(), last()), table, "series")

    for (before, vectorizer), (name, last) in product(vectorizers.items(), lasts.items()):
        if (before, name) != ("hashes", "Bayes"):  # which has negative values
            yield f"text: {before} | {name}", partial(make, vectorizer, last)


DTYPES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "float32": lambda table: table.astype(dict.fromkeys(NUMBERS, "float32")),
    "Int64": lambda table: table.astype({"visits": "Int64"}),
    "int8": lambda table: table.astype({"visits": "int8"}),
    "Float64": lambda table: table.astype(dict.fromkeys(("age", "income"), "Float64")),
    "categories": lambda table: table.astype({"city": "category"}),
    "object": lambda table: table.astype({"city": "object"}),
    "gaps": lambda table: table.assign(age=table["age"].where(table["age"] > 25)),
    "gaps in categories": lambda table: table.assign(city=table["city"].where(table["city"] != "Lima", None)),
}


def dtypes() -> Iterator[tuple[str, Make]]:
    """Kinds of columns before estimators."""

    def make(change: Callable[[pd.DataFrame], pd.DataFrame], last: Callable[[], Any]) -> Animal:
        encoder = preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        head = _columns(
            pipeline.make_pipeline(impute.SimpleImputer(strategy="most_frequent"), encoder),
            pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler()),
        )
        table = mixed_table()
        table = table[[*NUMBERS, "city", TARGET]].assign(**{TARGET: _target("two", table[TARGET])})
        return _fitted(pipeline.make_pipeline(head, last()), change(table), "frame")

    chosen = ("logistic", "forest", "boosting", "histogram", "SVC", "LightGBM")
    for (dtype, change), name in product(DTYPES.items(), chosen):
        yield f"{dtype} | {name}", partial(make, change, classifiers()[name])


def wrappers() -> Iterator[tuple[str, Make]]:
    """Searches, ensembles of ensembles, calibration, thresholds."""
    search = model_selection

    def wrapped(wrap: Callable[[Any], Any], make: Callable[[], Any], kind: str) -> Animal:
        table = mixed_table()
        table = table[[*NUMBERS, TARGET]].assign(**{TARGET: _target(kind, table[TARGET])})
        if kind == "two":  # XGBoost takes labels from 0 only
            table[TARGET] = (table[TARGET] == "yes").astype(int)
        return _fitted(wrap(make()), table, "frame")

    def threshold(inner: Any) -> Any:
        return search.FixedThresholdClassifier(inner, threshold=0.4)

    def voting(inner: Any, how: str) -> Any:
        return ensemble.VotingClassifier([("one", inner), ("two", linear_model.LogisticRegression())], voting=how)

    of_classes: dict[str, Callable[[Any], Any]] = {
        "grid search": lambda inner: search.GridSearchCV(inner, {}, cv=2),
        "halving search": lambda inner: search.HalvingGridSearchCV(inner, {}, cv=2),
        "scaled": lambda inner: pipeline.make_pipeline(preprocessing.StandardScaler(), inner),
        "frozen": lambda inner: pipeline.make_pipeline(preprocessing.StandardScaler(), inner),
        "threshold": threshold,
        "tuned threshold": search.TunedThresholdClassifierCV,
        "sigmoid": lambda inner: calibration.CalibratedClassifierCV(inner, cv=2),
        "isotonic": lambda inner: calibration.CalibratedClassifierCV(inner, method="isotonic", cv=2),
        "soft voting": lambda inner: voting(inner, "soft"),
        "hard voting": lambda inner: voting(inner, "hard"),
        "bagging": lambda inner: ensemble.BaggingClassifier(inner, 3, n_jobs=2, random_state=0),
        "stacking": lambda inner: ensemble.StackingClassifier([("one", inner)], cv=2),
        "one versus rest": multiclass.OneVsRestClassifier,
        "AdaBoost": lambda inner: ensemble.AdaBoostClassifier(inner, n_estimators=3, random_state=0),
    }
    of_numbers: dict[str, Callable[[Any], Any]] = {
        "grid search": lambda inner: search.GridSearchCV(inner, {}, cv=2),
        "logarithm": lambda inner: compose.TransformedTargetRegressor(inner, func=np.log1p, inverse_func=np.expm1),
        "voting": lambda inner: ensemble.VotingRegressor([("one", inner), ("two", linear_model.Ridge())]),
        "bagging": lambda inner: ensemble.BaggingRegressor(inner, 3, random_state=0),
        "stacking": lambda inner: ensemble.StackingRegressor([("one", inner)], cv=2),
        "frozen": frozen.FrozenEstimator,
        "AdaBoost": lambda inner: ensemble.AdaBoostRegressor(inner, n_estimators=3, random_state=0),
    }
    for (how, wrap), name in product(of_classes.items(), ("logistic", "forest", "histogram", "XGBoost", "LightGBM")):
        yield f"{how} of {name}", partial(wrapped, wrap, classifiers()[name], "two")
    for (how, wrap), name in product(of_numbers.items(), ("Ridge", "forest", "histogram", "XGBoost", "LightGBM")):
        if how != "frozen":
            yield f"{how} of {name} of numbers", partial(wrapped, wrap, regressors()[name], "numbers")


def boosters() -> Iterator[tuple[str, Make]]:
    """Boosters alone: on frames and arrays, two classes and three, with gaps, objectives of their own."""

    def make(booster: Callable[[], Any], kind: str, form: str, *, gaps: bool) -> Animal:
        table = mixed_table()
        table = table[[*NUMBERS, TARGET]].assign(**{TARGET: _target(kind, table[TARGET])})
        if kind != "numbers":
            table[TARGET] = pd.factorize(table[TARGET], sort=True)[0]
        if gaps:
            table["age"] = table["age"].where(table["age"] > 25)
        return _fitted(booster(), table, form)

    made: dict[str, Callable[[], Any]] = {
        "XGBClassifier": _booster("xgboost", "XGBClassifier", n_estimators=20),
        "LGBMClassifier": _booster("lightgbm", "LGBMClassifier", n_estimators=20, verbose=-1),
        "CatBoostClassifier": _booster(
            "catboost", "CatBoostClassifier", iterations=20, verbose=False, allow_writing_files=False
        ),
        "HistGradientBoostingClassifier": partial(ensemble.HistGradientBoostingClassifier, max_iter=20),
    }
    numbers: dict[str, Callable[[], Any]] = {
        "XGBRegressor": _booster("xgboost", "XGBRegressor", n_estimators=20),
        "XGBRegressor of counts": _booster("xgboost", "XGBRegressor", n_estimators=20, objective="count:poisson"),
        "LGBMRegressor": _booster("lightgbm", "LGBMRegressor", n_estimators=20, verbose=-1),
        "LGBMRegressor of quantiles": _booster(
            "lightgbm", "LGBMRegressor", objective="quantile", alpha=0.9, n_estimators=20, verbose=-1
        ),
        "CatBoostRegressor": _booster(
            "catboost", "CatBoostRegressor", iterations=20, verbose=False, allow_writing_files=False
        ),
    }
    for (name, booster), kind, form, gaps in product(made.items(), ("two", "three"), ("frame", "array"), (False, True)):
        yield f"{name}, {kind}, {form}{', gaps' if gaps else ''}", partial(make, booster, kind, form, gaps=gaps)
    for (name, booster), form, gaps in product(numbers.items(), ("frame", "array"), (False, True)):
        yield f"{name}, {form}{', gaps' if gaps else ''}", partial(make, booster, "numbers", form, gaps=gaps)


def own_estimators(own: ModuleType) -> Iterator[tuple[str, Make]]:
    """Estimators of one's own, alone and behind a scaler."""

    def make(estimator: Callable[[], Any], form: str) -> Animal:
        table = mixed_table()
        table = table[[*NUMBERS, TARGET]].assign(**{TARGET: _target("three", table[TARGET])})
        return _fitted(estimator(), table, form)

    for form in ("frame", "array"):
        yield f"own classifier, {form}", partial(make, own.NearestMean, form)
        scaled = partial(pipeline.make_pipeline, preprocessing.StandardScaler(), own.NearestMean())
        yield f"own classifier, scaled, {form}", partial(make, scaled, form)


def everything(own: ModuleType) -> Iterator[tuple[str, Make]]:
    """The whole zoo but the classes."""
    yield from pipelines(own)
    yield from texts()
    yield from dtypes()
    yield from wrappers()
    yield from boosters()
    yield from own_estimators(own)
