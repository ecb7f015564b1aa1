"""Models of texts answer compiled as scikit-learn does, bit for bit: a dictionary and the entries that a text has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier, SGDClassifier
from sklearn.naive_bayes import BernoulliNB, ComplementNB, MultinomialNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from registry.asking import estimator_compute, layout_of
from registry.explain.compiled import linear_explainer
from registry.explain.shap_values import Contributions
from registry.kernels import Compiled, compile_verified, matrix
from registry.kernels.compiling import take_apart
from registry.kernels.kernel import Unsupported
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema
from registry.store.add import add_version
from serving.predict.operation import Operation

WORDS = [
    "so-so",
    "don't",
    *[
        "good",
        "bad",
        "great",
        "awful",
        "fine",
        "café",
        "naïve",
        "straße",
        "film",
        "Film",
        "movie",
        "actor",
        "plot",
        "2024",
        "I",
        "a",
        "über",
    ],
]
COUNT = 240
TEXT = Feature(name="text", kind="text", dtype="object")


def texts(count: int = COUNT, seed: int = 5) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 25))) for _ in range(count)]


def labels(given: list[str], classes: int) -> Any:
    """The number of good words less the number of bad ones, in classes."""
    scores = [
        sum(text.count(word) for word in ("good", "great", "fine")) - text.count("bad") - text.count("awful")
        for text in given
    ]
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return np.array(["a", "b", "c"])[ranks * classes // len(given)]


def compiled_text(estimator: Any, classes: int = 2, given: list[str] | None = None) -> tuple[Compiled, Any]:
    given = given or texts()
    series = pd.Series(given, dtype=object)
    estimator.fit(series, labels(given, classes))
    schema = Schema([TEXT], "series")
    layout = layout_of(estimator, series)
    reference = estimator_compute(estimator, schema, layout)
    rows = np.array(given, dtype=object)[:60, None]
    return compile_verified(estimator, schema, rows, reference, layout), reference


VECTORIZERS: dict[str, Callable[[], Any]] = {
    "tf-idf": TfidfVectorizer,
    "tf-idf of pairs": lambda: TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    "tf-idf, l1": lambda: TfidfVectorizer(norm="l1", smooth_idf=False),
    "tf-idf, no norm": lambda: TfidfVectorizer(norm=None, min_df=3, max_features=12),
    "tf alone": lambda: TfidfVectorizer(use_idf=False, binary=True),
    "accents, case, stop words": lambda: TfidfVectorizer(
        strip_accents="unicode", lowercase=False, stop_words=["a", "I"], token_pattern=r"\S+"
    ),
    "characters": lambda: TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3)),
    "counts": CountVectorizer,
    "counts, binary": lambda: CountVectorizer(binary=True, strip_accents="ascii"),
    "own tokenizer": lambda: CountVectorizer(tokenizer=str.split, token_pattern=None),
    "hashes": lambda: HashingVectorizer(n_features=64),
    "counts, then weights": lambda: make_pipeline(CountVectorizer(), TfidfTransformer(sublinear_tf=True)),
    "the best words": lambda: make_pipeline(TfidfVectorizer(), SelectKBest(chi2, k=9)),
    "words and characters": lambda: make_union(TfidfVectorizer(), CountVectorizer(analyzer="char", max_features=20)),
    "scaled": lambda: make_pipeline(CountVectorizer(), MaxAbsScaler()),
    "topics": lambda: make_pipeline(TfidfVectorizer(), TruncatedSVD(4, random_state=0), StandardScaler()),
}
LAST: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression(C=10),
    "SVC": LinearSVC,
    "stochastic": lambda: SGDClassifier(loss="modified_huber", random_state=0),
    "ridge": RidgeClassifier,
    "multinomial": MultinomialNB,
    "complement": ComplementNB,
    "Bernoulli": BernoulliNB,
    "calibrated SVC": lambda: CalibratedClassifierCV(LinearSVC(), cv=2),
    "vote": lambda: VotingClassifier([("a", LogisticRegression()), ("b", MultinomialNB())], voting="soft"),
}


@pytest.mark.parametrize("name", VECTORIZERS)
def test_vectorizer(name: str) -> None:
    compiled, reference = compiled_text(make_pipeline(VECTORIZERS[name](), LogisticRegression(C=10, max_iter=2000)), 3)
    assert compiled.python == ()
    rows = np.array(texts(40, seed=9), dtype=object)[:, None]
    for row in rows:
        assert compiled.compute(row[None]).tobytes() == reference(row[None]).tobytes()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", LAST)
def test_classifier_of_texts(name: str, classes: int) -> None:
    compiled, reference = compiled_text(make_pipeline(TfidfVectorizer(), LAST[name]()), classes)
    assert compiled.python == ()
    rows = np.array(texts(40, seed=9), dtype=object)[:, None]
    assert compiled.compute(rows).tobytes() == reference(rows).tobytes()


def test_wide_matrix_of_texts_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "WIDE", 3)
    monkeypatch.setattr(matrix, "MAX_CELLS", 90)
    compiled, reference = compiled_text(make_pipeline(TfidfVectorizer(), RandomForestClassifier(9, random_state=0)), 3)
    rows = np.array(texts(40, seed=9), dtype=object)[:, None]
    assert compiled.compute(rows).tobytes() == reference(rows).tobytes()


def test_texts_of_a_million_columns_are_left_to_the_estimator() -> None:
    with pytest.raises(Unsupported, match="HashingVectorizer makes more than"):
        compiled_text(make_pipeline(HashingVectorizer(), LogisticRegression()))


def test_trees_on_texts() -> None:
    compiled, _ = compiled_text(make_pipeline(TfidfVectorizer(), RandomForestClassifier(9, random_state=0)), 3)
    assert compiled.python == ()


SAMPLE = compiled_text(make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression()))


@given(
    st.lists(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(WORDS)).map(" ".join)), min_size=1, max_size=5)
)
def test_any_text_is_answered_as_scikit_learn_does(some: list[str]) -> None:
    compiled, reference = SAMPLE
    rows = np.array(some, dtype=object)[:, None]
    assert compiled.compute(rows).tobytes() == reference(rows).tobytes()


def text_among_columns() -> tuple[Any, Schema, Rows, pd.DataFrame]:
    given = texts()
    rng = np.random.default_rng(2)
    table = pd.DataFrame(
        {
            "price": rng.lognormal(3, 1, COUNT),
            "text": pd.Series(given, dtype=object),
            "city": pd.Series(rng.choice(["Bern", "Zug"], COUNT), dtype=object),
            "title": pd.Series(texts(seed=8), dtype=object),
        }
    )
    features = [
        Feature(name="price", kind="number", minimum=0.0, maximum=1e6, seen=(0.5, 400.0)),
        TEXT,
        Feature(name="city", kind="category", categories=("Bern", "Zug"), dtype="object"),
        Feature(name="title", kind="text", dtype="object"),
    ]
    rows = table.to_numpy(object)
    rows[:, 2] = (rows[:, 2] == "Zug").astype(float)
    columns = make_column_transformer(
        (TfidfVectorizer(), "text"),
        (StandardScaler(), ["price"]),
        (OneHotEncoder(), ["city"]),
        (CountVectorizer(), "title"),
        sparse_threshold=1.0,
    )
    return columns, Schema(features, "frame"), rows, table


@pytest.mark.parametrize("last", [LogisticRegression(max_iter=2000), Ridge(), RandomForestClassifier(5)], ids=str)
def test_texts_among_other_columns(last: Any) -> None:
    columns, schema, rows, table = text_among_columns()
    y = labels(list(table["text"]), 3)
    estimator = make_pipeline(columns, last).fit(
        table, np.unique(y, return_inverse=True)[1] if isinstance(last, Ridge) else y
    )
    layout = layout_of(estimator, table)
    reference = estimator_compute(estimator, schema, layout)
    compiled = compile_verified(estimator, schema, rows[:60], reference, layout)
    assert compiled.python == ()
    assert compiled.compute(rows[60:90]).tobytes() == reference(rows[60:90]).tobytes()


def explained(estimator: Any, classes: int) -> tuple[Contributions, Any, Rows]:
    given = texts()
    estimator.fit(pd.Series(given, dtype=object), labels(given, classes))
    rows = np.array(given, dtype=object)[:, None]
    parts = take_apart(estimator, Schema([TEXT], "series"))
    return linear_explainer(parts, rows[:100]).explain(rows[100:120]), estimator, rows


def test_words_of_a_text_are_explained_by_coefficient_and_mean() -> None:
    found, estimator, rows = explained(make_pipeline(TfidfVectorizer(), LogisticRegression()), 2)
    vectorizer, last = estimator
    found_in = vectorizer.transform(rows[:, 0]).toarray()
    expected = last.coef_[0] * (found_in[100:120] - found_in[:100].mean(axis=0))
    np.testing.assert_allclose(found.values[:, 0, 1], expected.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(found.outputs[:, 1], estimator.decision_function(rows[100:120, 0]))
    assert found.gap() < 1e-12
    assert found.words is not None
    names = vectorizer.get_feature_names_out().tolist()
    for row, by_feature in enumerate(found.words):
        assert by_feature["text"].keys() == {names[place] for place in np.flatnonzero(found_in[100 + row])}
        for word, contribution in by_feature["text"].items():
            np.testing.assert_allclose(contribution[1], expected[row, names.index(word)], atol=1e-12)


def test_selected_words_of_several_classes_are_explained() -> None:
    found, _, _ = explained(make_pipeline(TfidfVectorizer(), SelectKBest(chi2, k=5), LogisticRegression()), 3)
    assert found.values.shape == (20, 1, 3)
    assert found.gap() < 1e-12
    assert found.words is not None
    assert all(len(words["text"]) <= 5 for words in found.words)


def test_texts_are_explained_beside_other_columns() -> None:
    columns, schema, rows, table = text_among_columns()
    estimator = make_pipeline(columns, LogisticRegression(max_iter=2000)).fit(table, labels(list(table["text"]), 2))
    found = linear_explainer(take_apart(estimator, schema), rows[:100]).explain(rows[100:110])
    assert found.values.shape == (10, 4, 2)
    assert (np.abs(found.values).mean(axis=0) > 0).all()
    assert found.gap() < 1e-12
    assert found.words is not None
    assert all(words.keys() == {"text", "title"} for words in found.words)


def test_model_of_texts_is_added_and_explained(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": pd.Series(texts(), dtype=object)})
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression())
    estimator.fit(table["text"], labels(list(table["text"]), 2))
    model = add_version(tmp_path, "texts", estimator, table)
    assert (model.compiled, model.python_steps) == (True, ())
    assert model.explainer is not None
    assert model.explainer.method == "linear"
    assert Operation(model, "predict").may_run_inline
    (answer,) = model.explain(np.array([["a good film"]], dtype=object))
    assert set(answer["words"]["text"]) == {"good", "film", "(other)"}
