"""`inspect` says what a file is and what `add` would make of it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sklearn
import xgboost
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from harness.estimators import SleepingRegressor
from registry.errors import CannotAdd
from serving.cli.report import Inspection, inspect_file
from tests.registry.formats.files import TABLE, VALUES, WORDS, forest, old_pickle, write

CITIES = TABLE.assign(city=["Oslo", "Rome"] * 40)


def pipeline() -> Any:
    columns = make_column_transformer((StandardScaler(), ["a", "b", "c"]), (OneHotEncoder(), ["city"]))
    return make_pipeline(columns, RandomForestClassifier(5, random_state=0)).fit(CITIES, WORDS)


def report(path: Path, **options: Any) -> dict[str, list[str]]:
    """The lines of a report by their labels."""
    lines: list[str] = []
    inspect_file(Inspection(path=path, **options), lines.append)
    found: dict[str, list[str]] = {}
    label = ""
    for line in lines:
        assert line == line.rstrip()
        assert line.isprintable()
        label = line[:13].strip() or label
        found.setdefault(label, []).append(line[14:])
    return found


def test_without_rows_it_says_what_the_estimator_knows(tmp_path: Path) -> None:
    said = report(write(tmp_path / "model.pkl", pickle.dumps(pipeline())))
    assert said["format"] == ["pickle"]
    assert said["fitted with"] == [f"scikit-learn {sklearn.__version__} (installed: {sklearn.__version__})"]
    assert said["needs"] == ["numpy, sklearn"]
    assert said["estimator"] == [
        "Pipeline",
        "  columntransformer: ColumnTransformer",
        "    standardscaler (a, b, c): StandardScaler",
        "    onehotencoder (city): OneHotEncoder",
        "  randomforestclassifier: RandomForestClassifier",
    ]
    assert (said["task"], said["classes"]) == (["classification"], ["no, yes"])
    assert [line.split()[0] for line in said["features"]] == ["feature", "a", "b", "c", "city"]
    assert "category, 2 listed" in said["features"][4]
    assert [line.split()[-2:] for line in said["features"][1:4]] == [["a", "guess"]] * 3
    assert said["compiled"][0].startswith("yes")
    assert said["explained"][0].startswith("tree-path-dependent, in probabilities")


def test_with_rows_it_says_what_add_would(tmp_path: Path) -> None:
    CITIES.assign(answer=WORDS).to_csv(tmp_path / "rows.csv", index=False)
    path = write(tmp_path / "model.pkl", pickle.dumps(pipeline()))
    said = report(path, data=tmp_path / "rows.csv", target="answer")
    assert said["compiled"] == ["yes"]
    assert said["accuracy"]
    with pytest.raises(CannotAdd, match="no column 'gone'"):
        report(path, data=tmp_path / "rows.csv", target="gone")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.pkl", "rows.csv"]


def test_what_is_not_compiled_is_told_why(tmp_path: Path) -> None:
    fitted = SleepingRegressor().fit(TABLE.to_numpy(), VALUES)
    (TABLE.abs() / 1e9).to_csv(tmp_path / "rows.csv", index=False)
    said = report(write(tmp_path / "model.pkl", pickle.dumps(fitted)), data=tmp_path / "rows.csv")
    assert said["needs"] == ["harness"]
    assert said["compiled"][0].startswith("no: ")


def test_search_shows_its_best_estimator(tmp_path: Path) -> None:
    fitted = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [1, 2]}).fit(TABLE, VALUES)
    said = report(write(tmp_path / "model.pkl", pickle.dumps(fitted)))
    assert said["estimator"][:2] == ["GridSearchCV", "  Pipeline"]
    assert "classes" not in said


def test_booster_file_is_told_from_itself(tmp_path: Path) -> None:
    xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(TABLE, WORDS == "yes").save_model(tmp_path / "model.ubj")
    said = report(tmp_path / "model.ubj")
    assert (said["format"], said["estimator"]) == (["xgboost"], ["XGBClassifier"])
    assert [line.split()[0] for line in said["features"]] == ["feature", "a", "b", "c"]


def test_text_classifier_needs_no_rows_either(tmp_path: Path) -> None:
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["good", "bad", "fine", "poor"], [1, 0, 1, 0])
    said = report(write(tmp_path / "model.pkl", pickle.dumps(fitted)))
    assert "text of at most" in said["features"][1]
    assert said["compiled"][0].startswith("yes")


def test_other_release_is_refused_after_what_can_be_told(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pkl", old_pickle(forest()))
    lines: list[str] = []
    with pytest.raises(CannotAdd, match=r"fitted with scikit-learn 1\.3\.2"):
        inspect_file(Inspection(path=path), lines.append)
    assert f"fitted with   scikit-learn 1.3.2 (installed: {sklearn.__version__})" in lines
    assert report(path, force_version=True)["task"] == ["classification"]


@pytest.mark.parametrize("value", [{"no": "estimator"}, None, pd.DataFrame({"a": [1]}), StandardScaler()])
def test_what_does_not_predict_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CannotAdd, match="is no estimator that predicts"):
        report(write(tmp_path / "model.pkl", pickle.dumps(value)))


def test_calls_that_no_model_needs_are_shown_before_they_are_made(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.rmdir, (str(tmp_path / "gone\x1b[31m"),)

    lines: list[str] = []
    with pytest.raises(CannotAdd, match="FileNotFoundError"):
        inspect_file(Inspection(path=write(tmp_path / "model.pkl", pickle.dumps(Hostile()))), lines.append)
    assert "may call      posix.rmdir" in lines


def test_own_estimator_without_rows_is_not_guessed(tmp_path: Path) -> None:
    class_free = make_pipeline(LogisticRegression()).fit(TABLE.to_numpy(), WORDS)
    del class_free.steps[0][1].n_features_in_
    said = report(write(tmp_path / "model.pkl", pickle.dumps(class_free)))
    assert said["features"] == ["unknown; give rows of its input with --data"]
