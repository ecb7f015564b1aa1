"""What a model takes: its pipeline first, then what works when it is tried, then the sample, then options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import CategoricalNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from registry.errors import CannotAdd, InvalidRows
from registry.model import LoadedModel
from registry.rows.features import Feature
from registry.rows.infer_schema import FeatureOptions
from registry.store.add import add_trained
from registry.store.intake import Wishes, decide_schema
from registry.store.tables import read_table
from registry.training.script import Trained
from tests.registry.own_steps import Clipped, KnownCities, Lengths, Months, Regions, WrittenMonths, WrittenRegions

RANDOM = np.random.default_rng(3)
COUNT = 120
WORDS = ["good", "bad", "awful", "nice", "great", "poor", "fine", "terrible", "lovely", "ugly"]
TABLE = pd.DataFrame(
    {
        "age": RANDOM.integers(20, 60, COUNT),
        "income": RANDOM.normal(50, 10, COUNT).round(2),
        "size": RANDOM.choice([1, 2, 3], COUNT),
        "city": RANDOM.choice(["Bern", "Rome", "Oslo"], COUNT),
        "zip": RANDOM.choice(["01069", "02100", "99999"], COUNT),
        "flag": RANDOM.choice(["true", "false"], COUNT),
        "code": RANDOM.choice(["1", "2", "3"], COUNT),
        "answer": RANDOM.choice(["NA", "None", "x"], COUNT),
        "member": np.where(np.arange(COUNT) == 0, 0, 0),
        "note": [" ".join(RANDOM.choice(WORDS, 5)) for _ in range(COUNT)],
        "when": pd.date_range("2024-01-01", periods=COUNT).strftime("%Y-%m-%d"),
    }
)
TRUTH = pd.Series(np.where(TABLE["income"] + TABLE["age"] > 90, "yes", "no"), name="truth")
WORDY = ["city", "zip", "flag", "code", "answer"]


def boosting() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5)


def add(root: Path, estimator: Any, table: pd.DataFrame, **features: Any) -> LoadedModel:
    """The model as `forkserve add` makes it, with the table in a CSV."""
    root.mkdir(exist_ok=True)
    table.assign(truth=TRUTH).to_csv(root / "table.csv", index=False)
    margin = features.pop("margin", None)
    options = FeatureOptions(**features)
    sample = read_table(root / "table.csv", estimator, options, ["truth"])
    trained = Trained(estimator=estimator, sample=sample, target="truth", features=options, margin=margin)
    return add_trained(root / "models", "model", trained)


def features_of(model: LoadedModel) -> dict[str, Feature]:
    return {feature.name: feature for feature in model.manifest.features}


def refusal(model: LoadedModel, changes: Mapping[str, Any]) -> str:
    """Why an instance is refused; empty if it is not."""
    try:
        answered(model, [changes])
    except InvalidRows as error:
        return error.faults[0].reason
    return ""


def answered(model: LoadedModel, changes: list[Any]) -> Any:
    example = model.manifest.example
    return model.predict(model.schema.rows([example | one for one in changes]))


def shares(answers: Any) -> Any:
    return [list(answer["probabilities"].values()) for answer in answers]


def encoded(encoder: Any, columns: list[str], last: Any = None) -> Any:
    head = ColumnTransformer([("encoded", encoder, columns)], remainder="passthrough")
    return make_pipeline(head, last or boosting())


@pytest.mark.filterwarnings("ignore:Found unknown categories:UserWarning")
@pytest.mark.parametrize(
    "encoder",
    [
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
        OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=5, sparse_output=False),
        OneHotEncoder(handle_unknown="warn", sparse_output=False),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
        TargetEncoder(),
    ],
    ids=lambda encoder: str(getattr(encoder, "handle_unknown", "target")),
)
def test_categories_are_open_where_the_encoder_takes_unknown_ones(tmp_path: Path, encoder: Any) -> None:
    table = TABLE[["age", *WORDY]]
    estimator = encoded(encoder, WORDY).fit(table, TRUTH)
    without = table.assign(city=table["city"].replace("Oslo", "Bern"))  # the encoder knows a city that the sample lacks
    model = add(tmp_path, estimator, without)
    found = features_of(model)
    for name in WORDY:
        assert found[name].kind == "category"
        assert found[name].open
        assert found[name].nullable
        assert sorted(map(str, found[name].categories)) == sorted(table[name].unique())
    sent = [{"city": "Oslo"}, {"city": "Paris"}, {"zip": "01069"}, {"flag": "true"}, {"answer": "NA"}, {"code": "3"}]
    asked = pd.DataFrame([model.manifest.example | one for one in sent])[list(table.columns)].astype({"age": "int64"})
    assert shares(answered(model, sent)) == pytest.approx(estimator.predict_proba(asked))
    assert shares(answered(model, [{"city": "Paris"}])) == shares(answered(model, [{"city": "x" * 500}]))


def test_categories_are_closed_where_the_encoder_refuses_unknown_ones(tmp_path: Path) -> None:
    table = TABLE[["age", "size", *WORDY]]
    estimator = encoded(OneHotEncoder(sparse_output=False), ["size", *WORDY]).fit(table, TRUTH)
    model = add(tmp_path, estimator, table.assign(size=1))
    assert features_of(model)["size"].categories == (1, 2, 3)
    assert refusal(model, {"city": "Paris"}) == "must be one of Bern, Oslo, Rome"
    assert refusal(model, {"size": 4}) == "must be one of 1, 2, 3"
    assert refusal(model, {"size": 2.5}) == "must be one of 1, 2, 3"
    assert refusal(model, {"size": 3}) == refusal(model, {"size": 2.0}) == ""
    assert refusal(model, {"city": None}) == "must not be null"
    assert refusal(model, {"age": 22.5}) == ""


def test_an_array_of_codes_or_strings_is_known_by_its_encoder(tmp_path: Path) -> None:
    closed = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(TABLE[["size", "member"]].to_numpy(), TRUTH)
    model = add(tmp_path / "closed", closed, TABLE[["size", "member"]])
    assert model.manifest.input == "array"
    assert refusal(model, {"size": 4}) == "must be one of 1, 2, 3"
    assert shares(answered(model, [{"size": 2}])) == pytest.approx(closed.predict_proba([[2, 0]]))
    ignoring = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    ignoring.fit(TABLE[["city", "size"]].to_numpy(), TRUTH)
    model = add(tmp_path / "open", ignoring, TABLE[["city", "size"]])
    sent = [{"city": "Paris", "size": 7}, {"city": "Rome", "size": 2}]
    expected = ignoring.predict_proba(np.array([["Paris", 7], ["Rome", 2]], dtype=object))
    assert shares(answered(model, sent)) == pytest.approx(expected)
    bayes = add(tmp_path / "bayes", CategoricalNB().fit(TABLE[["size"]], TRUTH), TABLE[["size"]])
    assert refusal(bayes, {"size": 9}) == "must be one of 0, 1, 2, 3"


NULLABLE: dict[str, tuple[Callable[[], Any], bool]] = {
    "imputer": (lambda: make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()), True),
    "search": (lambda: GridSearchCV(make_pipeline(SimpleImputer(), LogisticRegression()), {}, cv=2), True),
    "boosting": (boosting, True),
    "forest": (lambda: RandomForestClassifier(5), True),
    "xgboost": (lambda: make_pipeline(FunctionTransformer(), xgboost.XGBClassifier(n_estimators=3)), True),
    "lightgbm": (lambda: lightgbm.LGBMClassifier(n_estimators=3, verbose=-1), True),
    "own": (lambda: make_pipeline(Clipped(), boosting()), True),
    "linear": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), False),
    "own linear": (lambda: make_pipeline(Clipped(), LogisticRegression()), False),
}


@pytest.mark.parametrize("form", ["frame", "array"])
@pytest.mark.parametrize("name", NULLABLE)
def test_numbers_may_be_missing_fractional_and_far_away_where_that_works(tmp_path: Path, name: str, form: str) -> None:
    make, nullable = NULLABLE[name]
    table = TABLE[["age", "income", "member"]]
    given = table if form == "frame" else table.to_numpy()
    truth = (TRUTH == "yes").astype(int) if name == "xgboost" else TRUTH
    estimator = make().fit(given, truth)
    if name == "xgboost":
        model = add_numbers(tmp_path, estimator, table.assign(truth=truth))
    else:
        model = add(tmp_path, estimator, table)
    assert [feature.nullable for feature in model.manifest.features] == [nullable] * 3
    assert [feature.kind for feature in model.manifest.features] == ["number"] * 3
    assert features_of(model)["member"].seen == (0.0, 0.0)
    sent: list[dict[str, Any]] = [
        {"age": 22.5},
        {"age": -7, "income": 1e6, "member": 1},
        *([{"age": None}] if nullable else []),
    ]
    asked = pd.DataFrame([model.manifest.example | one for one in sent])[list(table.columns)].astype("float64")
    expected = estimator.predict_proba(asked if form == "frame" else asked.to_numpy())
    assert shares(answered(model, sent)) == pytest.approx(expected)
    assert refusal(model, {"age": None}) == ("" if nullable else "must not be null")


def add_numbers(root: Path, estimator: Any, table: pd.DataFrame) -> LoadedModel:
    return add_trained(root / "models", "model", Trained(estimator=estimator, sample=table, target="truth"))


def test_numbers_that_the_pipeline_cannot_take_are_bounded(tmp_path: Path) -> None:
    estimator = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(TABLE[["age", "income"]], TRUTH)
    model = add(tmp_path, estimator, TABLE[["age", "income"]])
    assert refusal(model, {"age": -1}).startswith("must be between 0 and")
    assert refusal(model, {"age": 1e6}) == ""


def test_numbers_too_large_when_scaled_may_be_negative_all_the_same(tmp_path: Path) -> None:
    table = pd.DataFrame({"share": TABLE["income"] / 1000, "income": TABLE["income"]})
    estimator = make_pipeline(StandardScaler(), RandomForestClassifier(3, random_state=0)).fit(table, TRUTH)
    model = add(tmp_path, estimator, table)
    sent = [{"share": -0.01}, {"share": 1.5}, {"income": -1e6}]
    asked = pd.DataFrame([model.manifest.example | one for one in sent])[list(table.columns)]
    assert shares(answered(model, sent)) == pytest.approx(estimator.predict_proba(asked))


@pytest.mark.parametrize(("margin", "allowed"), [(0.0, False), (1.0, True)])
def test_bounds_are_enforced_where_asked(tmp_path: Path, margin: float, allowed: bool) -> None:  # noqa: FBT001
    model = add(tmp_path, boosting().fit(TABLE[["age"]], TRUTH), TABLE[["age"]], margin=margin)
    assert (refusal(model, {"age": 70}) == "") is allowed
    assert refusal(model, {"age": 700}).startswith("must be between")


VECTORIZERS = [
    TfidfVectorizer(),
    CountVectorizer(ngram_range=(1, 2)),
    HashingVectorizer(n_features=64),
    FeatureUnion([("words", TfidfVectorizer()), ("letters", TfidfVectorizer(analyzer="char"))]),
]


@pytest.mark.parametrize("vectorizer", VECTORIZERS, ids=lambda vectorizer: type(vectorizer).__name__)
def test_a_text_classifier_takes_any_text(tmp_path: Path, vectorizer: Any) -> None:
    estimator = make_pipeline(vectorizer, LogisticRegression()).fit(TABLE["note"].tolist(), TRUTH)
    model = add(tmp_path, estimator, TABLE[["note"]])
    assert model.manifest.input == "series"
    assert features_of(model)["note"].kind == "text"
    texts = ["", "never heard of it", "\u202enaïve \U0001f600", 'two\nlines, "quoted"', "x" * 10_000]
    assert shares(answered(model, [{"note": text} for text in texts])) == pytest.approx(estimator.predict_proba(texts))
    assert refusal(model, {"note": "x" * 10_001}) == "must have at most 10000 characters"
    assert refusal(model, {"note": None}) == "must not be null"
    assert refusal(model, {"note": "a\0b"}) == "must not contain a NUL character"
    assert refusal(model, {"note": "\ud83d"}).startswith("must be valid Unicode")
    assert refusal(model, {"note": 5}) == "must be a string"
    assert len(model.explain(model.schema.rows([{"note": "good"}]))) == 1


def test_texts_stand_beside_other_columns(tmp_path: Path) -> None:
    head = ColumnTransformer(
        [
            ("note", TfidfVectorizer(), "note"),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
        ]
    )
    table = TABLE[["note", "city", "age", "income"]]
    estimator = make_pipeline(head, LogisticRegression()).fit(table, TRUTH)
    model = add(tmp_path, estimator, table)
    sent: list[dict[str, Any]] = [
        {"note": "so nice", "city": "Paris", "age": 22.5},
        {"note": "", "income": None},
        {"city": "Rome"},
    ]
    asked = pd.DataFrame([model.manifest.example | one for one in sent])
    assert shares(answered(model, sent)) == pytest.approx(estimator.predict_proba(asked))


OWN = {
    "strings that own code reads": (KnownCities, "city", "text", ["RoMe", "Paris", " bern "], {}),
    "strings that own code takes apart": (Regions, "zip", "category", ["01069", "99999"], {"12": "must be one of"}),
    "numbers and strings": (WrittenRegions, "zip", "category", ["01069", "99999"], {"x": "must be one of"}),
    "dates as strings": (WrittenMonths, "when", "datetime", ["2025-07-01"], {"2025-07-01T12:00": "must be no finer"}),
}


@pytest.mark.parametrize("name", OWN)
def test_own_code_is_tried(tmp_path: Path, name: str) -> None:
    step, column, kind, good, bad = OWN[name]
    table = TABLE[["age", column]]
    estimator = make_pipeline(step(), boosting()).fit(table, TRUTH)
    model = add(tmp_path, estimator, table)
    assert features_of(model)[column].kind == kind
    asked = pd.DataFrame([model.manifest.example | {column: value} for value in good])[["age", column]]
    assert shares(answered(model, [{column: value} for value in good])) == pytest.approx(estimator.predict_proba(asked))
    for value, reason in bad.items():
        assert reason in refusal(model, {column: value})


def test_codes_that_are_numbers_to_the_pipeline_stay_numbers(tmp_path: Path) -> None:
    numbers = TABLE[["age", "zip"]].astype({"zip": int})
    for step, options in ((WrittenRegions(), {"fractions": ["zip"]}), (StandardScaler(), {})):
        estimator = make_pipeline(step, boosting()).fit(numbers, TRUTH)
        model = add(tmp_path / type(step).__name__, estimator, TABLE[["age", "zip"]], **options)
        expected = estimator.predict_proba(numbers.head(5))
        assert shares(answered(model, numbers.head(5).to_dict("records"))) == pytest.approx(expected)


DATES: dict[str, Any] = {
    "days": lambda times: times,
    "seconds": lambda times: times.dt.as_unit("s"),
    "nanoseconds": lambda times: times.dt.as_unit("ns"),
    "utc": lambda times: times.dt.tz_localize("UTC"),
}
SENT = ["2025-07-01", "2024-12-31T23:30:00+00:00", "2024-W18-3T10:00+02:00", "2024-122", "20240501T123015Z"]


@pytest.mark.parametrize("read", ["csv", "frame"])
@pytest.mark.parametrize("name", [*DATES, "Berlin"])
def test_dates_are_handed_on_as_the_pipeline_was_fitted(tmp_path: Path, name: str, read: str) -> None:
    if name == "Berlin" and read == "csv":
        pytest.skip("a CSV does not say what its offsets stand for")
    change = DATES.get(name, lambda times: times.dt.tz_localize("Europe/Berlin"))
    table = TABLE[["age"]].assign(when=change(pd.to_datetime(TABLE["when"])))
    estimator = make_pipeline(Months(), boosting()).fit(table, TRUTH)
    if read == "csv":
        model = add(tmp_path, estimator, table)
    else:
        model = add_numbers(tmp_path, estimator, table.assign(truth=TRUTH))
    assert features_of(model)["when"].kind == "datetime"
    times = instants()
    asked = pd.DataFrame({"age": model.manifest.example["age"], "when": change(times)})
    if name == "Berlin":
        asked["when"] = times.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    assert shares(answered(model, [{"when": text} for text in SENT])) == pytest.approx(estimator.predict_proba(asked))
    assert refusal(model, {"when": "9999-12-31"}) == "must lie between the years 1684 and 2255"
    assert refusal(model, {"when": None}) == ""


def instants() -> pd.Series[Any]:
    """The times of SENT, in UTC."""
    return pd.Series(
        pd.to_datetime(
            ["2025-07-01", "2024-12-31T23:30", "2024-05-01T08:00", "2024-05-01", "2024-05-01T12:30:15"],
            format="ISO8601",
        )
    )


@pytest.mark.parametrize("library", ["lightgbm", "xgboost", "histogram"])
def test_boosters_know_their_categories(tmp_path: Path, library: str) -> None:
    known = pd.CategoricalDtype(["Bern", "Paris", "Rome", "Oslo"])
    table = TABLE[["age", "city"]].astype({"city": known})
    truth = (TRUTH == "yes").astype(int).rename("truth")
    booster: Any = {
        "lightgbm": lightgbm.LGBMClassifier(n_estimators=3, verbose=-1),
        "xgboost": xgboost.XGBClassifier(n_estimators=3, enable_categorical=True),
        "histogram": HistGradientBoostingClassifier(max_iter=3, categorical_features="from_dtype"),
    }[library]
    booster.fit(table, truth)
    sample = table.astype({"city": "str"}).assign(truth=truth, city=table["city"].astype("str").replace("Bern", "Rome"))
    model = add_numbers(tmp_path, booster, sample)
    city = features_of(model)["city"]
    assert city.nullable
    assert city.open == (library != "xgboost")
    assert set(city.categories) >= {"Bern", "Rome", "Oslo"}
    sent = ["Bern", "Oslo", "Rome"]
    asked = pd.DataFrame({"age": model.manifest.example["age"], "city": pd.Categorical(sent, dtype=known)})
    assert shares(answered(model, [{"city": one} for one in sent])) == pytest.approx(booster.predict_proba(asked))


def test_catboost_is_given_its_categories_as_they_are_written(tmp_path: Path) -> None:
    table = TABLE[["income", "zip", "flag", "code", "answer"]].assign(release=RANDOM.choice(["1.1", "1.10"], COUNT))
    booster = catboost.CatBoostClassifier(
        iterations=9, verbose=0, cat_features=list(table.columns[1:]), allow_writing_files=False
    )
    booster.fit(table, TRUTH)
    model = add(tmp_path, booster, table)
    kinds = {name: feature.kind for name, feature in features_of(model).items()}
    assert kinds == dict.fromkeys(table, "text") | {"income": "number", "code": "integer"}
    rows = table.head(9).to_dict("records")
    sent = [row | {"code": int(row["code"])} for row in rows]
    assert shares(answered(model, sent)) == pytest.approx(booster.predict_proba(table.head(9)))


REFUSED_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"nullable": ["age"]}, "column 'age' cannot be missing: ValueError: Input X contains NaN"),
    ({"nullable": ["city"]}, "column 'city' cannot be missing: ValueError: Found unknown categories"),
    ({"open": ["city"]}, "column 'city' takes no other strings: ValueError: Found unknown categories"),
    ({"text": {"city": 50}}, "column 'city' takes no other texts"),
    ({"text": {"city": 2}}, "column 'city' has a text of 4 characters, more than 2"),
    ({"fractions": ["size"]}, "column 'size' takes no fractions: OneHotEncoder knows 3 values"),
    ({"datetimes": ["city"]}, "column 'city' is no date or time: OneHotEncoder takes it for a category"),
    ({"datetimes": ["note"]}, "column 'note': its values are not dates or times in ISO 8601"),
    ({"open": ["x"]}, "option open: the model has no column 'x'"),
    ({"open": ["city"], "closed": ["city"]}, "column 'city' cannot be both open and closed"),
]


@pytest.mark.parametrize(("features", "reason"), REFUSED_OPTIONS, ids=lambda value: str(value)[:40])
def test_an_option_that_the_pipeline_contradicts_is_refused(
    tmp_path: Path, features: dict[str, Any], reason: str
) -> None:
    table = TABLE[["age", "size", "city", "note"]]
    head = ColumnTransformer(
        [("encoded", OneHotEncoder(), ["size", "city"]), ("own", Lengths(), ["note"])], remainder="passthrough"
    )
    estimator = make_pipeline(head, LogisticRegression()).fit(table, TRUTH)
    with pytest.raises(CannotAdd, match=reason):
        add(tmp_path, estimator, table, **features)


def test_options_narrow_what_a_model_takes(tmp_path: Path) -> None:
    table = TABLE[["age", "city"]]
    head = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    estimator = encoded(head, ["city"]).fit(table, TRUTH)
    model = add(tmp_path, estimator, table, closed=["city"], required="*", margin=0.0)
    assert refusal(model, {"city": "Paris"}) == "must be one of Bern, Oslo, Rome"
    assert refusal(model, {"age": None}) == refusal(model, {"city": None}) == "must not be null"
    assert refusal(model, {"age": 600}).startswith("must be between")


def test_missing_values_in_the_table_cannot_be_required(tmp_path: Path) -> None:
    table = TABLE[["age", "income"]].assign(income=TABLE["income"].where(TABLE["income"] > 40))
    with pytest.raises(CannotAdd, match="'income' has missing values"):
        add(tmp_path, boosting().fit(table, TRUTH), table, required=["income"])


@pytest.mark.parametrize("gap", [None, np.nan], ids=["None", "NaN"])
def test_objects_are_missing_as_the_pipeline_knows_them(tmp_path: Path, gap: Any) -> None:
    table = TABLE[["age", "city"]].astype({"city": "object"})
    table.loc[::7, "city"] = gap
    head = make_pipeline(
        SimpleImputer(missing_values=gap, strategy="most_frequent"), OneHotEncoder(sparse_output=False)
    )
    estimator = encoded(head, ["city"], LogisticRegression()).fit(table, TRUTH)
    for sample in (table, table.dropna()):
        model = add_numbers(tmp_path, estimator, sample.assign(truth=TRUTH))
        assert features_of(model)["city"].nullable
        expected = estimator.predict_proba(pd.DataFrame({"age": [30], "city": pd.Series([gap], dtype="object")}))
        assert shares(answered(model, [{"age": 30, "city": None}])) == pytest.approx(expected)


def test_a_wide_table_is_tried_in_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = pd.DataFrame(RANDOM.normal(size=(40, 200)), columns=[f"x{i}" for i in range(200)])
    whole = pd.DataFrame(RANDOM.integers(0, 9, (40, 100)), columns=[f"n{i}" for i in range(100)])
    table = pd.concat([numbers, whole], axis=1)
    truth = RANDOM.integers(0, 2, 40)
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(table, truth)
    calls = []
    ask = LogisticRegression.predict_proba

    def counted(self: Any, given: Any) -> Any:
        calls.append(len(given))
        return ask(self, given)

    monkeypatch.setattr(LogisticRegression, "predict_proba", counted)
    schema = decide_schema(estimator, table, Wishes(options=FeatureOptions(), margin=None))
    assert {feature.kind for feature in schema.features} == {"number"}
    assert not schema.takes_missing
    assert len(calls) < 10
