"""Drift: how far the rows of live requests, and the answers to them, are from the sample of a version.

Context: no request may wait for what is measured, and a sample of the requests would tell of a change too late.
Decision: every row is counted in the turn of the event loop in which it is answered, in the bins of the version's
manifest, by a kernel and in the process's slot of the book; those of one turn together, because one by one the
processor would have other code and other numbers at hand for each. No row is kept. Windows are differences between
totals: a worker adds the totals to rings in shared memory when it is time to, and when it has counted CHECK_ROWS rows.
Consequence: a process that ends loses nothing, one that is killed what it was just answering, and a reload nothing.
Each instance of a service measures what it answers itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry.kernels.counting import CELLS, COUNT
from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Rows
from serving.monitoring.bins import Bins, Column, Numbers, columns_of
from serving.monitoring.outputs import OutputReader
from serving.monitoring.windows import Snapshots, Window
from serving.predict.observer import Answered
from serving.shared.book import Book, SharedCounts
from serving.shared.numbers import shared_floats, shared_integers
from serving.shared.turn import Turn
from serving.telemetry.alerts import Alerts

STEPS = 24
"""Snapshots in the time of a window: it reaches at most one of these steps further back than it says."""

ALERT_ROWS = 500
"""Alerts are about the latest rows, of which there must be so many."""

CHECK_ROWS = 100
"""Rows of all workers after which the latest ones are judged again."""

LOOK_ROWS = 200
"""Rows that one worker counts before it looks at the latest rows of all."""

CLEAR_SHARE = 0.75
"""An alert is over when the measure is below this share of what it had exceeded."""

MAX_NOTED_ROWS = 1000
"""Rows that are counted without a break: half a millisecond."""

LATEST = "latest"
"""The window of the rows that alerts are about."""

MAX_NAMED = 5
"""Columns that one alert names."""


class DriftCounts(SharedCounts):
    """The counts of one version, and what all processes know about them; outlives reloads."""

    def __init__(self, bins: Bins, windows: Sequence[Window], now: float, slots: int) -> None:
        super().__init__(bins.size, slots)
        nothing = np.zeros(bins.size)
        self.by_time = [Snapshots(STEPS + 2, bins.size) for _ in windows]
        for ring in self.by_time:
            ring.add(now, nothing)
        self.by_rows = Snapshots(ALERT_ROWS // CHECK_ROWS + 2, bins.size)
        self.by_rows.add(0.0, nothing)
        self.alerted = np.frombuffer(shared_integers(len(bins.columns)), np.int64)
        """1 for every column about which there was an alert that is not over."""
        self.alerted_at = shared_floats(1)
        """Rows that had been counted at the last alert."""
        self.counts: Numbers = np.zeros(bins.size)
        """The counts of this process."""

    def enter(self, slot: int) -> None:
        """From now on this process writes to this slot."""
        super().enter(slot)
        self.counts = self._rows[slot]


@dataclass(frozen=True, slots=True, eq=False)
class DriftMeasure:
    """The drift of a version over some rows, with a number for each of its `columns`."""

    model: LoadedModel
    columns: tuple[Column, ...]
    window: str
    seconds: float | None
    """The time that the window covers; None for the latest rows."""
    counts: Numbers
    """Shape (columns, CELLS)."""
    rows: Numbers
    psi: Numbers
    limits: Numbers
    """An index above this is more than chance, and more than DRIFT_ALERT."""
    alerted: NDArray[np.bool_]
    ranked: tuple[int, ...]
    """The places of columns: outputs first, then features, the most important ones first."""

    def shares(self, place: int) -> Numbers:
        """The counts of a column as shares of its rows."""
        cells: Numbers = self.counts[CELLS * place : CELLS * (place + 1)]
        return cells / max(float(self.rows[place]), 1.0)

    @property
    def most_rows(self) -> int:
        """Rows that were counted: in the column of a feature all that were answered."""
        return int(self.rows.max())

    @property
    def largest(self) -> float:
        """The largest index of a column that does not move on by itself."""
        return float(np.where([column.moves_on for column in self.columns], 0.0, self.psi).max())

    @property
    def alerts(self) -> list[str]:
        """The columns about which there is an alert that is not over."""
        return [column.title for column, is_alerted in zip(self.columns, self.alerted, strict=True) if is_alerted]


class VersionDrift:
    """Counts and measures the drift of one version."""

    def __init__(
        self, model: LoadedModel, columns: tuple[Column, ...], windows: Sequence[Window], threshold: float, book: Book
    ) -> None:
        """An alert is about an index above `threshold`; 0 for no alerts."""
        usual = model.manifest.distributions
        assert usual is not None
        self.model = model
        self.sample_rows = usual.rows
        self.bins = bins = Bins(columns, usual.rows)
        self._windows, self._threshold = windows, threshold
        self._book, self._lock = book, book.lock
        # a version that is described anew is counted anew
        key = ("drift", model.name, model.version, msgspec.json.encode(usual))
        self._shared = book.counts(key, lambda slots: DriftCounts(bins, windows, monotonic(), slots))
        self._count = COUNT.load()
        self._outputs = OutputReader(model)
        self._texts = [place for place, one in enumerate(model.manifest.features) if one.kind == "text"]
        explainer = model.manifest.explainer
        importance = {} if explainer is None else explainer.importance
        self._ranked = tuple(sorted(range(len(columns)), key=lambda place: _rank(columns[place], importance)))
        self._unchecked = 0

    def count(self, answered: Sequence[Answered]) -> bool:
        """Count rows that were answered; True when it is time to `check` again."""
        rows = answered[0].rows if len(answered) == 1 else np.concatenate([one.rows for one in answered])
        if self._texts:
            rows = self._numbers(rows)
        outputs = self._outputs.read(answered)
        counts = self._shared.counts
        try:
            self._count(rows, outputs, self.bins.table, counts)
        except TypeError:  # rows that are read only, or not in the order of C
            self._count(np.array(rows, np.float64, order="C"), outputs, self.bins.table, counts)
        self._unchecked += len(rows)
        return self._unchecked >= LOOK_ROWS

    def _numbers(self, rows: Rows) -> Rows:
        """Rows with the number of characters in place of each text."""
        numbers = rows.copy()
        for place in self._texts:
            numbers[:, place] = [np.nan if cell is None else len(cell) for cell in rows[:, place]]
        return numbers.astype(np.float64)

    def check(self) -> str:
        """What an alert shall say about the latest rows; empty for none."""
        with self._lock.try_to_hold() as is_held:
            if not is_held:  # another process is looking
                return ""
            self._unchecked = 0
            totals = self._book.total(self._shared)
            rows = self.bins.most_rows(totals)
            if rows - self._shared.by_rows.newest < CHECK_ROWS:
                return ""
            self._shared.by_rows.add(rows, totals)
            if not self._threshold or rows < ALERT_ROWS:
                return ""
            return self._judge(self._latest(totals, rows), rows)

    def _judge(self, latest: DriftMeasure, rows: float) -> str:
        """Remember which columns have gone beyond their limits, or come back; what there is to say of the first."""
        shared, is_beyond = self._shared, latest.psi > latest.limits
        shared.alerted[latest.psi < CLEAR_SHARE * latest.limits] = 0
        is_new = is_beyond & (shared.alerted == 0) & ~self.bins.moves_on
        # what changes at once is told at once
        if not is_new.any() or (shared.alerted_at[0] and rows - shared.alerted_at[0] < ALERT_ROWS):
            return ""
        shared.alerted[is_new], shared.alerted_at[0] = 1, rows
        order = [place for place in np.argsort(-latest.psi, kind="stable") if is_new[place]]
        named = ", ".join(f"{self.bins.columns[place].title} {latest.psi[place]:.2f}" for place in order[:MAX_NAMED])
        more = f" and {len(order) - MAX_NAMED} more" if len(order) > MAX_NAMED else ""
        return f"{named}{more} (PSI of the latest {latest.most_rows} rows, above {self._threshold:g})"

    def tick(self) -> None:
        """Add snapshots for the windows of time that are due; to be called every second."""
        now = monotonic()
        if any(now - ring.newest >= step for ring, step in self._steps()):
            with self._lock.hold():
                totals = self._book.total(self._shared)
                for ring, step in self._steps():
                    if now - ring.newest >= step:
                        ring.add(now, totals)

    def _steps(self) -> Iterator[tuple[Snapshots, float]]:
        return ((ring, one.seconds / STEPS) for ring, one in zip(self._shared.by_time, self._windows, strict=True))

    def measure(self, window: str) -> DriftMeasure:
        """The drift over one of the windows, or the LATEST rows. Raises KeyError."""
        with self._lock.hold():
            totals, now = self._book.total(self._shared), monotonic()
            if window == LATEST:
                return self._latest(totals, self.bins.most_rows(totals))
            ring, seconds = {
                one.name: (ring, one.seconds) for ring, one in zip(self._shared.by_time, self._windows, strict=True)
            }[window]
            stamp, before = ring.before(now - seconds)
            return self._measured(window, now - stamp, totals - before)

    def _latest(self, totals: Numbers, rows: float) -> DriftMeasure:
        _, before = self._shared.by_rows.before(rows - ALERT_ROWS)
        return self._measured(LATEST, None, totals - before)

    def _measured(self, window: str, seconds: float | None, counts: Numbers) -> DriftMeasure:
        rows, psi = self.bins.measure(counts)
        return DriftMeasure(
            model=self.model,
            columns=self.bins.columns,
            window=window,
            seconds=seconds,
            counts=counts,
            rows=rows,
            psi=psi,
            limits=np.maximum(self._threshold, self.bins.chance(rows)),
            alerted=self._shared.alerted.astype(bool),
            ranked=self._ranked,
        )


def _rank(column: Column, importance: Mapping[str, float]) -> tuple[bool, float]:
    return column.feature is not None, -importance.get(column.name, 0.0)


class Drift:
    """Counts and measures the drift of all versions that say what is usual. An observer of answers."""

    def __init__(
        self, registry: Registry, windows: Sequence[Window], threshold: float, book: Book, alerts: Alerts
    ) -> None:
        """Without `windows` nothing is counted."""
        self.windows = (*[window.name for window in windows], LATEST) if windows else ()
        self.threshold = threshold
        self._alerts = alerts
        self._turn = Turn(self._count)
        self._noted_rows = 0
        self._versions: dict[LoadedModel, VersionDrift] = {}
        for model in registry if windows else ():
            if columns := columns_of(model):
                self._versions[model] = VersionDrift(model, columns, windows, threshold, book)

    def observe(self, answered: Answered) -> None:
        """Count rows at the end of this turn; those that a question asks to predict and to explain count once."""
        version = self._versions.get(answered.model)
        if version is None or answered.is_repeated:
            return
        self._turn.add((version, answered))
        self._noted_rows += len(answered.rows)
        if self._noted_rows > MAX_NOTED_ROWS:
            self._turn.end()

    def _count(self, noted: list[tuple[VersionDrift, Answered]]) -> None:
        self._noted_rows = 0
        by_version: dict[VersionDrift, list[Answered]] = {}
        for version, answered in noted:
            by_version.setdefault(version, []).append(answered)
        for version, several in by_version.items():
            if version.count(several):
                self._check(version.model, version)

    def tick(self) -> None:
        """To be called in each worker every second."""
        for version in self._versions.values():
            version.tick()

    def of(self, model: LoadedModel) -> VersionDrift | None:
        """The drift of a version; None if its rows are not counted."""
        return self._versions.get(model)

    def measure(self, models: Iterable[LoadedModel]) -> list[DriftMeasure]:
        """The drift of those of the models whose rows are counted, over all windows of time."""
        versions = [version for version in map(self.of, models) if version is not None]
        return [version.measure(window) for version in versions for window in self.windows if window != LATEST]

    def _check(self, model: LoadedModel, version: VersionDrift) -> None:
        if found := version.check():
            self._alerts.alert(f"drift {model.name}", f"Drift of {model.name} {model.version}: {found}")
