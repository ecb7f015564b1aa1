"""How a service starts, and what keeps it from starting."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from harness.processes import DIABETES, PATIENCE
from harness.service import ROOT, Service
from serving.cli.client import post


def test_a_library_that_starts_a_thread_before_the_fork_is_found_out(models: Path) -> None:
    refused = refusal({"MODEL_DIR": str(models), "PRELOAD_MODULES": "tests.processes.thread_at_import"})
    assert "forkserve: 2 threads at the fork, there may be one" in refused


def test_a_module_that_is_not_there_refuses_the_start(models: Path) -> None:
    refused = refusal({"MODEL_DIR": str(models), "PRELOAD_MODULES": "no_such_module"})
    assert "forkserve: cannot import no_such_module" in refused


def test_a_wrong_setting_refuses_the_start_and_names_the_variable(models: Path) -> None:
    assert refusal({"MODEL_DIR": str(models), "MAX_REQUESTS": "many"}) == (
        "forkserve: MAX_REQUESTS must be a whole number"
    )


def test_an_empty_model_directory_refuses_the_start_and_says_what_to_do(tmp_path: Path) -> None:
    refused = refusal({"MODEL_DIR": str(tmp_path)})
    assert refused == (
        f"forkserve: {tmp_path}: contains no model; create one with `forkserve train` or `forkserve add`"
    )


def refusal(environ: dict[str, str]) -> str:
    """What a service that does not start says last."""
    service = Service(environ)
    assert service.process.wait(PATIENCE) != 0
    service.stop()
    assert "Traceback" not in service.log()
    return service.log().strip().splitlines()[-1]


def test_uvicorn_alone_serves_for_development(models: Path) -> None:
    environ = os.environ | {"MODEL_DIR": str(models), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", "--log-level", "info"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        address = next(found[1] for line in process.stdout if (found := re.search(r"running on http://([^ ]+)", line)))
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(post(f"http://{address}/v1/models/diabetes:predict", DIABETES))
            assert b"200 OK" in connection.recv(65536)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
