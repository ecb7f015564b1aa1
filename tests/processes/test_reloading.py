"""Reload and rollback on the real service: new versions without a lost request, broken ones without harm."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.admin import ask_admin
from harness.estimators import CrashingRegressor, EndingRegressor, HangingRegressor, HarmfulRegressor, ThreadedRegressor
from harness.jobs import call
from harness.processes import DIABETES, PATIENCE, eventually, gone, hammer, hammer_while
from harness.reloading import add_copy, live, settles_on
from harness.service import ADMIN_TOKEN, Service
from registry.store.add import add_version
from registry.store.aliases import Aliases, current
from serving.cli.client import post
from serving.process.kernel import read_memory, thread_names
from tests.conftest import FEW_MODELS

MB = 1024 * 1024


def start(models: Path) -> Service:
    """Two workers; reloads happen only when they are asked for."""
    return Service({"MODEL_DIR": str(models), "MAX_REQUESTS": "0", "ADMIN_TOKEN": ADMIN_TOKEN, "WATCH_MODELS": "false"})


def check_that_it_serves(service: Service) -> None:
    assert service.get("/v1/models/diabetes")["name"] == "diabetes"
    assert len(thread_names(service.master)) == 1


@pytest.fixture
def models_of_our_own(few_models: Path, tmp_path: Path) -> Path:
    """A copy of some demo models that may be changed."""
    return Path(shutil.copytree(few_models, tmp_path / "models"))


@pytest.fixture
def running(models_of_our_own: Path) -> Iterator[Service]:
    """A service over `models_of_our_own`; whatever else happens, it predicts in the end."""
    with start(models_of_our_own) as service:
        yield service
        check_that_it_serves(service)


@pytest.fixture(scope="module")
def lasting(few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    models = Path(shutil.copytree(few_models, tmp_path_factory.mktemp("lasting") / "models"))
    with start(models) as service:
        yield service, models


@pytest.fixture
def unchanged(lasting: tuple[Service, Path]) -> Iterator[tuple[Service, Path]]:
    """A service and its model directory, for tests after which it serves what it served before."""
    service, models = lasting
    before = set(models.rglob("*"))
    assert settles_on(service, "wine", "1")
    yield service, models
    check_that_it_serves(service)
    for path in sorted(set(models.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    models.with_name("trigger").unlink(missing_ok=True)


def add_corrupt_copy(models: Path, name: str, version: str) -> Path:
    directory = add_copy(models, name, version)
    (directory / "model.joblib").write_bytes(b"this is no model")
    return directory


def ask_and_settle(service: Service, path: str, name: str, version: str) -> tuple[int, Any]:
    """The answer to the admin, once no old worker is left."""
    answer = ask_admin(service, path)
    assert settles_on(service, name, version)
    return answer


def refusal_of(service: Service, models: Path, estimator: type[HarmfulRegressor]) -> str:
    """Why the service, which goes on, does not take over a model of this kind."""
    trigger = models.with_name("trigger")
    sample = pd.DataFrame({"seconds": [0.0, 0.0, 0.0]})
    add_version(models, "odd", estimator(str(trigger)).fit(sample.to_numpy(), None), sample)
    trigger.touch()
    status, problem = ask_admin(service, "models:reload")
    assert (status, problem["detail"][:7]) == (409, "odd/1: ")
    assert [model["name"] for model in service.get("/v1/models")["models"]] == FEW_MODELS
    return str(problem["detail"])


def test_reload_brings_a_new_version_into_service_and_loses_no_request(
    running: Service, models_of_our_own: Path
) -> None:
    old = running.workers
    add_copy(models_of_our_own, "diabetes", "2")
    reload = partial(ask_and_settle, running, "models:reload", "diabetes", "2")
    tally, (status, answer) = asyncio.run(hammer_while(running, reload))
    assert tally.failed == 0
    assert (status, answer["status"], answer["added"]) == (200, "reloaded", ["diabetes/2"])
    assert answer["live"] == dict.fromkeys(FEW_MODELS, "1") | {"diabetes": "2"}
    assert gone(old)
    assert running.get("/v1/models/diabetes")["previous"] == "1"
    assert running.get("/health")["status"] == "ok"
    assert [line["added"] for line in running.events("Models reloaded")] == [["diabetes/2"]]


def test_memory_stays_shared_after_reloads(models: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(models, tmp_path / "models"))
    with start(directory) as service:
        check_memory_after_reloads(service, directory)
        check_that_it_serves(service)


def check_memory_after_reloads(running: Service, models: Path) -> None:
    before = read_memory(running.master).rss
    for _ in range(3):
        for version in ("2", "3"):
            path = add_copy(models, "mortgage", version)
            old = running.workers
            assert ask_admin(running, "models:reload")[1]["added"] == [f"mortgage/{version}"]
            assert gone(old)
            shutil.rmtree(path)
    assert settles_on(running, "mortgage", "3")
    messages = [post(f"{running.address}/v1/models/diabetes:predict", DIABETES)]
    assert asyncio.run(hammer(running.address, messages, requests=400, connections=8)).failed == 0
    assert max(read_memory(pid).private for pid in running.workers) < 15 * MB
    assert read_memory(running.master).rss < before + 20 * MB, "old models are let go"


def test_hup_by_hand_reloads_too(running: Service, models_of_our_own: Path) -> None:
    add_copy(models_of_our_own, "wine", "2")
    os.kill(running.master, signal.SIGHUP)
    assert settles_on(running, "wine", "2")


def test_a_service_that_is_told_to_end_while_new_workers_begin_ends(few_models: Path) -> None:
    # longer than a test waits for the end
    environ = {"MODEL_DIR": str(few_models), "ADMIN_TOKEN": ADMIN_TOKEN, "GRACEFUL_TIMEOUT_SECONDS": "100"}
    with Service(environ) as service:
        assert ask_admin(service, "models:reload")[0] == 200
        assert service.stop() == 0


def test_versions_that_have_not_changed_are_not_loaded_again(unchanged: tuple[Service, Path]) -> None:
    status, answer = ask_admin(unchanged[0], "models:reload")
    assert (status, answer["added"], answer["removed"], answer["refused"]) == (200, [], [], [])
    assert 0 < answer["seconds"] < PATIENCE


def test_reloads_that_follow_each_other_do_not_wait_for_old_workers(running: Service, models_of_our_own: Path) -> None:
    for version in ("2", "3", "4"):
        add_copy(models_of_our_own, "wine", version)
        status, answer = ask_admin(running, "models:reload")
        assert (status, answer.get("live", {}).get("wine")) == (200, version)
    assert settles_on(running, "wine", "4")


def test_two_reloads_at_once_are_both_answered(running: Service, models_of_our_own: Path) -> None:
    add_copy(models_of_our_own, "wine", "2")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask_admin(running, "models:reload"), range(4)))
    assert [status for status, _ in answers] == [200] * 4
    assert all(answer["live"]["wine"] == "2" for _, answer in answers)
    assert settles_on(running, "wine", "2")


def test_corrupt_version_leaves_the_old_in_service_and_is_named_everywhere(
    running: Service, models_of_our_own: Path
) -> None:
    corrupt = add_corrupt_copy(models_of_our_own, "diabetes", "2")
    add_copy(models_of_our_own, "wine", "2")
    reload = partial(ask_and_settle, running, "models:reload", "wine", "2")
    tally, (status, problem) = asyncio.run(hammer_while(running, reload))
    assert tally.failed == 0
    assert (status, problem["title"]) == (409, "Conflict")
    assert problem["detail"].startswith("diabetes/2/model.joblib: has sha256 ")
    assert live(running, "diabetes") == "1"
    health = running.get("/health")
    assert (health["status"], len(health["refused"])) == ("degraded", 1)
    assert str(models_of_our_own) not in str(health)
    assert running.events("Reload refused")[0]["reason"] == health["refused"][0]
    shutil.rmtree(corrupt)
    assert ask_admin(running, "models:reload")[0] == 200
    assert eventually(lambda: running.get("/health")["status"] == "ok")  # the workers before it are being replaced


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (CrashingRegressor, "its process was ended by signal 11, Segmentation fault"),
        (EndingRegressor, "its process exited with status 3"),
        (ThreadedRegressor, "starts threads: "),
    ],
)
def test_version_that_harms_its_process_harms_only_a_trial(
    unchanged: tuple[Service, Path], estimator: type[HarmfulRegressor], reason: str
) -> None:
    assert reason in refusal_of(*unchanged, estimator)


def test_version_that_hangs_is_refused_when_its_time_is_over_and_meanwhile_what_ends_is_replaced(
    models_of_our_own: Path,
) -> None:
    seconds = 8
    environ = {"MODEL_DIR": str(models_of_our_own), "RELOAD_TIMEOUT_SECONDS": str(seconds)}
    with Service(environ) as service:

        def is_tried() -> bool:
            return "trial" in [name for _, name in service._children()]

        before = {*service.workers, *service.runners}
        trigger = models_of_our_own.with_name("trigger")
        sample = pd.DataFrame({"seconds": [0.0, 0.0, 0.0]})
        add_version(models_of_our_own, "odd", HangingRegressor(str(trigger)).fit(sample.to_numpy(), None), sample)
        trigger.touch()
        assert eventually(is_tried)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert eventually(
            lambda: not before & (now := {*service.workers, *service.runners}) and len(now) == len(before)
        )
        check_that_it_serves(service)
        assert is_tried()
        assert eventually(lambda: service.get("/health")["refused"] == [f"odd/1: takes longer than {seconds} s"])


def test_rollback_makes_the_previous_version_live_again(running: Service, models_of_our_own: Path) -> None:
    add_copy(models_of_our_own, "diabetes", "2")
    assert ask_admin(running, "models:reload")[0] == 200
    assert settles_on(running, "diabetes", "2")
    add_corrupt_copy(models_of_our_own, "wine", "2")
    rollback = partial(ask_and_settle, running, "models/diabetes:rollback", "diabetes", "1")
    tally, (status, answer) = asyncio.run(hammer_while(running, rollback))
    assert (tally.failed, status, answer["live"]["diabetes"]) == (0, 200, "1"), answer
    assert current(models_of_our_own / "diabetes") == Aliases("1", "2")


def test_rollback_without_a_previous_version_is_not_found(unchanged: tuple[Service, Path]) -> None:
    service, models = unchanged
    workers = service.workers
    names = ("none", "diabetes", "..", "diabetes%2F..")
    assert [ask_admin(service, f"models/{name}:rollback")[0] for name in names] == [404] * 4
    assert service.workers == workers
    assert list(models.rglob("aliases.json")) == []


def test_damaged_aliases_refuse_a_strict_start_and_leave_a_running_service_as_it_is(
    unchanged: tuple[Service, Path],
) -> None:
    service, models = unchanged
    (models / "wine" / "aliases.json").write_text('{"live": "7"}')
    for path in ("models:reload", "models/wine:rollback"):
        status, problem = ask_admin(service, path)
        assert (status, problem["detail"]) == (
            409,
            "wine/aliases.json: says that version '7' is live, which does not exist",
        )
    assert live(service, "wine") == "1"
    second = Service({"MODEL_DIR": str(models), "STRICT_MODELS": "true"})
    with pytest.raises(RuntimeError, match=r"wine/aliases\.json: says that version '7' is live"):
        second.__enter__()


def test_empty_model_directory_leaves_everything_in_service(unchanged: tuple[Service, Path]) -> None:
    service, models = unchanged
    away = models.rename(models.with_name("away"))
    status, problem = ask_admin(service, "models:reload")
    away.rename(models)
    assert (status, "contains no model" in problem["detail"]) == (409, True)
    assert len(service.get("/v1/models")["models"]) == len(FEW_MODELS)


def test_reload_and_rollback_need_the_admin(unchanged: tuple[Service, Path]) -> None:
    service, _ = unchanged
    workers = service.workers
    for path in ("models:reload", "models/wine:rollback"):
        assert call(service, "POST", f"/api/admin/{path}", b"").status == 401
    assert service.workers == workers


def test_service_without_preload_says_that_it_cannot_reload(models_of_our_own: Path) -> None:
    environ = {"MODEL_DIR": str(models_of_our_own), "ADMIN_TOKEN": ADMIN_TOKEN, "PRELOAD": "false"}
    with Service(environ | {"WEB_CONCURRENCY": "1"}) as service:
        status, problem = ask_admin(service, "models:reload")
        assert (status, "restart it instead" in problem["detail"]) == (501, True)
        loaded = "Model registry initialized"
        assert eventually(lambda: len(service.events(loaded)) == len(service.workers) + len(service.runners) == 2)
