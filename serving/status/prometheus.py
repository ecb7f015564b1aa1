"""A snapshot as Prometheus reads it.

No series has a process id: workers come and go, and each would leave its own behind. Processes are told together, by
kind, with the largest of each; `/api/admin/metrics` has them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.process.kernel import RUNNER, SCHEDULER, WEB
from serving.shared.book import Family, Kind
from serving.shared.histogram import BUCKETS, cumulate
from serving.shared.pressure import STAGES
from serving.status.snapshot import Snapshot

KINDS = ("master", WEB, RUNNER, SCHEDULER)
PREFIX = "forkserve_"
METRICS: dict[Kind, Callable[..., Metric]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def expose(snapshot: Snapshot) -> bytes:
    """The text of `/metrics`, in Prometheus' format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return ()  # else it would be collected once to find the names out

    def collect(self) -> Iterable[Metric]:
        metrics: dict[str, Metric] = {}
        for page in self._snapshot.pages:
            for family, numbers in page.totals():
                labels = [*page.sheet.labels, *([family.label] if family.label else [])]
                if family.name not in metrics:
                    metrics[family.name] = _metric(family, labels)
                _add(metrics[family.name], family, list(page.sheet.labels.values()), numbers)
        yield from metrics.values()
        yield from _of_processes(self._snapshot)
        yield from _of_jobs(self._snapshot)
        yield from _of_the_rest(self._snapshot)


def _metric(family: Family, labels: list[str]) -> Metric:
    return METRICS[family.kind](PREFIX + family.name, family.meaning, labels=labels)


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


def _of_processes(snapshot: Snapshot) -> Iterable[Metric]:
    count = GaugeMetricFamily(PREFIX + "processes", "Processes that live", labels=["process"])
    pss = GaugeMetricFamily(PREFIX + "pss_bytes", "Their memory, shared pages in parts", labels=["process"])
    private = GaugeMetricFamily(PREFIX + "private_bytes", "What they share with nobody", labels=["process"])
    largest = GaugeMetricFamily(PREFIX + "private_bytes_max", "The same of the largest of them", labels=["process"])
    for kind in KINDS:
        memories = [process.memory for process in snapshot.of(kind)]
        count.add_metric([kind], len(memories))
        pss.add_metric([kind], sum(memory.pss for memory in memories))
        private.add_metric([kind], sum(memory.private for memory in memories))
        largest.add_metric([kind], max((memory.private for memory in memories), default=0))
    return count, pss, private, largest


def _of_jobs(snapshot: Snapshot) -> Iterable[Metric]:
    """None while the store of jobs is away: a gap says more than a zero."""
    jobs = GaugeMetricFamily(PREFIX + "jobs", "Jobs that are kept, by state", labels=["state"])
    oldest = GaugeMetricFamily(PREFIX + "jobs_oldest_queued_seconds", "How long the first of the queue has waited")
    if snapshot.jobs is not None:
        for state in ("queued", "running", "done", "failed", "cancelled"):
            jobs.add_metric([state], getattr(snapshot.jobs, state))
        oldest.add_metric([], snapshot.jobs.oldest_queued_seconds)
    return jobs, oldest


def _of_the_rest(snapshot: Snapshot) -> Iterable[Metric]:
    versions = GaugeMetricFamily(PREFIX + "model_versions", "Versions that are loaded", labels=["model"])
    loaded = [model for model, _ in snapshot.versions]
    for model in dict.fromkeys(loaded):
        versions.add_metric([model], loaded.count(model))
    yield versions
    yield CounterMetricFamily(PREFIX + "reloads", "Reloads of the models", value=snapshot.reloads)
    refused = "What the last reload refused"
    yield GaugeMetricFamily(PREFIX + "reload_refused", refused, value=snapshot.refused)
    pressure = snapshot.pressure
    yield GaugeMetricFamily(PREFIX + "memory_used_bytes", "Memory that cannot be thrown out", value=pressure.used)
    yield GaugeMetricFamily(PREFIX + "memory_limit_bytes", "How much there may be; 0: unknown", value=pressure.limit)
    stage = "0 calm, 1 high, 2 critical"
    yield GaugeMetricFamily(PREFIX + "memory_stage", stage, value=STAGES.index(pressure.stage))
