"""The demo models, one real service over them, a real Redis and a real Supabase, for the whole session."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
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

TESTS = Path(__file__).parent
SLOW = {"processes", "attacks"}
"""Directories of tests over real services."""

DEMO_MODELS = sorted(demo.name for demo in DEMOS)
FEW_MODELS = ["diabetes", "wine"]

Run = Callable[..., subprocess.CompletedProcess[str]]

# a shell that runs tests in the background has Ctrl-C ignored, and services would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes says how busy the machine is
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that several processes of pytest end at about the same time.

    The first file has one of them train the demo models, which the next files, for the others, do not need.
    """
    needing = [item.path for item in items if "models" in getattr(item, "fixturenames", ())]

    def place(path: Path) -> tuple[bool, bool, bool]:
        return path not in needing[:1], not SLOW & set(path.relative_to(TESTS).parts), path in needing

    places = {path: place(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this test run, shared by its processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def models(run_directory: Path) -> Path:
    """A directory with the demo models, trained once in a test run; not to be written to."""
    directory = run_directory / "demo-models"
    with (run_directory / "demo-models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            unfinished = Path(tempfile.mkdtemp(dir=run_directory))
            for _ in train_all(unfinished):
                pass
            unfinished.rename(directory)
    return directory


@pytest.fixture(scope="session")
def few_models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two of them, which a service loads in less time; not to be written to."""
    directory = tmp_path_factory.mktemp("few-models")
    for name in FEW_MODELS:
        shutil.copytree(models / name, directory / name)
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
    add_version(root, "sleeper", estimator, sample, margin=1e6)
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
    """A Redis server for tests that leave it running."""
    with redis_server() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis server for tests that pause or kill it."""
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
    """The database of the Supabase servers."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def shared_supabase(postgres: Postgres) -> Iterator[SupabaseServer]:
    """A Supabase server for tests that leave it running; its tables may hold anything."""
    with supabase_server(postgres) as server:
        yield server


@pytest.fixture
def own_supabase(postgres: Postgres) -> Iterator[SupabaseServer]:
    """A Supabase server for tests that pause or kill it."""
    with supabase_server(postgres) as server:
        yield server
