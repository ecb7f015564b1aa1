"""What a Dask cluster does not do, the runner does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from structlog.testing import capture_logs

from harness.cluster import DaskCluster
from harness.estimators import DeadlyRegressor
from registry.errors import VersionRefused
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.store.add import add_version
from registry.store.options import DEFAULT_OPTIONS
from serving.app import build_backend
from serving.errors import InvalidSetting
from serving.jobs.cluster import Cluster, Parcel, pack_version, platform_of_answers
from serving.predict.operation import Operation, encode_rows
from serving.process.executor import Executor
from serving.settings import Settings
from tests.serving.conftest import until

pytestmark = pytest.mark.anyio

TIMEOUT = 60.0


class Here:
    """A backend that says who has answered."""

    at_once = 1

    async def run(self, _operation: Operation, _payload: bytes, *, timeout: float) -> bytes:
        assert timeout == TIMEOUT
        return b"here"

    async def close(self) -> None: ...


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(root: Path) -> LoadedModel:
    sample = pd.DataFrame({"value": np.linspace(0.0, 0.001, 5)})
    return add_version(root, "deadly", DeadlyRegressor().fit(sample.to_numpy(), None), sample, margin=1e6)


@pytest.fixture(scope="module")
def fragile_cluster() -> Iterator[DaskCluster]:
    """A call over which a worker dies is not tried again."""
    with DaskCluster(2, {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}) as running:
        yield running


@pytest.fixture
async def cluster(fragile_cluster: DaskCluster, root: Path) -> AsyncIterator[Cluster]:
    backend = Cluster(fragile_cluster.address, Here(), partial(pack_version, root, options=DEFAULT_OPTIONS), at_once=8)
    yield backend
    await backend.close()


async def run(backend: Cluster, model: LoadedModel, value: float) -> bytes:
    payload = encode_rows(np.array([[value]]), Selection())
    return await backend.run(Operation(model, "predict"), payload, timeout=TIMEOUT)


async def test_a_call_that_kills_its_worker_is_made_here_and_the_next_one_there(
    cluster: Cluster, model: LoadedModel
) -> None:
    assert await run(cluster, model, 0.5) == b"[0.5]"
    with capture_logs() as lines:
        assert await run(cluster, model, 2.0) == b"here"
    assert [line["event"] for line in lines] == ["Call failed on the cluster, computed here"]
    assert await run(cluster, model, 0.25) == b"[0.25]"


async def test_a_version_that_was_lost_with_its_only_worker_is_sent_again(
    root: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.jobs.cluster.PAUSE_SECONDS", 0.1)
    with DaskCluster(1) as single:
        backend = Cluster(single.address, Here(), partial(pack_version, root, options=DEFAULT_OPTIONS), at_once=8)
        assert await run(backend, model, 0.5) == b"[0.5]"
        single.kill_worker()
        await until(lambda: _answered_there(backend, model))
        await backend.close()


async def _answered_there(backend: Cluster, model: LoadedModel) -> bool:
    return await run(backend, model, 0.25) == b"[0.25]"


async def test_a_cancelled_call_leaves_the_cluster_usable(cluster: Cluster, model: LoadedModel) -> None:
    calls = [asyncio.create_task(run(cluster, model, value)) for value in (0.1, 0.2, 0.3)]
    calls[1].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[::2] == [b"[0.1]", b"[0.3]"]
    assert isinstance(answers[1], asyncio.CancelledError)


@pytest.mark.parametrize("library", ["numpy", "python", "forkserve"])
async def test_a_worker_of_other_libraries_is_not_asked(
    fragile_cluster: DaskCluster, root: Path, model: LoadedModel, library: str
) -> None:
    def pack(model: LoadedModel) -> Parcel:
        parcel = pack_version(root, model, options=DEFAULT_OPTIONS)
        parcel._made_on = platform_of_answers() | {library: "0.0"}
        parcel.content_hash = library.encode()  # the cluster has the right one under the right hash
        return parcel

    backend = Cluster(fragile_cluster.address, Here(), pack, at_once=8)
    with capture_logs() as lines:
        assert await run(backend, model, 0.5) == b"here"
    assert lines[-1]["event"] == "Cluster unavailable, computing here"
    assert f"it has {library} {platform_of_answers()[library]}, the runner 0.0" in lines[-1]["error"]
    await backend.close()


async def test_a_cluster_without_workers_is_said_once(root: Path, model: LoadedModel) -> None:
    with DaskCluster(0) as empty, capture_logs() as lines:
        backend = Cluster(empty.address, Here(), partial(pack_version, root, options=DEFAULT_OPTIONS), at_once=8)
        answers = await asyncio.gather(*[run(backend, model, 0.5) for _ in range(5)])
        await backend.close()
    assert answers == [b"here"] * 5
    assert [line["event"] for line in lines].count("Cluster unavailable, computing here") == 1


def test_a_version_whose_files_have_changed_is_not_sent(tmp_path: Path) -> None:
    sample = pd.DataFrame({"value": np.linspace(0.0, 0.001, 5)})
    estimator = DeadlyRegressor().fit(sample.to_numpy(), None)
    model = add_version(tmp_path, "deadly", estimator, sample, margin=1e6)
    (tmp_path / "deadly/1").rename(tmp_path / "before")
    add_version(tmp_path, "deadly", estimator, sample * 2, margin=1e6)
    with pytest.raises(VersionRefused, match="has changed since it was loaded"):
        pack_version(tmp_path, model, options=DEFAULT_OPTIONS)


def test_a_cluster_without_its_library_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "serving.jobs.cluster")
    with pytest.raises(InvalidSetting, match=r"DASK_SCHEDULER needs `pip install forkserve\[dask\]`"):
        build_backend(Settings(dask_scheduler="tcp://127.0.0.1:1"), Executor({}))
