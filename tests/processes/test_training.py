"""Retraining on the real service: what is better goes live without a lost request, everything else harms nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.admin import ask_admin
from harness.entities import send_outcomes
from harness.jobs import call, ended, until
from harness.processes import eventually, hammer_while, is_running
from harness.servers import RedisServer
from harness.service import ADMIN_TOKEN, FORKSERVE, Service
from harness.supabase import SupabaseServer
from harness.training import MODE, add_small, result_of, trigger
from registry.store.aliases import Aliases, current
from registry.store.directory import ALIASES_FILE, directories
from registry.store.loader import load_version
from registry.training.script import SCRIPT as SCRIPT_NAME
from serving.process.kernel import child_pids, name_of

BODY = b'{"instances": [[0.5, 0.25]]}'
LEASE = 1.0

ENVIRON = {
    "WEB_CONCURRENCY": "1",
    "MAX_REQUESTS": "0",
    "ADMIN_TOKEN": ADMIN_TOKEN,
    "JOB_LEASE_SECONDS": str(LEASE),
    "TRAIN_MEMORY_BYTES": str(512 << 20),
    "SERVE_VERSIONS": "live",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model directory with `small` and `other`, which can be trained."""
    add_small(tmp_path / "models", "other")
    add_small(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def odd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    add_small(root)
    add_small(root, "plain")
    return root


@pytest.fixture(scope="module")
def odd(odd_root: Path) -> Iterator[Service]:
    """For trainings of which nothing may go live."""
    with Service(ENVIRON | {"MODEL_DIR": str(odd_root), "TRAIN_TIMEOUT_SECONDS": "100"}) as service:
        yield service
        assert service.get("/v1/models/small")["live"] == "1"


def train(service: Service, root: Path, mode: str) -> Any:
    """The job, ended, of a training that goes as `mode` says."""
    (root / "small" / MODE).write_text(mode)
    return ended(service, trigger(service))


def visible(directory: Path) -> list[str]:
    return [path.name for path in directories(directory)]


FAILING = {
    "raises": "the training failed: ValueError: the well is dry",
    "exits": "the training failed: SystemExit: 3",
    "nonsense": "the training failed: train returned a dict, not a Trained",
    "ends": "fit: the process that ran the call exited with status 3",
    "greedy": "the training needs more memory than it may",
}


@pytest.mark.parametrize("mode", FAILING)
def test_training_that_breaks_fails_its_job_and_nothing_else(odd: Service, odd_root: Path, mode: str) -> None:
    runners = odd.runners
    job = train(odd, odd_root, mode)
    assert (job["state"], job["error"]) == ("failed", FAILING[mode])
    assert (odd.runners, visible(odd_root / "small")) == (runners, ["1"])
    assert not (odd_root / "small" / ALIASES_FILE).exists()


REFUSED = {
    "worse": "r2 is ",
    "renamed": "its features, or their order, differ from those of the live version",
    "flags": "y is of kind boolean, not number",
    "own": "it cannot be compiled, so it would be many times slower",
}


@pytest.mark.parametrize("mode", REFUSED)
def test_new_version_that_is_not_fit_is_refused_and_removed(odd: Service, odd_root: Path, mode: str) -> None:
    job = train(odd, odd_root, mode)
    result = result_of(odd, job)
    assert (result["promoted"], result["version"], result["live"]) == (False, "2", "1")
    assert result["reasons"][0].startswith(REFUSED[mode])
    assert visible(odd_root / "small") == ["1"]
    assert list(odd_root.glob(".*")) == []
    assert eventually(lambda: odd.get("/health")["last_training"].get("small", {}).get("outcome") == "refused")


@pytest.mark.parametrize("kind", ["sqlite", "supabase"])
def test_training_learns_from_the_outcomes_that_were_sent(
    kind: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environ = ENVIRON | {"MODEL_DIR": str(root), "DATA_DIR": str(tmp_path), "TRAIN_TOLERANCE": "1"}
    if kind == "supabase":
        server: SupabaseServer = request.getfixturevalue("shared_supabase")
        server.empty()
        environ |= {"SUPABASE_URL": server.url, "SUPABASE_SERVICE_KEY": server.key}
    # a little besides what the first version has learnt: z = 2 x - y + 0.0625
    sent = [[x / 4, y / 4] for x in range(-3, 4) for y in range(-3, 4)]
    truths = [2 * x - y + 0.0625 for x, y in sent]
    with Service(environ) as service:
        (root / "small" / MODE).write_text("learns")
        content = {"instances": sent, "outcomes": truths}
        assert send_outcomes(service, "small", content).json["stored"] == len(sent)
        assert result_of(service, ended(service, trigger(service)))["promoted"] is True

        def has_learnt() -> bool:
            answer = call(service, "POST", "/v1/models/small:predict", BODY, Content_Type="application/json").json
            return bool(answer["predictions"] == [pytest.approx(2 * 0.5 - 0.25 + 0.0625)])

        assert eventually(has_learnt)


def test_training_that_takes_too_long_is_killed(odd_root: Path) -> None:
    with Service(ENVIRON | {"MODEL_DIR": str(odd_root), "TRAIN_TIMEOUT_SECONDS": "1"}) as service:
        job = train(service, odd_root, "sleeps 600")
        assert (job["state"], job["error"]) == ("failed", "the training took longer than 1 s")


def test_train_py_with_another_hash_is_not_run(odd: Service, odd_root: Path) -> None:
    script = odd_root / "small" / SCRIPT_NAME
    content = script.read_bytes()
    script.write_bytes(content + b"\nPath('/nowhere/at/all').write_text('run')\n")
    job = train(odd, odd_root, "well")
    script.write_bytes(content)
    assert job["error"].startswith("the training failed: train.py has sha256 "), job
    assert str(odd_root) not in job["error"]


def test_running_training_is_cancelled_within_a_heartbeat(odd: Service, odd_root: Path) -> None:
    (odd_root / "small" / MODE).write_text("sleeps 600")
    path = trigger(odd).headers["Location"]
    assert eventually(lambda: trained_by(odd) != [])
    started = time.monotonic()
    call(odd, "DELETE", path)
    assert until(odd, path, state="cancelled")["state"] == "cancelled"
    assert time.monotonic() - started < 10
    assert eventually(lambda: trained_by(odd) == [])


def test_another_model_waits_for_its_turn_and_says_so(odd: Service, odd_root: Path) -> None:
    (odd_root / "small" / MODE).write_text("sleeps 600")
    running = trigger(odd)
    refused = trigger(odd, "plain")
    assert (refused.status, running.json["id"] in refused.json["detail"]) == (409, True)
    call(odd, "DELETE", running.headers["Location"])
    until(odd, running.headers["Location"], state="cancelled")


@pytest.mark.parametrize(("model", "status"), [("nobody", 404), ("..%2Fsmall", 404)])
def test_model_that_is_not_there_cannot_be_trained(odd: Service, model: str, status: int) -> None:
    assert trigger(odd, model).status == status


def test_model_without_a_training_function_says_so(sleeper: Path) -> None:
    with Service(ENVIRON | {"MODEL_DIR": str(sleeper)}) as service:
        answer = trigger(service, "sleeper")
        assert (answer.status, "has no training function" in answer.json["detail"]) == (409, True)
        assert call(service, "POST", "/api/admin/models/sleeper:train", b"").status == 401


def trained_by(service: Service) -> list[int]:
    """The processes of executors that the runners have forked."""
    found = []
    for runner in service.runners:
        try:
            zygotes = child_pids(runner)
            found += [pid for zygote in zygotes for pid in child_pids(zygote) if name_of(pid) == "executor"]
        except OSError:  # one of them ends at this very moment
            continue
    return found


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """For trainings that go live, and its model directory."""
    root = tmp_path_factory.mktemp("lively")
    add_small(root)
    with Service(ENVIRON | {"MODEL_DIR": str(root)}) as service:
        yield service, root


@pytest.mark.parametrize("mode", ["well", "prints", "forks", "threads"])
def test_what_train_py_leaves_behind_ends_with_it(lively: tuple[Service, Path], mode: str) -> None:
    service, root = lively
    version = str(len(visible(root / "small")) + 1)
    result = result_of(service, train(service, root, mode))
    assert (result["promoted"], result["version"], result["held_out_rows"]) == (True, version, 40)
    assert eventually(lambda: service.get("/v1/models/small")["live"] == version)
    assert eventually(lambda: trained_by(service) == [])
    assert not any(words in service.log() for words in ("a line that", "another line"))
    if mode == "forks":
        assert eventually(lambda: not is_running(int((root / "small" / "forked.txt").read_text())))
    assert service.get("/health")["status"] == "ok"


def test_ten_triggers_on_two_instances_are_one_training_that_loses_no_request(
    root: Path, own_server: RedisServer
) -> None:
    environ = ENVIRON | {"MODEL_DIR": str(root), "REDIS_URL": own_server.url}
    (root / "small" / MODE).write_text("sleeps 1")

    def play() -> Any:
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(trigger, [first, second] * 5))
        assert [answer.status for answer in answers] == [202] * 10
        assert len({answer.json["id"] for answer in answers}) == 1
        job = ended(first, answers[0])
        # whichever has trained: the others are told
        assert eventually(lambda: {service.get("/v1/models/small")["live"] for service in (first, second)} == {"2"})
        return result_of(second, job)

    with Service(environ) as first, Service(environ) as second:
        tally, result = asyncio.run(hammer_while(first, play, "small", BODY))
        assert (tally.failed, tally.statuses[200] >= 200, result["promoted"]) == (0, True, True)
        assert visible(root / "small") == ["1", "2"]
        assert current(root / "small") == Aliases("2", "1")
        assert sum(len(service.events("Model trained")) for service in (first, second)) == 1
        status, answer = ask_admin(first, "models/small:rollback")
        assert (status, answer["live"]["small"]) == (200, "1")


def kill_somebody(service: Service) -> None:
    """A runner, or a process that trains for it."""
    victims = [*service.runners, *trained_by(service)]
    if victims:
        with suppress(ProcessLookupError):
            os.kill(random.choice(victims), signal.SIGKILL)


def check_whole(root: Path) -> None:
    """What is live can be read and loaded."""
    live = current(root / "small").live
    assert load_version(root, root / "small" / live).version == live


def test_ten_random_kills_leave_the_live_version_whole_and_the_lock_free_in_time(root: Path) -> None:
    random.seed(5)
    (root / "small" / MODE).write_text("sleeps 0.3")
    with Service(ENVIRON | {"MODEL_DIR": str(root)}) as service:
        for _ in range(10):
            path = trigger(service).headers["Location"]
            time.sleep(random.uniform(0, 1.2))  # the moment of the kill
            before = service.get(path)
            kill_somebody(service)
            killed = time.monotonic()
            check_whole(root)
            assert eventually(
                lambda before=before, path=path: (  # type: ignore[misc]
                    (job := service.get(path))["finished"] is not None or job["attempts"] > before["attempts"]
                )
            )
            assert time.monotonic() - killed < LEASE + 20  # a busy machine takes its time to fork
            assert until(service, path, state="done")["state"] == "done"
            check_whole(root)
            assert (
                call(service, "POST", "/v1/models/small:predict", BODY, Content_Type="application/json").status == 200
            )
        result = result_of(service, ended(service, trigger(service)))
        assert result["promoted"]
        assert list(root.glob(".*")) == []
        versions = visible(root / "small")
        assert versions == [str(number) for number in range(1, len(versions) + 1)]
        assert len(versions) == 12


def test_retrain_trains_once_and_says_what_came_of_it(root: Path, tmp_path: Path) -> None:
    environ = os.environ | {"MODEL_DIR": str(root), "DATA_DIR": str(tmp_path / "data")}

    def retrain(mode: str, name: str = "small") -> subprocess.CompletedProcess[str]:
        (root / "small" / MODE).write_text(mode)
        return subprocess.run(
            [str(FORKSERVE), "retrain", name], env=environ, capture_output=True, text=True, check=False, timeout=120
        )

    done = retrain("well")
    assert (done.returncode, done.stdout.startswith("small: version 2 is live, r2 ")) == (0, True), done
    refused = retrain("worse")
    assert (refused.returncode, "version 3 is refused: r2 is" in refused.stderr) == (1, True)
    failed = retrain("raises")
    assert (failed.returncode, "is failed: the training failed: ValueError: the well" in failed.stderr) == (1, True)
    assert retrain("well", "nobody").returncode == 1
    assert current(root / "small") == Aliases("2", "1")
