"""Jobs on the real service: sent in, worked on by runners that may die at any time, fetched."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.estimators import FragileRegressor, GreedyRegressor, SleepingRegressor
from harness.jobs import call, ended, forkserve_worker, send, send_table, until, varied
from harness.processes import eventually, gone
from harness.servers import RedisServer
from harness.service import FORKSERVE, ROOT, Service
from registry.store.add import add_version
from serving.process.kernel import child_pids, read_memory

CHUNK = {"SHAP_MAX_BATCH_SIZE": "7"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that sleep, break or eat memory, as long or as much as the row says."""
    root = tmp_path_factory.mktemp("odd")
    sample = pd.DataFrame({"value": np.linspace(0.0, 0.001, 5)})
    estimators = {"sleepy": SleepingRegressor(), "fragile": FragileRegressor(), "greedy": GreedyRegressor()}
    for name, estimator in estimators.items():
        add_version(root, name, estimator.fit(sample.to_numpy(), None), sample, margin=1e6)
    return root


@pytest.fixture(scope="module")
def busy(odd: Path) -> Iterator[Service]:
    """One runner over odd models; small chunks, short limits, little memory."""
    environ = {
        "MODEL_DIR": str(odd),
        "WEB_CONCURRENCY": "1",
        "MAX_REQUESTS": "0",
        "SHAP_MAX_BATCH_SIZE": "4",
        "JOB_LEASE_SECONDS": "1",
        "JOB_TIMEOUT_SECONDS": "20",
        "JOB_MEMORY_BYTES": str(100 << 20),
        "JOB_MAX_QUEUED": "2",
        "JOB_MAX_ROWS": "100",
    }
    with Service(environ) as service:
        assert eventually(lambda: len(service.runners) == 1)
        yield service


@pytest.fixture(scope="module")
def small_chunks(models: Path) -> Iterator[Service]:
    with Service({"MODEL_DIR": str(models), "MAX_REQUESTS": "0"} | CHUNK) as service:
        assert eventually(lambda: len(service.runners) == 1)
        yield service


@pytest.fixture
def over_redis(few_models: Path, own_server: RedisServer) -> Iterator[Service]:
    with Service({"MODEL_DIR": str(few_models), "REDIS_URL": own_server.url} | CHUNK) as service:
        yield service


def test_jobs_go_on_when_the_files_of_the_store_are_removed(small_chunks: Service) -> None:
    """The runner and the workers take the files that are there, whoever makes them first."""
    rows = varied(small_chunks, "wine", 3)
    assert ended(small_chunks, send(small_chunks, "predict", "wine", rows))["state"] == "done"
    for file in Path(small_chunks.data).glob("*.db*"):
        file.unlink()
    assert ended(small_chunks, send(small_chunks, "predict", "wine", rows))["state"] == "done"
    health = call(small_chunks, "GET", "/health").json
    assert (health["status"], health["jobs"]) == ("ok", "ok")
    assert {line["file"] for line in small_chunks.events("Database file was removed or replaced")} == {"jobs.db"}


def check_both_operations(service: Service) -> None:
    """A job gives the very bytes that requests give."""
    instances = varied(service, "wine", 17)
    for verb in ("predict", "explain"):
        job = ended(service, send(service, verb, "wine", instances))
        assert (job["state"], job["chunks"], job["chunks_done"], job["progress"]) == ("done", 3, 3, 1.0)
        body = json.dumps({"instances": instances}).encode()
        direct = [
            call(service, "POST", f"/v1/models/wine:{verb}", part, Content_Type="application/json")
            for part in ([body] if verb == "predict" else _sevens(instances))
        ]
        name = {"predict": "predictions", "explain": "explanations"}[verb]
        wanted = [one for answer in direct for one in answer.json[name]]
        result = call(service, "GET", job["result"])
        assert result.headers["Content-Type"] == "application/json"
        assert result.json == {"model": "wine", "version": "1", name: wanted}


def _sevens(instances: list[Any]) -> list[bytes]:
    """An explanation request takes no more than SHAP_MAX_BATCH_SIZE."""
    return [json.dumps({"instances": instances[first : first + 7]}).encode() for first in range(0, len(instances), 7)]


def test_jobs_give_what_requests_give(small_chunks: Service) -> None:
    check_both_operations(small_chunks)


def test_jobs_over_redis_give_what_requests_give(over_redis: Service) -> None:
    check_both_operations(over_redis)


def test_a_table_comes_in_and_a_table_goes_out(small_chunks: Service) -> None:
    instances = varied(small_chunks, "mortgage", 16)
    names = list(reversed(instances[0]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(instances)
    answer = send_table(small_chunks, "predict", "mortgage", b"\xef\xbb\xbf" + text.getvalue().encode())
    job = ended(small_chunks, answer)
    rows = list(csv.DictReader(io.StringIO(call(small_chunks, "GET", job["result"], Accept="text/csv").body.decode())))
    predictions = call(small_chunks, "GET", job["result"]).json["predictions"]
    assert [row["label"] for row in rows] == [one["label"] for one in predictions]
    for row, one in zip(rows, predictions, strict=True):
        assert {name: float(row[f"probability of {name}"]) for name in one["probabilities"]} == one["probabilities"]
    again = ended(small_chunks, send(small_chunks, "predict", "mortgage", instances))
    assert call(small_chunks, "GET", again["result"]).json["predictions"] == predictions


def test_explanations_as_a_table_add_up(small_chunks: Service) -> None:
    job = ended(small_chunks, send(small_chunks, "explain", "diabetes", varied(small_chunks, "diabetes", 9)))
    rows = list(csv.reader(io.StringIO(call(small_chunks, "GET", job["result"], Accept="text/csv").body.decode())))
    assert rows[0][:3] == ["instance", "output", "base_value"]
    assert [row[0] for row in rows[1:]] == [str(number) for number in range(9)]
    for row in rows[1:]:
        assert sum(map(float, row[2:])) == pytest.approx(float(row[1]))


def check_importance(service: Service, instances: list[Any], **parameters: Any) -> dict[str, Any]:
    """The importance that a job finds is the sum of its explanations, chunk by chunk, as JSON and as a table."""
    body = {"operation": "importance", "model": "wine", "instances": instances, "parameters": parameters}
    job = ended(service, call(service, "POST", "/v1/jobs", json.dumps(body).encode(), Content_Type="application/json"))
    assert (job["state"], job["operation"], job["chunks"]) == ("done", "importance", 3)
    found: dict[str, Any] = call(service, "GET", job["result"]).json
    assert found["rows"] == len(instances)
    table = call(service, "GET", job["result"], Accept="text/csv").body.decode()
    lines = list(csv.DictReader(io.StringIO(table)))
    for output in found["outputs"]:
        own = {line["feature"]: float(line["importance"]) for line in lines if line["class"] == output["class"]}
        assert own == output["importance"]
    picture = call(service, "GET", job["result"], Accept="image/svg+xml")
    assert picture.headers["Content-Type"] == "image/svg+xml"
    return found


def test_the_importance_of_features_over_the_rows_of_a_job(small_chunks: Service) -> None:
    instances = varied(small_chunks, "wine", 17)
    found = check_importance(small_chunks, instances)
    explained = [
        one
        for part in _sevens(instances)
        for one in call(
            small_chunks,
            "POST",
            "/v1/models/wine:explain",
            part.replace(b"}]}", b'}], "parameters": {"classes": "all"}}'),
            Content_Type="application/json",
        ).json["explanations"]
    ]
    for output in found["outputs"]:
        values = [one["classes"][output["class"]]["values"] for one in explained]
        for name, importance in output["importance"].items():
            assert importance == pytest.approx(np.mean([abs(one[name]) for one in values]))
        for name, points in output["points"].items():
            assert points["value"] == [instance[name] for instance in instances]
            assert points["shap"] == pytest.approx([one[name] for one in values], rel=1e-5)
    some = check_importance(small_chunks, instances, top=2, classes=[found["outputs"][0]["class"]])
    (output,) = some["outputs"]
    assert list(output["importance"])[2:] == ["(other)"]


def test_models_are_shared_with_the_runner(small_chunks: Service) -> None:
    ended(small_chunks, send(small_chunks, "predict", "wine", varied(small_chunks, "wine", 30)))
    (runner,) = small_chunks.runners
    assert read_memory(runner).private < 16 << 20
    assert Path(f"/proc/{runner}/oom_score_adj").read_text().strip() == "800"
    assert len(small_chunks.events("Model registry initialized")) == 1
    assert eventually(lambda: bool(small_chunks.events("Job done")))
    (first, *_) = small_chunks.events("Job done")
    assert first["private_bytes"] > 0
    assert first["private_bytes_before"] > 0


def test_what_a_job_computes_gives_way_to_the_web(busy: Service) -> None:
    """The runner itself does not: its heartbeats must come through."""
    location = send(busy, "predict", "sleepy", [[60.0]]).headers["Location"]
    until(busy, location, state="running")
    (runner,) = busy.runners

    def executors() -> list[int]:
        return [executor for zygote in child_pids(runner) for executor in child_pids(zygote)]

    assert eventually(lambda: len(executors()) == 1)
    (executor,) = executors()
    assert eventually(lambda: _priority(executor) == (19, os.SCHED_BATCH))
    assert _priority(runner) == (min(19, 10 + os.nice(0)), os.SCHED_OTHER)
    assert _priority(busy.workers[0]) == (os.nice(0), os.SCHED_OTHER)
    assert call(busy, "DELETE", location).status == 200
    until(busy, location, state="cancelled")


def _priority(pid: int) -> tuple[int, int]:
    return os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)


BAD_TABLES = {
    b"": "line 1: must name the features",
    b"value\n": "line 2: there must be at least one instance",
    b"valeu\n1\n": "line 1: value is missing",
    b"value,more\n1,2\n": "line 1: names 2 columns, the model has 1 features",
    b"value\n0\n0,1\n": "line 3: has 2 values, the header has 1",
    b"value\n0\n\n1\n": "line 3: is empty",
    b"value\n0\n0\0\n": "line 3: has a NUL byte",
    b"value\n\xff\n": "line 2: is not UTF-8",
    b'value\n0\n"0\n': "line 3: is not CSV: a quote is not closed",
    b'value\n"0"1\n': "line 2: is not CSV; a quote within quotes is doubled",
    b"value\nnan\n": "line 2: value must not be null",
    b"value\n1_0\n": "line 2: value must be a number",
    b"value\nsecret\n": "line 2: value must be a number",
    b"value\n" + b"1" * 70_000: "line 2: is too long",
}


@pytest.mark.parametrize("table", BAD_TABLES, ids=lambda table: str(table[:20]))
def test_a_table_that_cannot_be_names_its_line(busy: Service, table: bytes) -> None:
    answer = send_table(busy, "predict", "sleepy", table)
    assert (answer.status, answer.json["detail"]) == (422, BAD_TABLES[table])


def test_a_table_with_too_many_lines_is_refused_at_the_first_of_them(busy: Service) -> None:
    answer = send_table(busy, "predict", "sleepy", b"value\n" + b"0\n" * 1_000_000)
    assert answer.status == 413
    assert answer.json["detail"] == "line 102: a job may have 100 rows; send more as several"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"operation": "predict", "model": "sleepy"}', 422),
        (b'{"operation": "train", "model": "sleepy", "instances": [[0]]}', 422),
        (b'{"operation": "predict", "model": "nobody", "instances": [[0]]}', 404),
        (b'{"operation": "predict", "model": "sleepy", "instances": []}', 422),
        (b'{"operation": "predict", "model": "sleepy", "instances": [[0], ["x"]]}', 422),
        (b'{"operation": "predict", "model": "sleepy", "instances": [%s]}' % b",".join([b"[0]"] * 101), 413),
    ],
)
def test_a_request_that_cannot_be_is_refused(busy: Service, body: bytes, status: int) -> None:
    answer = call(busy, "POST", "/v1/jobs", body, Content_Type="application/json")
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_wrong_instance_is_named_by_its_place_in_the_job(small_chunks: Service) -> None:
    instances = varied(small_chunks, "wine", 450)
    instances[420]["alcohol"] = "strong"
    answer = send(small_chunks, "predict", "wine", instances)
    assert answer.status == 422
    assert answer.json["errors"] == [{"instance": 420, "feature": "alcohol", "reason": "must be a number"}]


def test_a_poisoned_row_fails_its_job_by_name_and_not_the_runner(busy: Service) -> None:
    runners = busy.runners
    job = ended(busy, send(busy, "predict", "fragile", [[0.5]] * 6 + [[1.5]] + [[0.5]] * 3))
    assert (job["state"], job["error"]) == ("failed", "the model failed on instance 6")
    assert call(busy, "GET", f"/v1/jobs/{job['id']}/result").status == 409
    assert ended(busy, send(busy, "predict", "fragile", [[0.25]]))["state"] == "done"
    assert busy.runners == runners


def test_rows_that_need_much_memory_together_are_taken_apart(busy: Service) -> None:
    job = ended(busy, send(busy, "predict", "greedy", [[60], [60], [60], [60]]))
    assert (job["state"], job["attempts"]) == ("done", 1)
    job = ended(busy, send(busy, "predict", "greedy", [[60], [60], [60], [600]]))
    assert job["error"] == "the model needs more memory than is allowed on instance 3"


def test_a_running_job_is_cancelled_within_its_chunk(busy: Service) -> None:
    sent = send(busy, "predict", "sleepy", [[15.0]])
    path = sent.headers["Location"]
    until(busy, path, state="running")
    assert call(busy, "DELETE", path).json["cancelling"]
    assert until(busy, path, state="cancelled")["state"] == "cancelled"
    assert ended(busy, send(busy, "predict", "sleepy", [[0.0]]))["state"] == "done"


def test_full_queue_is_said_and_equal_requests_are_one_job(busy: Service) -> None:
    blocking = send(busy, "predict", "sleepy", [[14.0]]).headers["Location"]
    until(busy, blocking, state="running")
    first = send(busy, "predict", "sleepy", [[0.001]])
    assert send(busy, "predict", "sleepy", [[0.001]]).json["id"] == first.json["id"]
    second = send(busy, "predict", "sleepy", [[0.002]])
    refused = send(busy, "predict", "sleepy", [[0.003]])
    assert refused.status == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert call(busy, "DELETE", second.headers["Location"]).json["state"] == "cancelled"
    call(busy, "DELETE", blocking)
    assert ended(busy, first)["state"] == "done"


def test_an_idempotency_key_is_one_job_and_one_request(busy: Service) -> None:
    first = send(busy, "predict", "sleepy", [[0.0004]], Idempotency_Key="mine")
    assert ended(busy, first)["state"] == "done"
    assert send(busy, "predict", "sleepy", [[0.0004]], Idempotency_Key="mine").json["id"] == first.json["id"]
    assert send(busy, "predict", "sleepy", [[0.0004]]).json["id"] != first.json["id"]
    assert send(busy, "predict", "sleepy", [[0.0005]], Idempotency_Key="mine").status == 422
    assert send(busy, "predict", "sleepy", [[0.0004]], Idempotency_Key="two words").status == 400


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("job_id", ["x", "1", "%00", "a" * 24, "..%2f..", "' or 1=1"])
def test_a_job_that_is_not_there_is_not_found(busy: Service, method: str, job_id: str) -> None:
    assert call(busy, method, f"/v1/jobs/{job_id.replace(' ', '%20')}").status == 404


def test_a_job_whose_runner_is_killed_is_finished_by_the_next(busy: Service) -> None:
    path = send(busy, "predict", "sleepy", [[0.3]] * 12).headers["Location"]
    until(busy, path, chunks_done=1)
    (runner,) = busy.runners
    family = [runner, *(zygote for zygote in child_pids(runner))]
    family += [executor for zygote in family[1:] for executor in child_pids(zygote)]
    os.kill(runner, signal.SIGKILL)
    assert gone(family)
    job = until(busy, path, state="done")
    assert (job["state"], job["chunks_done"], job["attempts"]) == ("done", 3, 2)
    assert call(busy, "GET", job["result"]).json["predictions"] == [0.3] * 12
    assert runner not in busy.runners
    assert busy.events("Runner died")[0]["code"] == -signal.SIGKILL


def test_a_runner_that_is_told_to_end_gives_its_job_back_at_once(busy: Service) -> None:
    path = send(busy, "predict", "sleepy", [[0.05]] * 100).headers["Location"]
    until(busy, path, state="running")
    busy.process.send_signal(signal.SIGHUP)
    job = until(busy, path, state="done")
    assert (job["state"], job["chunks_done"], job["attempts"]) == ("done", 25, 2)
    assert len(busy.events("Job released")) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_runners_end_with_the_master_however_it_ends(odd: Path, how: signal.Signals) -> None:
    environ = {"MODEL_DIR": str(odd), "WEB_CONCURRENCY": "1", "JOB_RUNNERS": "2"}
    with Service(environ) as service:
        assert eventually(lambda: len(service.runners) == 2)
        until(service, send(service, "predict", "sleepy", [[50.0]]).headers["Location"], state="running")
        pids = [*service.runners, *(child for pid in service.runners for child in child_pids(pid))]
        service.stop(how)
        assert gone(pids)


def test_a_job_goes_on_where_it_was_when_the_whole_service_was_killed(odd: Path, tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(odd), "DATA_DIR": str(tmp_path), "WEB_CONCURRENCY": "1", "SHAP_MAX_BATCH_SIZE": "4"}
    environ["JOB_LEASE_SECONDS"] = "1"
    with Service(environ) as service:
        path = send(service, "predict", "sleepy", [[0.3]] * 12).headers["Location"]
        until(service, path, chunks_done=1)
        service.stop(signal.SIGKILL)
    with Service(environ) as service:
        job = until(service, path, state="done")
        assert (job["state"], job["chunks_done"], job["attempts"]) == ("done", 3, 2)
        assert call(service, "GET", job["result"]).json["predictions"] == [0.3] * 12


def test_a_store_that_cannot_be_written_costs_jobs_only(few_models: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    with Service({"MODEL_DIR": str(few_models), "DATA_DIR": str(file)}) as service:
        health = service.get("/health")
        assert (health["status"], health["jobs"]) == ("degraded", "unavailable")
        example = service.get("/v1/models/wine")["example"]
        refused = send(service, "predict", "wine", [example])
        assert refused.status == 503
        assert refused.headers["Retry-After"]
        assert str(tmp_path) not in refused.body.decode()
        body = json.dumps({"instances": [example]}).encode()
        assert call(service, "POST", "/v1/models/wine:predict", body, Content_Type="application/json").status == 200


def test_who_is_no_worker_runs_no_jobs_and_forkserve_worker_does_them(odd: Path, tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(odd), "DATA_DIR": str(tmp_path / "data"), "ROLES": "web"}
    with Service(environ) as service:
        assert service.runners == []
        sent = send(service, "predict", "fragile", [[0.125], [0.25]])
        worker = [str(FORKSERVE), "worker", "--once"]
        done = subprocess.run(
            worker, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        job = ended(service, sent)
        assert call(service, "GET", job["result"]).json["predictions"] == [0.125, 0.25]


def test_gunicorn_without_the_web_role_says_what_to_run(odd: Path) -> None:
    service = Service({"MODEL_DIR": str(odd), "ROLES": "worker"})
    assert service.process.wait(30) != 0
    service.stop()
    assert "forkserve: ROLES does not include web; run `forkserve worker` instead of gunicorn" in service.log()


def test_forkserve_worker_replaces_its_runners_and_ends_with_them(odd: Path, tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(odd), "DATA_DIR": str(tmp_path), "JOB_RUNNERS": "2"}
    with forkserve_worker(environ) as process:
        assert eventually(lambda: len(child_pids(process.pid)) == 2)
        first = child_pids(process.pid)
        os.kill(first[0], signal.SIGKILL)
        assert eventually(lambda: first[0] not in child_pids(process.pid) and len(child_pids(process.pid)) == 2)
