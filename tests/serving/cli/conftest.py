"""A table of customers, and versions of a model that was made of it."""

from __future__ import annotations

from pathlib import Path

import joblib
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.store.add import add_version
from registry.store.reading import read_trained
from registry.store.tables import read_table


@pytest.fixture
def churn(tmp_path: Path) -> Path:
    """A pipeline that somebody has fitted on a DataFrame, and the table it came from."""
    table = pd.DataFrame({"months": range(40), "calls": [i % 7 for i in range(40)], "left": ["yes", "no"] * 20})
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(table[["months", "calls"]], table["left"])
    joblib.dump(estimator, tmp_path / "churn.joblib")
    table.to_csv(tmp_path / "churn.csv", index=False)
    return tmp_path


def add_churn(churn: Path, name: str, versions: int) -> None:
    """What `forkserve add` does, in a tenth of its time."""
    for _ in range(versions):
        table = read_table(churn / "churn.csv")
        add_version(churn / "models", name, read_trained(churn / "churn.joblib")[0], table)


@pytest.fixture
def two_versions(churn: Path) -> Path:
    """The directory of a model with two versions."""
    add_churn(churn, "churn", 2)
    return churn / "models" / "churn"
