"""What is asked of a running service from outside: verification after a deploy, and the load test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from harness.processes import eventually
from harness.servers import http_server
from harness.service import ADMIN_TOKEN, FORKSERVE, Service
from serving.cli.client import RemoteService
from serving.cli.verify import findings

Tamper = Callable[[str, dict[str, Any]], None]


def forkserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FORKSERVE, *arguments],
        env=os.environ | {"ADMIN_TOKEN": ADMIN_TOKEN},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def tampered(service: Service, tamper: Tamper) -> AbstractContextManager[str]:
    """The address of a server that answers as the service does, but for what `tamper` changes in a JSON answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            skipped = ("host", "connection", "accept-encoding")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            request = urllib.request.Request(
                service.address + self.path, self.rfile.read(length) or None, headers, method=self.command
            )
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    status, content, given = answer.status, answer.read(), answer.headers
            except urllib.error.HTTPError as error:
                with error:
                    status, content, given = error.code, error.read(), error.headers
            if given.get("Content-Type", "").startswith("application/json"):
                said = json.loads(content)
                tamper(self.path, said)
                content = json.dumps(said).encode()
            self.send_response(status)
            for name in ("Content-Type", "X-Cache", "Location"):
                if name in given:
                    self.send_header(name, given[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - the name is the base class's

    return http_server(Handler)


def faults(address: str) -> dict[str, str]:
    with RemoteService(address, ADMIN_TOKEN) as remote:
        return {finding.subject: finding.fault for finding in findings(remote) if finding.fault}


def test_verify_finds_nothing_wrong_with_a_service_that_works(service: Service) -> None:
    done = forkserve("verify", service.address)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    subjects = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("ok")]
    for expected in ("predict wine", "explain mortgage", "cache", "stream", "job", "admin is closed", "memory"):
        assert any(subject.startswith(expected) for subject in subjects), done.stdout


def test_verify_finds_more_memory_than_allowed(service: Service) -> None:
    done = forkserve("verify", service.address, "--max-memory-mb", "10")
    assert done.returncode == 1
    assert "FAULT  memory" in done.stdout


def test_verify_says_that_nobody_answers() -> None:
    done = forkserve("verify", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout.startswith("FAULT  readiness")


def _wrong_sum(path: str, said: dict[str, Any]) -> None:
    if path.endswith("wine:explain"):
        said["explanations"][0]["base_value"] += 0.01


def _wrong_prediction(path: str, said: dict[str, Any]) -> None:
    if path.endswith("diabetes:predict"):
        said["predictions"] = [float("inf")]


def _no_predictions(path: str, said: dict[str, Any]) -> None:
    if path.endswith("mortgage:predict"):
        del said["predictions"]


def _degraded(path: str, said: dict[str, Any]) -> None:
    if path == "/health":
        said["status"] = "degraded"


def _failed_job(path: str, said: dict[str, Any]) -> None:
    if path.startswith("/v1/jobs/"):
        said["state"] = "failed"


@pytest.mark.parametrize(
    ("tamper", "subject"),
    [
        (_wrong_sum, "explain wine"),
        (_wrong_prediction, "predict diabetes"),
        (_no_predictions, "predict mortgage"),
        (_degraded, "health"),
        (_failed_job, "job"),
    ],
)
def test_verify_names_what_is_wrong_and_only_that(service: Service, tamper: Tamper, subject: str) -> None:
    with tampered(service, tamper) as address:
        # not at once: a store that has just been slow is told by the health for some seconds
        assert eventually(lambda: list(faults(address)) == [subject])


def test_verify_finds_a_fallback_model(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "wine", tmp_path / "wine")
    (tmp_path / "wine" / "1" / "model.joblib").write_bytes(b"damaged")
    with Service({"MODEL_DIR": str(tmp_path), "MODEL_FALLBACK": "true", "WEB_CONCURRENCY": "1"}) as running:
        found = faults(running.address)
    assert "fallback" in found["predict wine"]
    assert "degraded" in found["health"]


def test_load_test_tells_rate_success_latency_and_memory(service: Service) -> None:
    done = forkserve("load-test", service.address, "--seconds", "1.5", "--connections", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["success"] == "100.000%"
    assert lines["answers"].endswith("x 200; 0 lost")
    assert "p95" in lines["latency"]
    assert lines["memory"].endswith("all processes")
    assert "answers  0 failed  p95" in done.stderr


def test_load_test_counts_what_is_lost(service: Service) -> None:
    def damage(path: str, said: dict[str, Any]) -> None:
        if path.endswith("wine:predict"):
            raise ConnectionAbortedError  # the connection is closed without an answer

    with tampered(service, damage) as address:
        done = forkserve("load-test", "--seconds", "1", "--connections", "2", "--models", "wine", address)
    assert done.returncode == 1
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert not lines["answers"].endswith(" 0 lost"), done.stdout
    assert float(lines["success"].rstrip("%")) < 100


def test_load_test_of_a_model_that_is_not_served_says_so(service: Service) -> None:
    done = forkserve("load-test", service.address, "--models", "none")
    assert (done.returncode, done.stderr) == (1, "forkserve: the service has no model none\n")


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--seconds", "-5", "must be at least 0.1"),
        ("--seconds", "nan", "must be at least 0.1"),
        ("--seconds", "inf", "must be at least 0.1"),
        ("--connections", "0", "must be at least 1"),
        ("--explained", "2", "must be at least 0 and at most 1"),
        ("--repeated", "some", "invalid float value: 'some'"),
    ],
)
def test_load_test_refuses_options_out_of_range(option: str, value: str, reason: str) -> None:
    done = forkserve("load-test", option, value)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        f"forkserve load-test: error: argument {option}: {reason}",
    )
