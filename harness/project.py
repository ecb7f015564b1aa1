"""A project with own code, and models that it dumps, as their authors do it."""

from __future__ import annotations

import contextlib
import runpy
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from registry.model import LoadedModel
from registry.store.add import add_trained
from registry.store.loader import load_version
from registry.store.reading import read_trained
from registry.training.script import Trained

TABLE = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0, 0.0, 1.0]})

SCALER_HEAD = """
from sklearn.base import BaseEstimator, RegressorMixin

class Scaler(RegressorMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self
"""

SCALER = f"""{SCALER_HEAD}
    def predict(self, X):
        return X[:, 0] * FACTOR
"""

DUMP = """
import joblib
import numpy as np

joblib.dump(Scaler().fit(np.ones((4, 2))), "model.joblib")
"""


class Project:
    """A directory with source files, in which scripts are run as their author runs them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.artefact = directory / "model.joblib"
        self.models = directory / "models"

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    def run(self, script: str, name: str = "make.py") -> None:
        """Run a script as `python make.py`; afterwards nothing of it is left in this process."""
        self.write({name: script})
        tops = {path.stem for path in self.directory.iterdir()}
        hidden = {module: sys.modules.pop(module) for module in list(sys.modules) if module.partition(".")[0] in tops}
        sys.path.insert(0, str(self.directory))
        try:
            with contextlib.chdir(self.directory):
                runpy.run_path(str(self.directory / name), run_name="__main__")
        finally:
            sys.path.remove(str(self.directory))
            for module in [module for module in sys.modules if module.partition(".")[0] in tops]:
                del sys.modules[module]
            sys.modules.update(hidden)

    def add(self, *code: str, name: str = "own") -> LoadedModel:
        """Add the artefact as `forkserve add` does."""
        estimator, artefact = read_trained(self.artefact, code=[self.directory / path for path in code])
        return add_trained(self.models, name, Trained(estimator=estimator, sample=TABLE, artefact=artefact))

    def load(self, version: str = "1") -> LoadedModel:
        return load_version(self.models, self.models / "own" / version)
