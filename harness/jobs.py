"""Talks to a running service about jobs, as a client would."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.processes import gone
from harness.service import FORKSERVE, ROOT, SECRET_KEY, Service
from serving.process.kernel import child_pids

PATIENCE = 60.0


@contextmanager
def forkserve_worker(environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`forkserve worker`, told to end with the test, which it has to do with all that it has forked."""
    process = subprocess.Popen(
        [FORKSERVE, "worker"],
        cwd=ROOT,
        env=os.environ | {"SECRET_KEY": SECRET_KEY} | dict(environ),
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
        forked = child_pids(process.pid)
        process.terminate()
        assert process.wait(30) == 0
        assert gone(forked)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(service: Service, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request; `Content_Type` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(service.address + path, body, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def varied(service: Service, model: str, count: int) -> list[dict[str, Any]]:
    """Instances of which no two are the same."""
    example = service.get(f"/v1/models/{model}")["example"]
    name = next(name for name, value in example.items() if isinstance(value, float))
    return [example | {name: example[name] * (1 + 0.0001 * number)} for number in range(count)]


def send(service: Service, operation: str, model: str, instances: list[Any], **headers: str) -> Answer:
    """A job as JSON."""
    body = {"operation": operation, "model": model, "instances": instances}
    return call(service, "POST", "/v1/jobs", json.dumps(body).encode(), Content_Type="application/json", **headers)


def send_table(service: Service, operation: str, model: str, table: bytes, **headers: str) -> Answer:
    """A job as CSV."""
    path = f"/v1/jobs?operation={operation}&model={model}"
    return call(service, "POST", path, table, **({"Content_Type": "text/csv"} | headers))


def until(service: Service, path: str, **wanted: Any) -> Any:
    """The job at `path`, once it is as it is wanted or has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        job = service.get(path)
        if all(job[name] == value for name, value in wanted.items()) or job["finished"]:
            return job
        time.sleep(0.02)
    raise AssertionError(f"{job} is not {wanted}")


def ended(service: Service, answer: Answer) -> Any:
    """The job that was answered, once it has ended."""
    assert answer.status == 202, answer.body
    return until(service, answer.headers["Location"], state="done")
