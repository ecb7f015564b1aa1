"""The process model on real gunicorn: one load, shared memory, recycling and ending without a lost request."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.processes import PATIENCE, eventually, gone, load, load_while, sleep_body
from harness.service import Service
from serving.cli.client import post
from serving.process.kernel import child_pids, read_memory, thread_names


class KeepAlive:
    """One connection that stays open, with plain bytes."""

    def __init__(self, service: Service) -> None:
        host, _, port = service.address.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE)

    def send(self, path: str = "/health/live", body: bytes | None = None) -> None:
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: test\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.socket.sendall(head.encode() + b"\r\n" + (body or b""))

    def receive(self) -> str:
        """One whole answer."""
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._some()
        length = re.search(rb"content-length: (\d+)", answer)
        assert length is not None
        while len(answer) < answer.index(b"\r\n\r\n") + 4 + int(length[1]):
            answer += self._some()
        return answer.decode()

    def _some(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the connection was closed without an answer"
        return data

    def ask(self, path: str = "/health/live", body: bytes | None = None) -> str:
        self.send(path, body)
        return self.receive()


Connect = Callable[[Service], KeepAlive]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens connections that are closed when the test is over."""
    with ExitStack() as stack:

        def open_connection(service: Service) -> KeepAlive:
            connection = KeepAlive(service)
            stack.callback(connection.socket.close)
            return connection

        yield open_connection


@pytest.fixture(scope="module")
def three_workers(models: Path) -> Iterator[Service]:
    with Service({"MODEL_DIR": str(models), "WEB_CONCURRENCY": "3", "MAX_REQUESTS": "0"}) as service:
        yield service


@pytest.fixture(scope="module")
def lasting(few_models: Path) -> Iterator[Service]:
    with Service({"MODEL_DIR": str(few_models), "MAX_REQUESTS": "0"}) as service:
        yield service


@pytest.fixture
def two_workers(lasting: Service) -> Service:
    """A service whose workers a test may end: it has two again before the next."""
    assert eventually(lambda: len(lasting.workers) == 2)
    return lasting


def test_models_are_loaded_once_for_all_workers(three_workers: Service) -> None:
    assert len(three_workers.workers) == 3
    assert len(three_workers.events("Model registry initialized with 9 models")) == 1


def test_workers_share_most_of_their_memory(three_workers: Service) -> None:
    load(three_workers, requests=60, connections=12)
    for pid in three_workers.workers:
        memory = read_memory(pid)
        assert memory.private < memory.rss / 3


def test_the_master_has_one_thread(three_workers: Service) -> None:
    assert len(thread_names(three_workers.master)) == 1


def test_histogram_boosting_answers_in_every_forked_worker(three_workers: Service, connect: Connect) -> None:
    example = three_workers.get("/v1/models/mortgage")["example"]
    body = json.dumps({"instances": [example]}).encode()
    answered: set[int] = set()

    def ask_another() -> bool:
        connection = connect(three_workers)
        assert "200 OK" in connection.ask("/v1/models/mortgage:predict", body)
        answered.add(json.loads(connection.ask("/health").partition("\r\n\r\n")[2])["worker"]["pid"])
        return answered == set(three_workers.workers)

    assert eventually(ask_another)


def test_workers_are_the_first_victims_of_the_kernel(three_workers: Service) -> None:
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in three_workers.workers]
    assert scores == [500, 500, 500]
    assert Path(f"/proc/{three_workers.master}/oom_score_adj").read_text().strip() != "500"


def test_recycling_loses_no_request(few_models: Path) -> None:
    environ = {"MAX_REQUESTS": "50", "MAX_REQUESTS_JITTER": "10", "MIN_WORKER_SECONDS": "0"}
    with Service(environ | {"MODEL_DIR": str(few_models)}) as service:
        tally = load(service, requests=4000, connections=16, pause=0.001)
        assert (tally.failed, tally.statuses[200]) == (0, 4000)
        assert len(service.events("Worker started")) > 4
        assert len(service.events("Model registry initialized")) == 1
        assert eventually(lambda: len(service.workers) == 2)
        ends = [line["event"] for line in service.events("Worker ") if line["event"] != "Worker started"]
        assert ends == ["Worker draining", "Worker stopped"] * (len(ends) // 2), "one at a time"


def test_a_young_worker_is_not_replaced_however_many_requests_it_has_served(few_models: Path) -> None:
    environ = {"MODEL_DIR": str(few_models), "MAX_REQUESTS": "5", "MAX_REQUESTS_JITTER": "0"}
    with Service(environ) as service:
        before = service.workers
        assert load(service, requests=1000, connections=16).failed == 0
        assert service.workers == before
        assert service.stop() == 0
        assert {line["reason"] for line in service.events("Worker draining")} == {"told to end"}


def test_a_draining_worker_is_replaced_before_it_ends_and_says_goodbye_to_idle_clients(
    few_models: Path, connect: Connect
) -> None:
    environ = {"MAX_REQUESTS": "5", "MAX_REQUESTS_JITTER": "0", "MIN_WORKER_SECONDS": "0"}
    with Service(environ | {"MODEL_DIR": str(few_models), "WEB_CONCURRENCY": "1"}) as service:
        (old,) = service.workers
        idle = connect(service)
        assert "connection: close" not in idle.ask()
        load(service, requests=5, connections=1)
        assert eventually(lambda: len(service.events("Worker started")) == 2)
        assert old in service.workers, "the old worker still waits for its idle client"
        last = idle.ask()
        assert "200 OK" in last
        assert "connection: close" in last
        assert gone([old])


def test_a_worker_that_is_told_to_end_loses_no_request(two_workers: Service) -> None:
    old = two_workers.workers[0]
    tally = asyncio.run(load_while(two_workers, lambda: os.kill(old, signal.SIGTERM)))
    assert tally.failed == 0
    assert gone([old])
    assert eventually(lambda: len(two_workers.workers) == 2)


def test_a_reload_replaces_every_worker_and_loses_no_request(two_workers: Service) -> None:
    old = two_workers.workers
    tally = asyncio.run(load_while(two_workers, lambda: two_workers.process.send_signal(signal.SIGHUP), requests=3000))
    assert tally.failed == 0
    assert gone(old)
    assert eventually(lambda: len(two_workers.workers) == 2)
    assert len(two_workers.events("Model registry initialized")) == 1


def test_a_worker_that_is_killed_is_replaced(two_workers: Service) -> None:
    killed = two_workers.workers[0]
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: len(two_workers.workers) == 2 and killed not in two_workers.workers)
    assert load(two_workers, requests=20, connections=4).failed == 0


def test_workers_end_when_the_master_is_gone(few_models: Path) -> None:
    with Service({"MODEL_DIR": str(few_models)}) as service:
        workers = service.workers
        service.stop(signal.SIGKILL)
        assert gone(workers)


def test_a_request_in_flight_is_answered_before_the_service_ends(sleeper: Path, connect: Connect) -> None:
    with Service({"MODEL_DIR": str(sleeper), "WEB_CONCURRENCY": "1"}) as service:
        connection = connect(service)
        connection.send("/v1/models/sleeper:predict", sleep_body(1.0))
        assert_busy(service)
        service.process.send_signal(signal.SIGTERM)
        answer = connection.receive()
        assert "200 OK" in answer
        assert "connection: close" in answer
        assert service.stop() == 0


def assert_busy(service: Service) -> None:
    """Wait until an inference thread is there: it is started by the first prediction."""
    (worker,) = service.workers
    assert eventually(lambda: len(thread_names(worker)) > 1)


def test_an_interrupt_does_not_wait_for_idle_clients(few_models: Path, connect: Connect) -> None:
    with Service({"MODEL_DIR": str(few_models), "GRACEFUL_TIMEOUT_SECONDS": "60"}) as service:
        idle = connect(service)
        idle.ask()
        started = time.monotonic()
        service.stop(signal.SIGINT)
        assert time.monotonic() - started < 20, "a drain would have taken 30 s"
        assert idle.socket.recv(1) == b""


def test_a_late_prediction_is_answered_504_and_the_worker_goes_on(sleeper: Path, connect: Connect) -> None:
    environ = {
        "MODEL_DIR": str(sleeper),
        "WEB_CONCURRENCY": "1",
        "GRACEFUL_TIMEOUT_SECONDS": "2",
        "INFERENCE_TIMEOUT_SECONDS": "1",
    }
    with Service(environ) as service:
        connection = connect(service)
        answer = connection.ask("/v1/models/sleeper:predict", sleep_body(3.0))
        assert "504 Gateway Timeout" in answer
        assert "application/problem+json" in answer
        assert "200 OK" in connection.ask("/v1/models/sleeper:predict", sleep_body(0.0))
        assert len(service.events("Prediction timeout after 1s")) == 1


def test_a_stuck_prediction_does_not_keep_a_worker_from_ending(sleeper: Path, connect: Connect) -> None:
    environ = {
        "MODEL_DIR": str(sleeper),
        "WEB_CONCURRENCY": "1",
        "GRACEFUL_TIMEOUT_SECONDS": "2",
        "INFERENCE_TIMEOUT_SECONDS": "0.1",
    }
    with Service(environ) as service:
        assert "504" in connect(service).ask("/v1/models/sleeper:predict", sleep_body(600.0))
        (worker,) = service.workers
        os.kill(worker, signal.SIGTERM)
        assert gone([worker])


def test_a_client_may_shorten_the_deadline_but_not_lengthen_it(sleeper: Path, connect: Connect) -> None:
    environ = {
        "MODEL_DIR": str(sleeper),
        "WEB_CONCURRENCY": "1",
        "GRACEFUL_TIMEOUT_SECONDS": "2",
        "INFERENCE_TIMEOUT_SECONDS": "1",
    }
    with Service(environ) as service:
        messages = {
            given: post(f"{service.address}/v1/models/sleeper:predict", sleep_body(5.0)).replace(
                b"\r\n\r\n", f"\r\nX-Request-Timeout: {given}\r\n\r\n".encode(), 1
            )
            for given in ("0.1", "60")
        }
        for message in messages.values():
            connection = connect(service)
            connection.socket.sendall(message)
            assert "504" in connection.receive()
        assert [event["event"] for event in service.events("Prediction timeout")] == [
            "Prediction timeout after 0.1s",
            "Prediction timeout after 1s",
        ]


def test_nothing_is_left_when_the_service_has_ended(few_models: Path) -> None:
    with Service({"MODEL_DIR": str(few_models)}) as service:
        pids = [service.master, *service.workers]
        port = int(service.address.rpartition(":")[2])
        assert service.stop() == 0
    assert gone(pids)
    assert child_pids(os.getpid()) == [] or not set(pids) & set(child_pids(os.getpid()))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
