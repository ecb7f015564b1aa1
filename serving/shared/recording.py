"""Who writes into the book: the hot path by itself, parts that count for themselves by being copied now and then."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from serving.shared.families import JOBS, MODEL, OUTCOMES, RESPONSES, SOURCES, STATUSES, Family
from serving.shared.histogram import BOUNDS, BUCKETS
from serving.shared.metrics import Book, Sheet

Read: TypeAlias = Callable[[], Iterable[float]]

OTHER = len(STATUSES)
STATUS_INDEX = {status: index for index, status in enumerate(STATUSES)}

SECONDS = BUCKETS
REFUSALS = BUCKETS + 1
ROWS = {source: REFUSALS + OTHER + 1 + index for index, source in enumerate(SOURCES)}


class ResponseFigures:
    """Counts every answer of a process by its status."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet

    def answered(self, status: int) -> None:
        self._sheet.cells[STATUS_INDEX.get(status, OTHER)] += 1.0


class ModelFigures:
    """Counts what is asked of one model; called for every request, so it takes half a microsecond."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet

    def answered(self, seconds: float, sources: Sequence[str]) -> None:
        """A request was answered after so many seconds; where each of its rows is from."""
        cells = self._sheet.cells
        cells[bisect_left(BOUNDS, seconds)] += 1.0
        cells[SECONDS] += seconds
        if len(sources) == 1:
            cells[ROWS[sources[0]]] += 1.0
        else:
            for source in SOURCES:
                cells[ROWS[source]] += sources.count(source)

    def refused(self, status: int) -> None:
        self._sheet.cells[REFUSALS + STATUS_INDEX.get(status, OTHER)] += 1.0


class JobFigures:
    """Counts what becomes of a runner's attempts at jobs."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet

    def ended(self, outcome: str, replacements: int) -> None:
        """One attempt ended; so many processes the runner has had replaced since it started."""
        self._sheet.cells[OUTCOMES.index(outcome if outcome in OUTCOMES else "other")] += 1.0
        self._sheet.cells[len(OUTCOMES)] = float(replacements)


class Metrics:
    """What one app measures. Built before the fork; `book` is that of the service, whichever app it has."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.responses = ResponseFigures(book.sheet(RESPONSES))
        self.jobs = JobFigures(book.sheet(JOBS))
        self._followed: list[tuple[Sheet, Read]] = []

    def model(self, name: str, verb: str) -> ModelFigures:
        """Those of a model of the registry."""
        return ModelFigures(self.book.sheet(MODEL, model=name, operation=verb))

    def follow(self, families: Sequence[Family], read: Read) -> None:
        """Have `publish` copy what `read` gives: a number for each value of each family, in their order.

        Counters are those of this process since it started.
        """
        self._followed.append((self.book.sheet(families), read))

    def publish(self) -> None:
        """Copy what the parts have counted so far; some microseconds."""
        for sheet, read in self._followed:
            for index, number in enumerate(read()):
                sheet.cells[index] = float(number)
