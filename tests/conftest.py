"""The demo models, and one real service over them, for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.service import Service
from examples.train import train_all
from registry.adding import add_version
from tests.estimators import SleepingRegressor

ADMIN_TOKEN = "a-token-only-for-tests"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo models; not to be written to."""
    directory = tmp_path_factory.mktemp("models")
    for _ in train_all(directory):
        pass
    return directory


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[Service]:
    """Two workers that are never replaced, so that a worker which died is seen."""
    environ = {"MODEL_DIR": str(models), "WEB_CONCURRENCY": "2", "MAX_REQUESTS": "0", "ADMIN_TOKEN": ADMIN_TOKEN}
    with Service(environ) as running:
        yield running


@pytest.fixture(scope="session")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with one model that takes as long as it is told."""
    root = tmp_path_factory.mktemp("sleeper")
    sample = pd.DataFrame({"seconds": np.linspace(0.0, 0.001, 5)})
    estimator = SleepingRegressor().fit(sample.to_numpy(), None)
    add_version(root, "sleeper", estimator, sample, margin=None)
    return root
