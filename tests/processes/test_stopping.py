"""Ctrl-C and SIGTERM end a service quietly: no traceback, status 0, and a line that says so."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.processes import PATIENCE, eventually, gone, sleep_body
from harness.service import FORKSERVE, ROOT, Service
from serving.cli.client import post

SCHEDULES = "idle: every 1h: reload"


def end_group(service: Service, how: signal.Signals) -> str:
    """Send a signal to all processes in the service's foreground, as a terminal does; the log when it has ended."""
    forked = [*service.workers, *service.runners, *service.schedulers]
    assert len(forked) == 4
    os.killpg(service.process.pid, how)
    assert service.process.wait(PATIENCE) == 0
    assert gone(forked)
    service.stop()
    log = service.log()
    assert [line for line in log.splitlines() if '"level":"error"' in line or "Traceback" in line] == []
    return log


@pytest.fixture
def served(sleeper: Path) -> Iterator[Service]:
    """`forkserve serve` with two workers, a runner and a scheduler."""
    environ = {"MODEL_DIR": str(sleeper), "SCHEDULES": SCHEDULES, "KEEPALIVE_SECONDS": "1", "QUEUE_SECONDS": "10"}
    with Service(environ, (str(FORKSERVE), "serve"), ROOT) as service:
        assert eventually(lambda: len(service.runners) == len(service.schedulers) == 1)
        yield service


def was_read(connection: socket.socket) -> bool:
    """Whether a process has accepted the connection and read all that was sent; the kernel knows."""
    ports = [connection.getpeername()[1], connection.getsockname()[1]]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, *ends, _, queues, _, _, _, _, inode = line.split()[:10]
        if [int(end.rpartition(":")[2], 16) for end in ends] == ports:
            return inode != "0" and int(queues.partition(":")[2], 16) == 0
    return False


def connect(service: Service) -> socket.socket:
    host, _, port = service.address.rpartition("//")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_ends_quietly_with_an_idle_client_and_a_request_that_runs(
    served: Service, how: signal.Signals
) -> None:
    with connect(served) as idle, connect(served) as busy:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        busy.sendall(post(f"{served.address}/v1/models/sleeper:predict", sleep_body(1.0)))
        assert eventually(lambda: was_read(busy))
        answers: list[bytes] = []
        reading = threading.Thread(target=lambda: answers.append(busy.recv(65536)))
        reading.start()
        log = end_group(served, how)
        reading.join(PATIENCE)
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert log.splitlines()[-1] == "forkserve stopped"


def test_a_second_ctrl_c_drops_what_is_in_flight_and_is_quiet_too(served: Service) -> None:
    with connect(served) as busy:
        busy.sendall(post(f"{served.address}/v1/models/sleeper:predict", sleep_body(60.0)))
        assert eventually(lambda: was_read(busy))
        os.killpg(served.process.pid, signal.SIGINT)
        assert eventually(lambda: len(served.events("Worker draining")) == 2)
        started = time.monotonic()
        end_group_again(served)
        assert time.monotonic() - started < PATIENCE / 3


def end_group_again(service: Service) -> None:
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.process.wait(PATIENCE) == 0
    service.stop()
    assert service.log().partition("Traceback")[2] == ""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_forkserve_worker_ends_quietly(sleeper: Path, tmp_path: Path, how: signal.Signals) -> None:
    environ = os.environ | {"MODEL_DIR": str(sleeper), "DATA_DIR": str(tmp_path), "ROLES": "worker,scheduler"}
    process = subprocess.Popen(
        [FORKSERVE, "worker"],
        env=environ | {"SCHEDULES": SCHEDULES},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    missing = {"Runner started", "Scheduler started"}
    for line in process.stdout:
        missing -= {event for event in missing if event in line}
        if not missing:
            break
    assert missing == set()
    os.killpg(process.pid, how)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert '"event":"Runner master stopped"' in rest.splitlines()[-1]


def hang_up(service: Service) -> None:
    """Ask for a reload, and wait until the master has taken note: the kernel joins signals that are still pending."""
    os.kill(service.master, signal.SIGHUP)
    status = Path(f"/proc/{service.master}/status")

    def is_taken() -> bool:
        (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", status.read_text(), re.MULTILINE)
        return not int(pending, 16) & 1 << signal.SIGHUP - 1

    assert eventually(is_taken)


def test_many_reloads_that_wait_are_one_and_the_end_does_not_wait_for_it(served: Service) -> None:
    workers = served.workers
    for _ in range(25):
        hang_up(served)
    assert eventually(lambda: len(served.events("Models reloaded")) == 2)
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))  # reaped, too
    for _ in range(25):
        hang_up(served)
    os.kill(served.master, signal.SIGTERM)
    assert served.process.wait(PATIENCE) == 0
    assert len(served.events("Models reloaded")) <= 3
