"""A snapshot in Prometheus' text format.

No series has a process id: workers come and go, and each would leave its series behind. Processes are added up by kind,
with the largest of each kind; `/api/admin/metrics` lists them one by one.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from registry.kernels.counting import ABOVE, BELOW, MISSING, UNSEEN
from serving.monitoring.drift import ALERT_ROWS, DriftMeasure
from serving.process.kernel import Memory
from serving.shared.book import Family, Kind
from serving.shared.histogram import BUCKETS, cumulate
from serving.shared.pressure import STAGES
from serving.status.snapshot import KINDS, Snapshot

PREFIX = "forkserve_"
BUILD = {"version": importlib.metadata.version("forkserve"), "python": platform.python_version()}
QUALITY = {
    "outcomes": "Outcomes by which the live version is judged",
    "accuracy": "Share of them whose label the live version had predicted",
    "log_loss": "Mean log loss of its probabilities",
    "roc_auc": "Area under the ROC curve of its probabilities; of several classes the mean",
    "mean_absolute_error": "Mean absolute error of the live version's predictions",
    "r2": "Coefficient of determination of its predictions",
    "is_low": "1 if they are worse than in training by more than QUALITY_TOLERANCE",
}
VERSION_LABELS = ("model", "version")
WINDOW_LABELS = (*VERSION_LABELS, "window")
COLUMN_LABELS = (*WINDOW_LABELS, "kind", "name")
DRIFT = {
    "alerts": ("Features and outputs about which there is an alert that is not over", VERSION_LABELS),
    "rows": ("Rows in the window", WINDOW_LABELS),
    "psi_max": ("The largest population stability index of all features and outputs but dates", WINDOW_LABELS),
    "psi": ("Population stability index of live rows against the sample", COLUMN_LABELS),
    "missing": ("Share of missing values", COLUMN_LABELS),
    "unseen": ("Share of values that the sample did not have", COLUMN_LABELS),
    "out_of_range": ("Share of numbers outside of the range of the sample", COLUMN_LABELS),
}
MAX_DRIFT_COLUMNS = 20
"""Features and outputs of one model that have series of their own: the most important ones."""

MAX_DRIFT_COLUMNS_IN_ALL = 400

METRICS: dict[Kind, Callable[..., Metric]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def expose(snapshot: Snapshot, quality: Mapping[str, Mapping[str, Any]], drift: Sequence[DriftMeasure]) -> bytes:
    """The text of `/metrics`, in format 0.0.4; quality and drift are those of each model's live version."""
    registry = CollectorRegistry()
    registry.register(_Collector(snapshot, quality, drift))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(
        self, snapshot: Snapshot, quality: Mapping[str, Mapping[str, Any]], drift: Sequence[DriftMeasure]
    ) -> None:
        self._snapshot = snapshot
        self._quality = quality
        self._drift = drift

    def describe(self) -> Iterable[Metric]:
        return ()  # otherwise `register` collects once to learn the names

    def collect(self) -> Iterable[Metric]:
        yield from _counted(self._snapshot)
        yield from _of_processes(self._snapshot)
        yield from _of_jobs(self._snapshot)
        yield from _of_service(self._snapshot)
        yield from _of_quality(self._quality)
        yield from _of_drift(self._drift)


def _counted(snapshot: Snapshot) -> Iterable[Metric]:
    """The families of all sheets; those of the models have the same families under other labels."""
    metrics: dict[str, Metric] = {}
    for page in snapshot.pages:
        for family, numbers in page.totals():
            if family.name not in metrics:
                labels = [*page.sheet.labels, *filter(None, [family.label])]
                metrics[family.name] = METRICS[family.kind](PREFIX + family.name, family.meaning, labels=labels)
            _add(metrics[family.name], family, list(page.sheet.labels.values()), numbers)
    return metrics.values()


def _add(metric: Metric, family: Family, labels: list[str], numbers: list[float]) -> None:
    if isinstance(metric, HistogramMetricFamily):
        buckets = [(_bound(bound), count) for bound, count in cumulate(numbers[:BUCKETS])]
        metric.add_metric(labels, buckets, numbers[BUCKETS])
        return
    assert isinstance(metric, CounterMetricFamily | GaugeMetricFamily)
    for value, number in zip(family.values, numbers, strict=True):
        metric.add_metric([*labels, value] if family.label else labels, number)


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == float("inf") else f"{seconds:.6g}"


def _gauge(name: str, meaning: str, label: str, numbers: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(PREFIX + name, meaning, labels=[label])
    for value, number in numbers.items():
        gauge.add_metric([value], number)
    return gauge


def _of_processes(snapshot: Snapshot) -> Iterator[Metric]:
    memories = {kind: [process.memory for process in snapshot.of(kind)] for kind in KINDS}

    def gauge(name: str, meaning: str, measure: Callable[[list[Memory]], int]) -> Metric:
        return _gauge(name, meaning, "process", {kind: measure(of_kind) for kind, of_kind in memories.items()})

    yield gauge("processes", "Live processes", len)
    yield gauge("pss_bytes", "Memory of the processes, shared pages divided", lambda of: sum(one.pss for one in of))
    yield gauge("private_bytes", "Memory that no other process shares", lambda of: sum(one.private for one in of))
    largest = "Private memory of the largest process"
    yield gauge("private_bytes_max", largest, lambda of: max((one.private for one in of), default=0))


def _of_jobs(snapshot: Snapshot) -> Iterator[Metric]:
    """Without numbers while the job store is unavailable: a gap says more than a zero."""
    states = asdict(snapshot.jobs) if snapshot.jobs else {}
    age = states.pop("oldest_queued_seconds", None)
    yield _gauge("jobs", "Jobs in the store, by state", "state", states)
    yield GaugeMetricFamily(PREFIX + "jobs_oldest_queued_seconds", "Age of the oldest queued job", value=age)


def _of_quality(quality: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """Without a number where there are no outcomes."""
    for name, meaning in QUALITY.items():
        gauge = GaugeMetricFamily(f"{PREFIX}model_{name}", meaning, labels=["model", "version"])
        for model, measured in quality.items():
            if name in measured:
                gauge.add_metric([model, measured["version"]], measured[name])
        yield gauge


def _of_drift(measured: Sequence[DriftMeasure]) -> Iterator[Metric]:
    """Indices and shares where there are so many rows that these are no chance."""
    families = {
        name: GaugeMetricFamily(f"{PREFIX}drift_{name}", meaning, labels=labels)
        for name, (meaning, labels) in DRIFT.items()
    }
    versions = {(one.model.name, one.model.version): one for one in measured}
    for version, one in versions.items():
        families["alerts"].add_metric(version, len(one.alerts))
    most = min(MAX_DRIFT_COLUMNS, MAX_DRIFT_COLUMNS_IN_ALL // max(1, len(versions)))
    for one in measured:
        window = [one.model.name, one.model.version, one.window]
        families["rows"].add_metric(window, one.most_rows)
        if one.most_rows < ALERT_ROWS:
            continue
        families["psi_max"].add_metric(window, one.largest)
        for place in one.ranked[:most]:
            column, cells = one.columns[place], one.shares(place)
            labels = [*window, "output" if column.feature is None else "feature", column.name]
            families["psi"].add_metric(labels, one.psi[place])
            families["missing"].add_metric(labels, cells[MISSING])
            families["unseen"].add_metric(labels, cells[UNSEEN])
            families["out_of_range"].add_metric(labels, cells[BELOW] + cells[ABOVE])
    yield from families.values()


def _of_service(snapshot: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX + "build", "The release and the Python that runs it", value=BUILD)
    live = GaugeMetricFamily(PREFIX + "model_live_info", "The live version of each model", labels=["model", "version"])
    for model, version in snapshot.live.items():
        live.add_metric([model, version], 1)
    yield live
    yield _gauge("model_versions", "Versions loaded", "model", snapshot.versions)
    meaning = "Versions on disk that could not be loaded"
    yield _gauge("registry_errors", meaning, "model", snapshot.registry_errors)
    yield CounterMetricFamily(PREFIX + "reloads", "Reloads of the models", value=snapshot.reloads)
    pressure = snapshot.pressure
    for name, meaning, number in (
        ("start_time_seconds", "When the master started, in seconds since the epoch", _started(snapshot)),
        ("reload_refused", "Versions refused by the last reload", snapshot.refused),
        ("memory_used_bytes", "Memory in use that cannot be reclaimed", pressure.used),
        ("memory_limit_bytes", "Memory limit; 0 means unknown", pressure.limit),
        ("memory_stage", "0 calm, 1 high, 2 critical", STAGES.index(pressure.stage)),
    ):
        yield GaugeMetricFamily(PREFIX + name, meaning, value=number)


def _started(snapshot: Snapshot) -> float:
    return snapshot.time.timestamp() - max((one.age_seconds for one in snapshot.processes), default=0.0)
