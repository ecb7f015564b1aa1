"""A service over what the version before has left behind, as dumps in `before/`: nothing of it is lost."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import redis

from harness.admin import admin_figures
from harness.jobs import call, until
from harness.processes import eventually
from harness.servers import RedisServer
from harness.service import ADMIN_TOKEN, Service
from registry.registry import load_registry
from registry.store.options import LoadOptions

BEFORE = Path(__file__).with_name("before")
OLD_HASH = "9f6666b8b80b4d2d49541658081a8aecf827e92fd9ef34faf7f62577204e64df"
"""Of the model that the dumped jobs were sent for."""

HALF_A_DAY = 12 * 3600

DUE = int(time.time()) // 60 * 60 - HALF_A_DAY
"""When the schedule was due last, in UTC: a whole minute, long ago and long before the next, whenever the tests run."""


def dump(name: str, models: Path) -> str:
    """A dump whose jobs are for the model that is served, and whose schedule has just fired."""
    content = load_registry(models, LoadOptions()).get("sleeper").content_hash.hex()
    text = (BEFORE / name).read_text()
    for old, new in ((OLD_HASH, content), ("1700000016.000", str(DUE)), ("1700000023.000", str(DUE))):
        text = text.replace(old.encode().hex().upper(), new.encode().hex().upper()).replace(old, new)
    return text


def restore_files(directory: Path, models: Path) -> None:
    for name in ("jobs", "events", "schedules", "data"):
        with closing(sqlite3.connect(directory / f"{name}.db")) as connection:
            connection.executescript(dump(f"{name}.sql", models))


def restore_keys(server: RedisServer, models: Path) -> None:
    with redis.Redis(port=server.port) as client:
        for command in json.loads(dump("redis.json", models)):
            client.execute_command(*command)


def environ_over(models: Path, directory: Path) -> dict[str, str]:
    return {
        "MODEL_DIR": str(models),
        "DATA_DIR": str(directory),
        "WEB_CONCURRENCY": "1",
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "SCHEDULES": f"tick: {time.strftime('%M %H', time.gmtime(DUE))} * * * grace {HALF_A_DAY}: reload",
        "JOB_KEEP_SECONDS": "10000000000",  # longer than since the epoch
    }


def assert_nothing_is_lost(service: Service, seen: int, last: int) -> None:
    """`seen` is the id of the event that a client of the job `done` has had, `last` that of the one it misses."""
    assert until(service, "/v1/jobs/queued", state="done")["state"] == "done"
    assert service.get("/v1/jobs/queued/result")["predictions"] == [0.0, 0.0, 0.0]
    assert service.get("/v1/jobs/done/result")["predictions"] == [0.0, 0.0]
    resumed = call(service, "GET", "/v1/jobs/done/events", Last_Event_ID=str(seen)).body.decode()
    assert f"id: {last}\nevent: done" in resumed
    assert "event: chunk" not in resumed
    worked = call(service, "GET", "/v1/jobs/queued/events").body.decode()
    assert [line for line in worked.splitlines() if line.startswith("event: ")][-1] == "event: done"
    assert_schedule_is_kept(service)
    assert not [line for line in service.events("") if line["level"] in ("warning", "error")]


def assert_schedule_is_kept(service: Service) -> None:
    assert eventually(lambda: bool(service.events("Scheduler started")))
    assert not service.events("Schedule fired")
    # the schedules are there before their counts are
    assert eventually(lambda: counts_of_schedules(service) == [("tick", 15)])


def counts_of_schedules(service: Service) -> list[tuple[str, int | None]]:
    return [(one["name"], one.get("fired")) for one in admin_figures(service)["schedules"]]


def takeovers(service: Service) -> list[str]:
    return sorted(line["event"] for line in service.events("") if "taken over" in line["event"])


def test_files_are_taken_over_once(sleeper: Path, tmp_path: Path) -> None:
    restore_files(tmp_path, sleeper)
    with Service(environ_over(sleeper, tmp_path)) as service:
        assert_nothing_is_lost(service, 1782579204329570305, 1782579204486856704)
        assert eventually(lambda: takeovers(service) == ["Events taken over", "Schedules taken over"])
        records = [{"values": {"a": 1}, "id": "r1", "time": "2026-05-01"}, {"values": {"a": 2}, "id": "r2"}]
        body = json.dumps({"records": records}).encode()
        added = call(service, "POST", "/v1/entities/one/records", body, Content_Type="application/json")
        assert added.json["stored"] == 1, "the other one was there before"
        body = json.dumps({"instances": [[0.0]], "outcomes": [0.5], "request_id": "x"}).encode()
        said = call(service, "POST", "/v1/models/sleeper/outcomes", body, Content_Type="application/json")
        assert (said.status, said.json["stored"]) == (200, 0)
    with Service(environ_over(sleeper, tmp_path)) as again:
        assert again.get("/v1/jobs/done")["state"] == "done"
        assert eventually(lambda: bool(again.events("Scheduler started")))
        assert takeovers(again) == []


def test_schedules_in_redis_are_taken_over_once_and_unsigned_jobs_are_none(
    sleeper: Path, tmp_path: Path, own_server: RedisServer
) -> None:
    restore_keys(own_server, sleeper)
    environ = environ_over(sleeper, tmp_path) | {"REDIS_URL": own_server.url}
    with Service(environ) as service:
        assert_schedule_is_kept(service)
        assert eventually(lambda: takeovers(service) == ["Schedules taken over"])
        for job in ("queued", "done"):
            assert call(service, "GET", f"/v1/jobs/{job}").status == 404
        kinds = {line["kind"] for line in service.events("Redis holds what this service has not signed; it is ignored")}
        assert "jobs" in kinds
    with Service(environ) as again:
        assert eventually(lambda: bool(again.events("Scheduler started")))
        assert takeovers(again) == []
