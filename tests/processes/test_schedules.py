"""Schedules on real processes: two services over one store, killed on the way, and roles that start what is theirs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.admin import admin_figures
from harness.processes import eventually, gone
from harness.servers import RedisServer, file_server
from harness.service import ADMIN_TOKEN, FORKSERVE, ROOT, Service
from serving.process.kernel import SCHEDULER, child_pids, name_of

OFTEN = "often: every 1s grace 30: reload"
POLLED = "often: every 1s grace 30: poll days"


def _has_begun(service: Service) -> bool:
    return len(service.events("Scheduler started")) == 1


def _works_again(service: Service) -> bool:
    return len(service.events("Scheduler started")) == 2


@pytest.fixture(params=["sqlite", "redis"])
def environ(request: pytest.FixtureRequest, sleeper: Path, tmp_path: Path, own_server: RedisServer) -> dict[str, str]:
    """A small service over a store that can be shared."""
    environ = {"MODEL_DIR": str(sleeper), "WEB_CONCURRENCY": "1", "ADMIN_TOKEN": ADMIN_TOKEN}
    return environ | ({"REDIS_URL": own_server.url} if request.param == "redis" else {"DATA_DIR": str(tmp_path)})


@pytest.fixture
def feeds(tmp_path: Path) -> Iterator[str]:
    """The setting FEEDS for a feed `days` of one row."""
    (tmp_path / "days.csv").write_text("entity,time,v\na,2026-05-01,1\n")
    with file_server(tmp_path) as address:
        yield json.dumps([{"name": "days", "url": f"{address}/days.csv", "format": "csv"}])


@pytest.fixture
def workers(environ: dict[str, str], feeds: str) -> Iterator[list[Service]]:
    """Two `forkserve worker` over one store, each with a scheduler and a runner."""
    variables = environ | {"ROLES": "worker,scheduler", "SCHEDULES": POLLED, "FEEDS": feeds}
    with ExitStack() as stack:
        running = []
        for _ in range(2):
            service = Service(variables, [str(FORKSERVE), "worker"])
            stack.callback(service.stop, signal.SIGKILL)
            running.append(service)
        yield running


def test_each_firing_happens_once_over_two_schedulers_of_which_each_is_killed_once(
    workers: list[Service], environ: dict[str, str], feeds: str
) -> None:
    def settled(*events: str) -> list[dict[str, Any]]:
        return [line for service in workers for event in events for line in service.events(event)]

    for service in workers:
        assert eventually(partial(_has_begun, service))
    assert eventually(lambda: len(settled("Schedule fired")) >= 2)
    for service in workers:
        (scheduler,) = [pid for pid in child_pids(service.process.pid) if name_of(pid) == SCHEDULER]
        os.kill(scheduler, signal.SIGKILL)
        assert eventually(partial(_works_again, service))
        assert service.events("Scheduler died")[0]["code"] == -signal.SIGKILL
    before = len(settled("Schedule fired"))
    assert eventually(lambda: len(settled("Schedule fired")) >= before + 3)
    assert eventually(lambda: len(settled("Feed polled")) >= before)
    for service in workers:
        assert service.stop() == 0
    told = settled("Schedule fired", "Schedule overlap prevented")
    times = [line["at"] for line in told]
    assert len(set(times)) == len(times), "no firing is repeated"
    coalesced = sum(line["coalesced"] for line in told if line["at"] != min(times))
    assert len(told) + coalesced == max(times) - min(times) + 1, "none is lost"
    listed = subprocess.run(
        [FORKSERVE, "schedules"],
        cwd=ROOT,
        env=os.environ | environ | {"SCHEDULES": POLLED, "FEEDS": feeds},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"fired {len(settled('Schedule fired'))}" in listed.stdout
    assert "incidents" not in listed.stdout


def test_a_scheduler_of_the_master_fires_and_reloads_what_has_changed(
    environ: dict[str, str], sleeper: Path, tmp_path: Path
) -> None:
    schedules = "yearly: 0 3 1 1 * in Europe/Berlin: reload; often: every 2s: reload"
    models = Path(shutil.copytree(sleeper, tmp_path / "models"))
    environ |= {"SCHEDULES": schedules, "MODEL_DIR": str(models), "WATCH_MODELS": "false"}
    with Service(environ) as service:
        assert eventually(lambda: len(service.schedulers) == 1)
        workers, runners = service.workers, service.runners
        assert eventually(lambda: len(service.events("Reload not needed")) > 1)
        assert (service.workers, service.runners) == (workers, runners)
        os.utime(models / "sleeper/1/manifest.json")
        assert eventually(lambda: len(service.events("Models reloaded")) == 1)

        def told() -> Any:
            return admin_figures(service)["schedules"]

        assert eventually(lambda: told()[1].get("fired", 0) > 0)
        yearly, often = told()
        assert (yearly["name"], yearly["when"], yearly["fired"]) == ("yearly", "0 3 1 1 * in Europe/Berlin", 0)
        assert yearly["next"].endswith("-01-01T02:00:00+00:00")
        assert (often["action"], often["overlap_incidents"]) == ("reload", 0)
        assert often["last"] < often["next"]
        last = service.schedulers
        service.stop()
        assert gone(last)


@pytest.mark.parametrize(
    ("roles", "schedules", "expected"),
    [("web,worker", OFTEN, (1, 0)), ("web,worker,scheduler", "", (1, 0)), ("web", OFTEN, (0, 0))],
)
def test_a_role_starts_what_is_its_own_and_without_schedules_there_is_no_scheduler(
    sleeper: Path, roles: str, schedules: str, expected: tuple[int, int]
) -> None:
    environ = {"MODEL_DIR": str(sleeper), "WEB_CONCURRENCY": "1", "ROLES": roles, "SCHEDULES": schedules}
    with Service(environ) as service:
        assert eventually(lambda: (len(service.runners), len(service.schedulers)) == expected)


def refused(command: str, **variables: str) -> str:
    """The error message of a command that exits with 1."""
    done = subprocess.run(
        [FORKSERVE, command], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr


def test_a_schedule_that_cannot_be_refuses_the_start_by_name(sleeper: Path) -> None:
    environ = {"MODEL_DIR": str(sleeper), "SCHEDULES": "nightly: 0 25 * * *: reload"}
    reason = "forkserve: SCHEDULES: 'nightly': '0 25 * * *' is not a cron expression: Bad hour\n"
    assert refused("schedules", **environ) == reason
    assert refused("check", **environ) == reason
    service = Service(environ)
    assert service.process.wait(60) != 0
    service.stop()
    assert reason in service.log()


def test_a_scheduler_without_schedules_says_so(sleeper: Path) -> None:
    said = refused("worker", MODEL_DIR=str(sleeper), ROLES="scheduler")
    assert said == "forkserve: ROLES includes only the scheduler, and SCHEDULES is empty\n"
