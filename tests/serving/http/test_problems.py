"""Errors as HTTP: never longer than 8 KB, never more than they may tell."""

from __future__ import annotations

import json

import pytest

from registry.errors import Fault, InvalidRows, ModelFailed
from serving.errors import CallFailed, ExecutorGone, MemoryExceeded
from serving.http import problems


@pytest.mark.parametrize("length", [10, 500, 5_000])
def test_problem_of_long_faults_is_cut_to_8_kb_with_the_first_kept(length: int) -> None:
    faults = [Fault(number, "\U0001f980" * length, "x" * length) for number in range(30)]
    status, _, content = problems.render(InvalidRows(faults), "id")
    problem = json.loads(content)
    assert (status, problem["status"]) == (422, 422)
    assert len(content) <= 8 * 1024
    shown = [error["instance"] for error in problem.get("errors", [])]
    assert shown == list(range(len(shown)))
    assert len(shown) <= 20
    assert shown or length == 5_000


@pytest.mark.parametrize(
    "error",
    [ValueError("secret"), KeyError("secret"), ModelFailed("secret"), CallFailed("secret"), OSError("secret")],
)
def test_unexpected_error_tells_nothing_but_the_id_of_the_request(error: Exception) -> None:
    status, headers, content = problems.render(error, "the-id")
    assert (status, headers) == (500, [])
    assert b"secret" not in content
    assert json.loads(content)["request_id"] == "the-id"


def test_a_computation_too_large_is_told_from_one_that_another_worker_can_do() -> None:
    assert problems.render(MemoryExceeded(), "id")[:2] == (413, [])
    assert problems.render(ExecutorGone(), "id")[:2] == (503, [(b"retry-after", b"1")])
