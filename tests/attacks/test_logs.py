"""Clients cannot forge log lines, and failures do not disclose internals to clients."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from harness.estimators import FragileRegressor
from harness.service import Service
from harness.wire import SECONDS, Answer, ask, check_refusal, request
from tests.attacks.payloads import MARKER, PATH, body

HOSTILE = [
    'a","level":"error","event":"forged',
    '{"event":"forged"}',
    "\x1b[2J\x1b]0;title\x07",
    "\u202etxet",
    "%0d%0a%7b%22event%22:%22forged%22%7d",
    "a\tb",
    "x" * 10_000,
    "\\u000a{}",
    "\u2028\u2029\x85",
]


def lines_since(service: Service, before: int, answer: Answer) -> list[dict[str, Any]]:
    """The log's new lines; each must be an object of JSON in plain, printable text.

    A request's own line is written when it has been answered, so it is waited for; what the parser refuses has none.
    """
    if "x-request-id" in answer.headers:
        own = re.compile(rf'^.*"Request completed.*"{re.escape(answer.headers["x-request-id"])}".*\n', re.MULTILINE)
        deadline = time.monotonic() + SECONDS
        while not own.search(service.log()[before:]):
            assert time.monotonic() < deadline
    # not splitlines(): a reader of logs knows no other line end than this
    *lines, _ = service.log()[before:].split("\n")
    assert all(line.isascii() and line.isprintable() for line in lines)
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_text_in_a_header_writes_nothing_of_its_own_into_the_log(target: Service, text: str) -> None:
    before = len(target.log())
    headers = {"user_agent": text, "x_request_id": text, "referer": text, "x_forwarded_for": text, "host": text}
    answer = ask(target, request(PATH, body(), **headers))
    assert answer.status in (200, 400)  # control characters are refused by the parser
    lines = lines_since(target, before, answer)
    assert lines
    assert not any(line["event"] == "forged" for line in lines)
    assert answer.headers.get("x-request-id") != text


@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"])
def test_line_end_in_a_header_is_not_part_of_its_value(target: Service, ending: str) -> None:
    before = len(target.log())
    answer = ask(target, request(PATH, body(), x_request_id=f'a{ending}x: {{"event":"forged"}}'))
    assert answer.status in (200, 400)
    assert not any(line["event"] == "forged" for line in lines_since(target, before, answer))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_text_in_a_path_writes_nothing_of_its_own_into_the_log(target: Service, text: str) -> None:
    before = len(target.log())
    answer = ask(target, request(f"/v1/models/{text.replace(' ', '')}:predict?q={text}", body()))
    check_refusal(answer, 400, 404)
    lines = lines_since(target, before, answer)
    assert lines
    assert not any(line["event"] == "forged" for line in lines)
    assert all(len(line.get("path", "")) <= 256 for line in lines)


def test_query_and_body_are_not_logged(target: Service) -> None:
    before = len(target.log())
    answer = ask(target, request(f"{PATH}?token={MARKER}", json.dumps({"instances": [{MARKER: MARKER}]}).encode()))
    assert lines_since(target, before, answer)
    assert MARKER not in target.log()[before:]


@pytest.mark.parametrize("kept", ["abc", "A-1_2.3", "0" * 64])
def test_good_request_id_is_kept_in_answer_and_log(target: Service, kept: str) -> None:
    before = len(target.log())
    answer = ask(target, request(PATH, body(), x_request_id=kept))
    assert answer.headers["x-request-id"] == kept
    (line,) = [line for line in lines_since(target, before, answer) if line["request_id"] == kept]
    pattern = r"Request completed in \d\.\d{3}s, Prediction wine completed in \d\.\d{3}s, Cache (HIT|MISS)"
    assert re.fullmatch(pattern, line["event"])
    assert (line["model"], line["version"], line["rows"], line["status"]) == ("wine", "1", 1, 200)


def failure(service: Service, value: str) -> tuple[Answer, list[dict[str, Any]]]:
    before = len(service.log())
    answer = ask(service, request("/v1/models/fragile:predict", f'{{"instances":[[{value}]]}}'.encode()))
    return answer, lines_since(service, before, answer)


def test_exception_of_a_model_is_told_to_the_log_and_not_to_the_client(impatient: Service) -> None:
    workers = impatient.workers
    answer, lines = failure(impatient, "1.5")
    problem = check_refusal(answer, 500)
    told = (answer.body.decode() + str(answer.headers)).lower()
    for secret in (
        FragileRegressor.SECRET,
        "keyerror",
        "traceback",
        "file",
        ".py",
        "1.5",
        "sklearn",
        "uvicorn",
        "gunicorn",
    ):
        assert secret not in told
    (line,) = [line for line in lines if line["level"] == "error"]
    assert line["request_id"] == problem["request_id"] == answer.headers["x-request-id"]
    assert FragileRegressor.SECRET in line["exception"]
    assert "Traceback" in line["exception"]
    assert impatient.workers == workers
    assert failure(impatient, "0.5")[0].status == 200


def test_result_that_is_no_number_is_never_sent(impatient: Service) -> None:
    answer, lines = failure(impatient, "2.5")
    check_refusal(answer, 422)
    assert b"nan" not in answer.body.lower()
    assert "Result is not finite" in [line["event"] for line in lines]
