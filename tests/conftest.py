"""The demo models, one real service over them, a real Redis and a real Supabase, for the whole session."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import redis
from hypothesis import HealthCheck, settings

from examples.train import DEMOS, train_all
from harness.entities import import_market, sqlite_source
from harness.estimators import SleepingRegressor
from harness.servers import RedisServer, redis_server
from harness.service import ADMIN_TOKEN, FORKSERVE, Service
from harness.supabase import Postgres, SupabaseServer, postgres_server, supabase_server
from registry.store.add import add_version

DEMO_MODELS = sorted(demo.name for demo in DEMOS)

Run = Callable[..., subprocess.CompletedProcess[str]]

# how long an example takes says how busy the machine is
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo models; not to be written to."""
    directory = tmp_path_factory.mktemp("models")
    for _ in train_all(directory):
        pass
    return directory


@pytest.fixture(scope="session")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers that are never replaced, so that a worker which died is seen."""
    data = tmp_path_factory.mktemp("data")
    import_market(sqlite_source(data))
    environ = {
        "MODEL_DIR": str(models),
        "DATA_DIR": str(data),
        "WEB_CONCURRENCY": "2",
        "MAX_REQUESTS": "0",
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
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


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command over a model directory of its own."""

    def forkserve(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"MODEL_DIR": str(tmp_path / "models")} | environ
        return subprocess.run(
            [FORKSERVE, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return forkserve


@pytest.fixture(scope="session")
def shared_server() -> Iterator[RedisServer]:
    """For tests that leave it running."""
    with redis_server() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """For tests that pause or kill it."""
    with redis_server() as server:
        yield server


@pytest.fixture
def raw(shared_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of the shared server without any of our code; the server is empty."""
    with redis.Redis(port=shared_server.port) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """What the Supabase servers keep their rows in."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def shared_supabase(postgres: Postgres) -> Iterator[SupabaseServer]:
    """For tests that leave it running; its tables may hold anything."""
    with supabase_server(postgres) as server:
        yield server


@pytest.fixture
def own_supabase(postgres: Postgres) -> Iterator[SupabaseServer]:
    """For tests that pause or kill it."""
    with supabase_server(postgres) as server:
        yield server
