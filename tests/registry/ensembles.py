"""Every kind of tree ensemble of scikit-learn's, with the options that change how it is compiled or explained."""

from __future__ import annotations

from typing import Any

from sklearn.dummy import DummyRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

SEED: dict[str, Any] = {"random_state": 0}
SMALL: dict[str, Any] = {"n_estimators": 11, **SEED}
QUICK: dict[str, Any] = {"max_iter": 9, "min_samples_leaf": 5, **SEED}

ENSEMBLES: dict[str, tuple[Any, int, bool]] = {
    "decision tree, 2 classes": (DecisionTreeClassifier(**SEED), 2, False),
    "decision tree, 3 classes, missing values": (DecisionTreeClassifier(max_depth=6, **SEED), 3, True),
    "decision tree, numbers": (DecisionTreeRegressor(**SEED), 0, False),
    "decision tree, numbers, missing values": (DecisionTreeRegressor(max_leaf_nodes=20, **SEED), 0, True),
    "forest, 2 classes": (RandomForestClassifier(**SMALL), 2, False),
    "forest, 2 classes, missing values": (RandomForestClassifier(**SMALL), 2, True),
    "forest, 9 classes": (RandomForestClassifier(max_depth=5, **SMALL), 9, False),
    "forest, numbers": (RandomForestRegressor(**SMALL), 0, True),
    "forest, absolute error": (RandomForestRegressor(criterion="absolute_error", max_depth=4, **SMALL), 0, False),
    "forest of eight": (RandomForestClassifier(n_estimators=8, **SEED), 2, False),
    "forest of one": (RandomForestClassifier(n_estimators=1, **SEED), 2, False),
    "forest, weighted classes": (RandomForestClassifier(class_weight="balanced", **SMALL), 3, False),
    "extra trees, 3 classes": (ExtraTreesClassifier(**SMALL), 3, True),
    "extra trees, numbers": (ExtraTreesRegressor(**SMALL), 0, False),
    "random tree, 3 classes": (ExtraTreeClassifier(**SEED), 3, False),
    "random tree, numbers": (ExtraTreeRegressor(**SEED), 0, True),
    "bagging, 2 classes": (BaggingClassifier(**SMALL), 2, True),
    "bagging, 9 classes, some columns": (BaggingClassifier(max_features=0.6, **SMALL), 9, False),
    "bagging, numbers": (BaggingRegressor(**SMALL), 0, True),
    "bagging, numbers, some columns": (BaggingRegressor(max_features=3, bootstrap_features=True, **SMALL), 0, False),
    "isolation forest": (IsolationForest(**SMALL), 0, True),
    "isolation forest, some columns": (IsolationForest(max_features=0.6, contamination=0.1, **SMALL), 0, False),
    "voting trees, 2 classes": (AdaBoostClassifier(**SMALL), 2, False),
    "voting trees, 9 classes": (AdaBoostClassifier(DecisionTreeClassifier(max_depth=4), **SMALL), 9, False),
    "boosting, 2 classes": (GradientBoostingClassifier(**SMALL), 2, False),
    "boosting, 2 classes, exponential loss": (GradientBoostingClassifier(loss="exponential", **SMALL), 2, False),
    "boosting, 2 classes, from zero": (GradientBoostingClassifier(init="zero", **SMALL), 2, False),
    "boosting, 3 classes": (GradientBoostingClassifier(**SMALL), 3, False),
    "boosting, 9 classes": (GradientBoostingClassifier(max_depth=2, **SMALL), 9, False),
    "boosting, numbers": (GradientBoostingRegressor(learning_rate=0.07, subsample=0.8, **SMALL), 0, False),
    "boosting, absolute error": (GradientBoostingRegressor(loss="absolute_error", **SMALL), 0, False),
    "boosting, quantile": (GradientBoostingRegressor(loss="quantile", alpha=0.8, **SMALL), 0, False),
    "boosting, huber": (GradientBoostingRegressor(loss="huber", **SMALL), 0, False),
    "boosting, numbers, from zero": (GradientBoostingRegressor(init="zero", **SMALL), 0, False),
    "boosting, numbers, from a mean": (GradientBoostingRegressor(init=DummyRegressor(), **SMALL), 0, False),
    "histogram boosting, 2 classes": (HistGradientBoostingClassifier(**QUICK), 2, False),
    "histogram boosting, 2 classes, missing values": (HistGradientBoostingClassifier(**QUICK), 2, True),
    "histogram boosting, 3 classes": (HistGradientBoostingClassifier(**QUICK), 3, True),
    "histogram boosting, 9 classes": (HistGradientBoostingClassifier(**QUICK), 9, False),
    "histogram boosting, numbers": (HistGradientBoostingRegressor(**QUICK), 0, True),
    "histogram boosting, absolute error": (HistGradientBoostingRegressor(loss="absolute_error", **QUICK), 0, False),
    "histogram boosting, poisson": (HistGradientBoostingRegressor(loss="poisson", **QUICK), 0, True),
    "histogram boosting, gamma": (HistGradientBoostingRegressor(loss="gamma", **QUICK), 0, False),
    "histogram boosting, quantile": (HistGradientBoostingRegressor(loss="quantile", quantile=0.3, **QUICK), 0, True),
}
"""Each with its number of classes, 0 for numbers, and whether the table it learns from misses values."""
