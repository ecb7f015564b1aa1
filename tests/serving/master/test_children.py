"""Runners without a service: forked, told to end, replaced."""

from __future__ import annotations

import signal

from harness.processes import eventually, gone
from serving.master.children import Runners
from serving.shared.book import Book


def test_a_runner_that_was_told_to_end_is_leaving_until_another_has_its_place() -> None:
    runners = Runners(signal.pause, 1, Book(2))
    runners.tend()
    (first,) = runners.leaving
    assert runners.leaving == {first: False}
    runners.replace_one(first)
    assert runners.leaving == {first: True}

    def is_replaced() -> bool:
        runners.tend()
        return bool(runners.leaving) and first not in runners.leaving

    assert eventually(is_replaced)
    (second,) = runners.leaving
    assert runners.leaving == {second: False}
    runners.stop()
    assert gone([first, second])
