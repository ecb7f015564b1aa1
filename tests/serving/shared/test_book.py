"""Numbers of several processes in shared memory, written by forked children of the test."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest

from serving.shared.book import Book, Family
from serving.shared.metrics import Metrics

FAMILIES = (
    Family("things", "counter", "Things", "kind", ("good", "bad")),
    Family("level", "gauge", "A level"),
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def book() -> Book:
    return Book(3)


def in_child(work: Callable[[], None]) -> None:
    """Run it in a forked process that ends without a word, as one that is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def totals(book: Book) -> list[float]:
    (page,) = [page for page in book.read() if page.sheet.families == FAMILIES]
    return [number for _, numbers in page.totals() for number in numbers]


def test_all_processes_are_added_up(book: Book) -> None:
    sheet = book.sheet(FAMILIES)

    def count(slot: int) -> None:
        book.enter(slot)
        sheet.cells[0] += 2
        sheet.cells[2] = 5

    for slot in (book.assign(), book.assign()):
        in_child(lambda slot=slot: count(slot))  # type: ignore[misc]
    assert totals(book) == [4, 0, 10]
    assert len(book.pids()) == 2


def test_counters_of_a_process_that_is_gone_stay_and_its_gauges_vanish(book: Book) -> None:
    sheet = book.sheet(FAMILIES)
    for number in range(20):
        slot = book.assign()

        def count(slot: int = slot) -> None:
            book.enter(slot)
            sheet.cells[1] += 3
            sheet.cells[2] = 7

        in_child(count)
        assert totals(book)[2] == 7
        book.release(slot, "web")
        assert totals(book) == [0, 3 * (number + 1), 0]
    assert book.pids() == {}
    ended = next(page for page in book.read() if page.sheet.families[0].name == "processes_ended")
    assert [numbers for _, numbers in ended.totals()] == [[20, 0, 0, 0, 0]]


def test_what_is_counted_before_a_process_has_entered_is_nobodys(book: Book) -> None:
    sheet = book.sheet(FAMILIES)
    sheet.cells[0] += 1
    assert totals(book) == [0, 0, 0]


def test_too_many_processes_share_a_slot_and_none_is_refused(book: Book) -> None:
    slots = [book.assign() for _ in range(5)]
    assert len(set(slots)) == 4
    for slot in slots:
        book.release(slot, "web")
    assert len({book.assign() for _ in range(3)}) == 3


def test_a_sheet_is_the_same_for_a_later_app_as_long_as_one_of_them_uses_it(book: Book) -> None:
    first = Metrics(book)
    figures = first.model("wine", "predict")
    book.enter_alone()
    figures.answered(0.001, ["miss"])
    second = Metrics(book)
    again = second.model("wine", "predict")
    del first, figures
    again.answered(0.001, ["hit-memory"])
    (page,) = [page for page in book.read() if "model" in page.sheet.labels]
    (_, seconds), *_ = page.totals()
    assert sum(seconds) == pytest.approx(2.002)
    del second, again, page
    gc.collect()
    assert [page for page in book.read() if "model" in page.sheet.labels] == []


def test_reading_meets_no_half_retired_process(book: Book) -> None:
    """The numbers of a process are in its slot or among the retired, never in both and never in none."""
    sheet = book.sheet(FAMILIES)
    seen, retire = [], sheet.retire

    def interrupted(slot: int) -> None:
        seen.append(book._version % 2)
        retire(slot)

    sheet.retire = interrupted  # type: ignore[method-assign]
    book.release(book.assign(), "web")
    assert seen == [1]
    assert book._version % 2 == 0


def test_what_clients_hold_is_added_up_and_comes_back_when_a_process_has_ended(book: Book) -> None:
    held, others = book.holdings(), book.holdings()
    held.add(b"a", 1)
    slots = [book.assign() for _ in range(2)]

    def hold(slot: int) -> None:
        book.enter(slot)
        held.add(b"a", 10)
        held.add(b"b", 5)
        held.add(b"b", -2)

    for slot in slots:
        in_child(lambda slot=slot: hold(slot))  # type: ignore[misc]
    assert (held.of(b"a"), held.of(b"b"), held.of(b"c"), held.total()) == (21, 6, 0, 27)
    assert others.total() == 0
    book.release(slots[0], "web")
    assert (held.of(b"a"), held.of(b"b"), held.total()) == (11, 3, 14)
    held.add(b"a", -1)
    book.release(slots[1], "web")
    assert (held.of(b"a"), held.of(b"b"), held.total()) == (0, 0, 0)


def test_many_clients_are_hardly_ever_taken_for_each_other(book: Book) -> None:
    held = book.holdings()
    for number in range(1000):
        held.add(b"%d" % number, 1)
    assert sum(held.of(b"other %d" % number) > 2 for number in range(1000)) < 10
    assert all(held.of(b"%d" % number) >= 1 for number in range(1000))
