"""Clients that send or read as slowly as they can, against a service that gives them one second."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.service import Service
from harness.wire import SECONDS, Connection, ask, check_refusal, request
from serving.http.protocol import RESERVED_DESCRIPTORS
from tests.attacks.conftest import READ_SECONDS
from tests.attacks.payloads import GOOD, PATH, body

LATEST = 5
"""The worker looks once a second; the rest is for a busy machine."""


@contextmanager
def readiness(service: Service) -> Iterator[list[float]]:
    """Asks for /health/ready again and again meanwhile; gives the seconds of each answer."""
    seconds: list[float] = []
    over = threading.Event()

    def ask_on() -> None:
        while not over.wait(0.02):
            started = time.perf_counter()
            status = ask(service, request("/health/ready", method="GET")).status
            seconds.append(time.perf_counter() - started if status == 200 else float("inf"))

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        yield seconds
    finally:
        over.set()
        asking.join()


def dribble(data: bytes) -> Callable[[Connection], None]:
    """Sends a byte now and then, until nobody listens any more or all is sent."""

    def send(connection: Connection) -> None:
        for position in range(len(data)):
            if connection.says_something(within=0.1):
                return
            connection.send(data[position : position + 1])

    return send


def say_nothing(connection: Connection) -> None:
    pass


def half_a_head(connection: Connection) -> None:
    connection.send(GOOD[:40])


def half_a_body(connection: Connection) -> None:
    connection.send(GOOD[:-10])


def dribble_a_body(connection: Connection) -> None:
    connection.send(request(PATH, content_length="4000"))
    dribble(b"[" * 4000)(connection)


def dribble_chunks(connection: Connection) -> None:
    connection.send(request(PATH, content_length=None, transfer_encoding="chunked"))
    dribble(b"1\r\n[\r\n" * 1000)(connection)


def answered_first(connection: Connection) -> None:
    connection.send(GOOD)
    answer = connection.answer()
    assert answer is not None
    assert answer.status == 200
    connection.send(GOOD[:40])


@pytest.mark.parametrize(
    "crawl",
    [say_nothing, half_a_head, half_a_body, dribble(GOOD), dribble_a_body, dribble_chunks, answered_first],
    ids=["nothing", "half a head", "half a body", "head", "body", "chunks", "second request"],
)
def test_request_that_crawls_is_ended(impatient: Service, crawl: Callable[[Connection], None]) -> None:
    workers = impatient.workers
    with readiness(impatient) as seconds:
        started = time.perf_counter()
        crowd = [Connection(impatient) for _ in range(20)]
        for connection in crowd[1:]:
            connection.send(GOOD[:30])
        with crowd[0] as connection:
            crawl(connection)
            answer = connection.answer()
            ended = time.perf_counter() - started
            assert answer is not None
            check_refusal(answer, 408)
            assert connection.is_closed()
        for other in crowd[1:]:
            assert other.answer() is not None
            other.close()
    assert READ_SECONDS * 0.9 < ended < LATEST
    assert sorted(seconds)[len(seconds) // 2] < 0.5
    assert max(seconds) < LATEST
    assert ask(impatient, GOOD).status == 200
    assert impatient.workers == workers


def test_more_clients_than_descriptors_are_refused_and_logged_and_then_all_is_well(impatient: Service) -> None:
    workers, before = impatient.workers, len(impatient.log())
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}
    try:
        for pid, (_, hard) in limits.items():
            used = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + RESERVED_DESCRIPTORS + 5, hard))
        crowd = [Connection(impatient) for _ in range(60)]
        found = [connection.answer() for connection in crowd]
    finally:
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    for connection, answer in zip(crowd, found, strict=True):
        assert answer is not None, "closed without a word"
        check_refusal(answer, 408, 503)
        connection.close()
    assert 503 in [answer.status for answer in found if answer]
    assert "Connections refused: file descriptors run out" in impatient.log()[before:]
    assert ask(impatient, GOOD).status == 200
    assert impatient.workers == workers


def test_client_that_never_reads_is_ended(impatient: Service) -> None:
    workers, before = impatient.workers, len(impatient.log())
    with readiness(impatient) as seconds, Connection(impatient, receive_buffer=4096) as connection:
        # a hundred answers of tens of kilobytes: more than all buffers on the way hold
        assert connection.send(request("/openapi.json", method="GET") * 100)
        assert connection.refuses_more(within=SECONDS)
    assert max(seconds) < LATEST
    assert ask(impatient, GOOD).status == 200
    assert impatient.workers == workers
    assert '"level":"error"' not in impatient.log()[before:]


def test_client_that_sends_ahead_may_wait_for_answers_before_it_sends_on(impatient: Service) -> None:
    slow = request("/v1/models/sleepy:predict", b'{"instances":[[0.6]]}')
    with Connection(impatient) as connection:
        connection.send(slow * 4 + GOOD[:40])
        assert [connection.answer().status for _ in range(4)] == [200] * 4  # type: ignore[union-attr]
        connection.send(GOOD[40:])
        last = connection.answer()
    assert last is not None
    assert last.status == 200


@pytest.mark.parametrize(
    "first",
    [
        (request("/health/live", method="GET"), b"\r\n"),
        (request("/health/live", method="GET"), b"\r\n\r\n\r\n"),
        (request(PATH, body(), content_type="text/plain")[:-5], body()[-5:]),
    ],
    ids=["line end", "line ends", "rest of a refused body"],
)
def test_idle_connection_is_ended_whatever_came_after_the_answer(
    impatient: Service, first: tuple[bytes, bytes]
) -> None:
    data, rest = first
    with Connection(impatient) as connection:
        connection.send(data)
        assert connection.answer() is not None
        connection.send(rest)
        started = time.perf_counter()
        assert connection.is_closed()
    assert time.perf_counter() - started < LATEST


def test_refused_body_that_never_ends_is_ended_without_a_second_answer(impatient: Service) -> None:
    with Connection(impatient) as connection:
        connection.send(request(PATH, body(), content_type="text/plain")[:-5])
        assert connection.answer() is not None
        assert connection.is_closed()
