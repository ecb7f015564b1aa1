"""Runners without a service: forked, told to end, replaced."""

from __future__ import annotations

import signal

from harness.processes import eventually, gone
from serving.master.children import Runners
from serving.shared.book import Book


def test_a_runner_that_was_told_to_end_is_leaving_until_another_has_its_place() -> None:
    runners = Runners(signal.pause, 1, Book(2))
    runners.tend()
    (first,) = runners.pids
    assert runners.leaving == {first: False}
    runners.replace_one(first)
    assert runners.leaving == {first: True}

    def is_replaced() -> bool:
        runners.tend()
        return bool(runners.pids) and runners.pids != [first]

    assert eventually(is_replaced)
    (second,) = runners.pids
    assert runners.leaving == {second: False}
    runners.stop()
    assert gone([first, second])
