"""Fits thirty models and writes them to a directory; run by `bench.zoo` with other versions of scikit-learn.

Beside each artefact lie a CSV of its input and, as JSON, a label and the numbers that it answers for each row.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn import (
    calibration,
    ensemble,
    linear_model,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    svm,
    tree,
)
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, PolynomialFeatures, StandardScaler

COLUMNS = ["a", "b", "c", "d"]


def models() -> dict[str, tuple[str, Any]]:
    """By name: what is predicted, and the estimator."""
    columns = ColumnTransformer(
        [("scaled", StandardScaler(), [0, 1]), ("words", OneHotEncoder(handle_unknown="ignore"), [3])],
        remainder="passthrough",
    )
    tree_classifier, logistic = tree.DecisionTreeClassifier(random_state=0), linear_model.LogisticRegression()
    return {
        "forest": ("two", ensemble.RandomForestClassifier(30, random_state=0)),
        "extra": ("two", ensemble.ExtraTreesClassifier(30, random_state=0)),
        "tree": ("two", tree_classifier),
        "grid": ("two", model_selection.GridSearchCV(tree_classifier, {"max_depth": [2, 4]})),
        "ada": ("two", ensemble.AdaBoostClassifier(n_estimators=10, random_state=0)),
        "bagging": ("two", ensemble.BaggingClassifier(random_state=0)),
        "boosting": ("two", ensemble.GradientBoostingClassifier(random_state=0, n_estimators=20)),
        "histogram": ("two", ensemble.HistGradientBoostingClassifier(max_iter=20)),
        "logistic": ("two", logistic),
        "logistic3": ("three", linear_model.LogisticRegression(max_iter=300)),
        "scaled": ("two", make_pipeline(StandardScaler(), linear_model.LogisticRegression())),
        "columns": ("two", make_pipeline(columns, linear_model.LogisticRegression())),
        "columns-forest": ("three", make_pipeline(columns, ensemble.RandomForestClassifier(10, random_state=0))),
        "imputed": ("two", make_pipeline(SimpleImputer(), linear_model.LogisticRegression())),
        "bins": ("two", make_pipeline(KBinsDiscretizer(4), linear_model.LogisticRegression())),
        "polynomial": ("two", make_pipeline(PolynomialFeatures(2), linear_model.LogisticRegression(max_iter=500))),
        "svc": ("two", svm.SVC()),
        "linear-svc": ("two", svm.LinearSVC()),
        "neighbours": ("two", neighbors.KNeighborsClassifier()),
        "bayes": ("three", naive_bayes.GaussianNB()),
        "network": ("two", neural_network.MLPClassifier((8,), max_iter=50, random_state=0)),
        "sigmoid": ("two", calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2)),
        "isotonic": ("two", calibration.CalibratedClassifierCV(tree_classifier, method="isotonic", cv=2)),
        "voting": ("two", ensemble.VotingClassifier([("a", logistic), ("b", tree_classifier)], voting="soft")),
        "stacking": ("two", ensemble.StackingClassifier([("a", logistic), ("b", tree_classifier)])),
        "ridge": ("number", linear_model.Ridge()),
        "forest-number": ("number", ensemble.RandomForestRegressor(20, random_state=0)),
        "histogram-number": ("number", ensemble.HistGradientBoostingRegressor(max_iter=20)),
        "boosting-number": ("number", ensemble.GradientBoostingRegressor(n_estimators=20, random_state=0)),
        "svr": ("number", svm.SVR()),
    }


def main() -> None:
    """Fit and write all of them."""
    place = Path(sys.argv[1])
    place.mkdir()
    random = np.random.default_rng(0)
    values = np.column_stack([random.normal(size=(300, 3)), random.integers(0, 4, 300)])
    numbers = values.sum(axis=1) + random.normal(0, 0.3, 300)
    targets = {
        "number": numbers,
        "two": np.where(numbers > np.median(numbers), "yes", "no"),
        "three": np.array(["low", "mid", "high"])[np.digitize(numbers, np.quantile(numbers, [0.3, 0.6]))],
    }
    warnings.simplefilter("ignore")
    for name, (kind, estimator) in models().items():
        estimator.fit(values, targets[kind])
        joblib.dump(estimator, place / f"{name}.joblib")
        pd.DataFrame(values, columns=COLUMNS).assign(target=targets[kind]).to_csv(place / f"{name}.csv", index=False)
        predicted = estimator.predict(values)
        shares = estimator.predict_proba(values).tolist() if hasattr(estimator, "predict_proba") else [[]] * len(values)
        rows = [
            [None, [float(one)]] if kind == "number" else [str(one), share]
            for one, share in zip(predicted, shares, strict=True)
        ]
        (place / f"{name}.json").write_text(json.dumps(rows))


main()
