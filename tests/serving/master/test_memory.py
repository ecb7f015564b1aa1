"""What the watchdog does about memory, with a clock and processes that are made up."""

from __future__ import annotations

import pytest

from serving.master.memory import COOL_DOWN_SECONDS, SETTLE_SECONDS, TRIM_SECONDS, Member, Watchdog
from serving.shared.pressure import Pressure

MB = 1024 * 1024
LIMIT = 500 * MB


class Bench:
    """A watchdog of a box of 500 MB, and what it has done."""

    def __init__(self, share: int = 0) -> None:
        self.now = 0.0
        self.pressure = Pressure()
        self.replaced: list[int] = []
        self.killed: list[int] = []
        self.alerts: list[str] = []
        self.watchdog = Watchdog(
            self.pressure,
            limit=LIMIT,
            share=share,
            replace=self.replaced.append,
            kill=self.killed.append,
            alert=lambda kind, _message: self.alerts.append(kind),
            clock=lambda: self.now,
        )

    def look(self, used: float, *members: Member) -> None:
        """A second later: so many MB are used."""
        self.now += SETTLE_SECONDS
        self.watchdog.look(int(used * MB), members)


@pytest.fixture
def bench() -> Bench:
    return Bench()


SMALL, LARGE, LARGER = Member(1, 10 * MB), Member(2, 60 * MB), Member(3, 50 * MB, children=30 * MB)


def test_nothing_is_done_while_there_is_enough(bench: Bench) -> None:
    bench.look(400, SMALL, LARGE)
    assert (bench.alerts, bench.replaced, bench.pressure.trims) == ([], [], 0)
    assert (bench.pressure.read().used, bench.pressure.read().limit) == (400 * MB, LIMIT)


def test_high_memory_is_said_once_and_processes_are_asked_to_trim(bench: Bench) -> None:
    for _ in range(5):
        bench.look(430, LARGE)
    assert (bench.alerts, bench.replaced) == (["memory-high"], [])
    assert (bench.pressure.trims, bench.pressure.read().stage) == (1, "high")
    bench.now += TRIM_SECONDS
    bench.look(430, LARGE)
    assert bench.pressure.trims == 2


def test_memory_that_goes_up_and_down_a_little_is_not_said_again(bench: Bench) -> None:
    for used in (430, 420, 430, 410, 430):
        bench.look(used)
    assert bench.alerts == ["memory-high"]
    for used in (399, 430):
        bench.look(used)
    assert bench.alerts == ["memory-high", "memory-high"]


def test_the_process_that_has_most_is_replaced_before_the_limit(bench: Bench) -> None:
    bench.look(465, SMALL, LARGE, LARGER)
    assert bench.replaced == [LARGER.pid]


def test_processes_are_replaced_one_at_a_time(bench: Bench) -> None:
    bench.look(465, LARGE, LARGER)
    for _ in range(3):
        bench.look(465, LARGE, Member(LARGER.pid, 80 * MB, leaving=True))
    assert bench.replaced == [LARGER.pid]
    bench.look(465, LARGE, SMALL)
    assert bench.replaced == [LARGER.pid, LARGE.pid]


def test_nobody_is_replaced_when_that_would_not_help_and_it_is_said_once(bench: Bench) -> None:
    for _ in range(5):
        bench.look(480, SMALL, Member(4, 12 * MB))
    assert (bench.replaced, bench.alerts) == ([], ["memory-high", "memory-futile"])


def test_calls_of_jobs_go_first_also_while_a_worker_leaves(bench: Bench) -> None:
    runner = Member(9, 8 * MB, children=210 * MB, executors={91: 30 * MB, 92: 170 * MB})
    bench.look(465, Member(2, 90 * MB, leaving=True), runner)
    assert (bench.killed, bench.replaced) == ([92], [])


def test_a_process_past_its_share_is_replaced_and_said_but_not_again_and_again() -> None:
    bench = Bench(share=40 * MB)
    for _ in range(3):
        bench.look(200, SMALL, LARGE)
    assert (bench.replaced, bench.alerts) == ([LARGE.pid], ["memory-share"])
    bench.now += COOL_DOWN_SECONDS
    bench.look(200, SMALL, LARGE)
    assert (bench.replaced, bench.alerts) == ([LARGE.pid] * 2, ["memory-share"])


def test_what_a_process_has_forked_is_not_its_share() -> None:
    bench = Bench(share=60 * MB)
    bench.look(200, LARGER)
    assert bench.replaced == []


def test_a_share_that_no_process_could_keep_to_replaces_no_fresh_one() -> None:
    bench = Bench(share=1 * MB)
    bench.look(200, SMALL)
    assert bench.replaced == []


def test_without_a_limit_it_only_tells_what_is_used() -> None:
    bench = Bench()
    bench.watchdog = Watchdog(
        bench.pressure,
        limit=0,
        share=0,
        replace=bench.replaced.append,
        kill=bench.killed.append,
        alert=lambda kind, _message: bench.alerts.append(kind),
    )
    bench.look(100_000, LARGE)
    assert (bench.replaced, bench.alerts, bench.pressure.read().used) == ([], [], 100_000 * MB)
