"""The service under attack, which must be as well afterwards as before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.estimators import FragileRegressor, OverflowingRegressor, SleepingRegressor
from harness.service import Service
from harness.wire import ask
from registry.store.add import add_trained
from registry.training.script import Trained
from tests.attacks.payloads import GOOD

READ_SECONDS = 1


@pytest.fixture
def target(service: Service) -> Iterator[Service]:
    """The service; after the test the same workers must still predict."""
    workers = service.workers
    yield service
    for _ in range(4):
        assert ask(service, GOOD).status == 200
    assert service.workers == workers


@pytest.fixture(scope="session")
def impatient(few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Waits a second for a request and two for the next; three of its models misbehave, and it has no admin."""
    directory = tmp_path_factory.mktemp("odd") / "models"
    shutil.copytree(few_models, directory)
    sample = pd.DataFrame({"value": np.linspace(0.0, 1.0, 5)})
    odd = {"sleepy": SleepingRegressor(), "fragile": FragileRegressor(), "overflowing": OverflowingRegressor()}
    for name, estimator in odd.items():
        trained = Trained(estimator=estimator.fit(sample.to_numpy() * 0, None), sample=sample * 0.01, margin=1e6)
        add_trained(directory, name, trained, entities=name == "overflowing")
    environ = {
        "MODEL_DIR": str(directory),
        "DATA_DIR": str(directory.parent / "data"),
        "READ_TIMEOUT_SECONDS": str(READ_SECONDS),
        "KEEPALIVE_SECONDS": "2",
        "MAX_REQUESTS": "0",
        "ADMIN_TOKEN": "",
    }
    with Service(environ) as service:
        yield service
