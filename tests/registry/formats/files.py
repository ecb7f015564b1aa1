"""Model files for tests: a small table, estimators fitted on it, and pickles that another release has written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn.ensemble import RandomForestClassifier

RANDOM = np.random.default_rng(12)
TABLE = pd.DataFrame(RANDOM.normal(size=(80, 3)), columns=["a", "b", "c"])
WORDS = pd.Series(np.where(TABLE["a"] + TABLE["b"] > 0, "yes", "no"), name="answer")
THREE = pd.Series(np.select([TABLE["a"] > 0.5, TABLE["a"] < -0.5], [2, 1], 0), name="answer")
VALUES = pd.Series(TABLE["a"] * 2 + TABLE["b"], name="answer")


def forest() -> Any:
    return RandomForestClassifier(5, random_state=0).fit(TABLE, WORDS)


def old_pickle(estimator: Any, version: str = "1.3.2") -> bytes:
    """The pickle of an estimator as another release of scikit-learn would have stated it."""
    stated, content = sklearn.__version__.encode(), pickle.dumps(estimator)
    assert len(stated) == len(version)
    assert content.count(stated) == 1
    return content.replace(stated, version.encode())


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
