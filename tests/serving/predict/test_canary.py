"""When a canary goes back, and which requests it answers."""

from __future__ import annotations

import random
import shutil
from bisect import bisect_left
from pathlib import Path

import pytest

from harness.reloading import add_copy
from registry.registry import load_registry
from registry.store.aliases import begin_canary
from serving.predict.batcher import Batcher
from serving.predict.canary import Canaries, VersionFigures, find_worse
from serving.shared.book import Book
from serving.shared.histogram import BOUNDS, BUCKETS


def figures(answered: int, failed: int = 0, seconds: list[float] | None = None) -> VersionFigures:
    times = [0.0] * BUCKETS
    for one in seconds or []:
        times[bisect_left(BOUNDS, one)] += 1
    return VersionFigures(answered, failed, times)


@pytest.mark.parametrize(
    ("canary", "live", "goes_back"),
    [
        (figures(0, 2), figures(0), False),
        (figures(0, 3), figures(0), True),
        (figures(997, 3), figures(9000), True),
        (figures(900, 100), figures(9000, 1000), False),
        (figures(870, 130), figures(9000, 1000), True),
        (figures(1000), figures(0, 100), False),
    ],
    ids=["two", "three", "none-of-the-live-one", "as-many", "more", "fewer"],
)
def test_canary_goes_back_when_it_fails_more_than_chance_explains(
    canary: VersionFigures, live: VersionFigures, *, goes_back: bool
) -> None:
    assert (find_worse("predict", canary, live) is not None) == goes_back


def test_failures_by_chance_do_not_end_a_canary() -> None:
    chance, ended = random.Random(5), 0
    for _ in range(200):
        failed = [sum(chance.random() < 0.02 for _ in range(500)) for _ in range(10)]
        ended += find_worse("predict", figures(500, failed[0]), figures(4500, sum(failed[1:]))) is not None
    assert ended <= 2


@pytest.mark.parametrize(
    ("seconds", "count", "goes_back"),
    [
        (0.050, 49, False),
        (0.050, 50, True),
        (0.026, 1000, False),
        (0.004, 1000, False),
    ],
    ids=["too-few", "slower", "little-slower", "faster"],
)
def test_canary_goes_back_when_it_is_slower(seconds: float, count: int, *, goes_back: bool) -> None:
    live = figures(1000, 0, [0.02] * 1000)
    assert (find_worse("predict", figures(count, 0, [seconds] * count), live) is not None) == goes_back


def test_canary_may_take_some_milliseconds_where_the_live_version_takes_none() -> None:
    live = figures(1000, 0, [0.0001] * 1000)
    assert find_worse("predict", figures(1000, 0, [0.004] * 1000), live) is None
    assert find_worse("predict", figures(1000, 0, [0.008] * 1000), live) is not None


def test_canary_goes_back_when_one_in_ten_of_many_answers_is_slow() -> None:
    live = figures(500, 0, [0.001] * 500)
    slow = [0.001] * 450 + [0.1] * 50
    assert find_worse("predict", figures(499, 0, slow[1:]), live) is None
    assert "95%" in (find_worse("predict", figures(500, 0, slow), live) or "")


@pytest.fixture
def canaries(few_models: Path, tmp_path: Path) -> dict[float, Canaries]:
    """The same canary at several shares."""
    shutil.copytree(few_models / "wine", tmp_path / "wine")
    add_copy(tmp_path, "wine", "2")
    made = {}
    for percent in (10.0, 20.0, 100.0):
        begin_canary(tmp_path / "wine", "1", percent)
        made[percent] = Canaries(load_registry(tmp_path), Book(1), tmp_path, Batcher(threads=1, queue_seconds=1.0))
    return made


def taken(canaries: Canaries) -> set[int]:
    """Those of 10,000 who are answered by the canary."""
    (running,) = {canaries.of(model) for model in canaries.batchers()}
    assert running is not None
    return {who for who in range(10_000) if running.takes(str(who))}


def test_canary_answers_its_share_and_goes_on_answering_those_when_it_grows(canaries: dict[float, Canaries]) -> None:
    ten, twenty, all_of_them = (taken(canaries[percent]) for percent in (10.0, 20.0, 100.0))
    assert abs(len(ten) - 1000) < 150
    assert abs(len(twenty) - 2000) < 200
    assert ten < twenty
    assert len(all_of_them) == 10_000
    assert taken(canaries[10.0]) == ten
