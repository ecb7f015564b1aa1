"""A snapshot, as JSON and as Prometheus reads it."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.service import ROOT
from registry.rows.features import Feature
from registry.store.distributions import Distribution
from serving.jobs.job import Counts
from serving.monitoring import shadow
from serving.monitoring.bins import Bins, Column
from serving.monitoring.drift import DriftMeasure
from serving.predict import canary
from serving.process.kernel import Memory
from serving.shared.book import Book, Family
from serving.shared.metrics import (
    BATCHES,
    BREAKERS,
    CACHE,
    EXECUTORS,
    LOG_LINES,
    OUTCOMES_QUEUED,
    PREDICTION_LOG,
    STREAMS,
    Metrics,
)
from serving.shared.pressure import Reading
from serving.status.json import summarize, summarize_drift
from serving.status.prometheus import expose
from serving.status.snapshot import Process, Snapshot


@pytest.fixture
def snapshot() -> Snapshot:
    """Of a master and two workers: this process, which has answered three requests, and one that has not."""
    metrics = Metrics(Book(2))
    for families in (CACHE, BATCHES, EXECUTORS, BREAKERS, LOG_LINES, OUTCOMES_QUEUED):
        metrics.follow(families, lambda: ())
    metrics.follow(STREAMS, lambda: [7])
    # of what a service has only where it logs predictions or tries a version; sheets are held weakly
    changes = Family("shadow_changes", "counter", "As ShadowCounts names it", "change", ("other",))
    tried = ((canary.SECONDS, canary.REQUESTS), (shadow.ROWS, shadow.SECONDS, shadow.DIFFERENCE, changes))
    held = [metrics.book.sheet(families) for families in (PREDICTION_LOG, *tried)]
    assert held
    wine = metrics.model("wine", "predict")
    metrics.book.enter_alone()
    for seconds in (0.001, 0.002):
        wine.answered(seconds, ["miss", "hit-memory"])
        metrics.count_response(200)
    wine.refused(504)
    metrics.count_response(418)
    for path in ("/v1/jobs", "/v1/jobs/x/events", "/nowhere"):
        metrics.count_route(path, 0.5)
    metrics.publish()
    memory = Memory(rss=9, pss=5, private=3, held=4)
    return Snapshot(
        time=datetime(2026, 5, 1, tzinfo=UTC),
        pages=metrics.book.read(),
        processes=[
            Process(1, "master", 60.0, memory, 0),
            Process(2, "web", 5.04, memory, 3),
            Process(3, "web", 1.0, replace(memory, private=4), 0),
        ],
        jobs=Counts(queued=2, oldest_queued_seconds=1.5),
        reloads=1,
        refused=0,
        pressure=Reading(used=10, limit=20, share=5, stage="high"),
        schedules=[],
        versions={"wine": 2},
        live={"wine": "2"},
        registry_errors={"wine": 1},
    )


QUALITY = {
    "wine": {"version": "2", "outcomes": 40, "accuracy": 0.75},
    "diabetes": {"version": "1", "outcomes": 2, "mean_absolute_error": 1.5},
    "new": {"version": "1", "outcomes": 0},
}


def drift_of(model: str, columns: int, rows: float, window: str = "1h") -> DriftMeasure:
    """The drift of a model with an output and many features, of which the last ones are the most important."""
    usual = Distribution(values=(0.0, 1.0), shares=(500, 500))
    features = [Feature(name=f"x{n}", kind="number") for n in range(columns)]
    found = [Column(one.name, place, usual, one, is_coded=False) for place, one in enumerate(features)]
    all_columns = (*found, Column("", 0, usual, None, is_coded=True))
    counts = np.tile([rows / 2, rows / 4, *[0.0] * 9, rows / 4, rows / 8, 0.0, 0.0, 0.0], len(all_columns))
    measured_rows, psi = Bins(all_columns, 1000).measure(counts)
    return DriftMeasure(
        model=SimpleNamespace(name=model, version="1"),  # type: ignore[arg-type]
        columns=all_columns,
        window=window,
        seconds=3600.0,
        counts=counts,
        rows=measured_rows,
        psi=psi,
        limits=np.full(len(all_columns), 0.2),
        alerted=np.arange(len(all_columns)) < 2,
        ranked=tuple(range(len(all_columns) - 1, -1, -1)),
    )


DRIFT = (drift_of("wine", 2, 1000.0), drift_of("few", 2, 499.0))


def samples(snapshot: Snapshot, drift: Sequence[DriftMeasure] = DRIFT) -> dict[str, float]:
    """The value of each series by its name and labels."""
    return {
        f"{sample.name}{list(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(expose(snapshot, QUALITY, drift).decode())
        for sample in family.samples
    }


def test_json_counts_what_was_answered_and_refused(snapshot: Snapshot) -> None:
    figures = summarize(snapshot)
    wine = figures["models"]["wine"]["predict"]
    assert (wine["requests"], wine["answered"], wine["refused"], wine["timeouts"]) == (3, 2, {"504": 1}, 1)
    assert wine["seconds"]["mean"] == pytest.approx(0.0015)
    assert wine["seconds"]["p50"] == pytest.approx(0.001, rel=0.2)
    assert wine["rows"] == {"hit-memory": 2, "hit-redis": 0, "miss": 2, "coalesced": 0}
    assert figures["requests"] == 3
    assert figures["totals"]["responses"]["other"] == 1
    assert figures["totals"]["streams"] == 7


def test_json_lists_processes_one_by_one(snapshot: Snapshot) -> None:
    figures = summarize(snapshot)
    assert [worker["pid"] for worker in figures["workers"]] == [2, 3]
    assert figures["master"]["shared_bytes"] == 6
    assert figures["pss_bytes"] == 15
    assert figures["workers"][0] | {"private_bytes": 0} == {
        "pid": 2,
        "name": "web",
        "age_seconds": 5.0,
        "requests": 3,
        "pss_bytes": 5,
        "private_bytes": 0,
        "shared_bytes": 6,
    }


def test_prometheus_has_the_same_numbers_and_no_process_ids(snapshot: Snapshot) -> None:
    found = samples(snapshot)
    assert found["forkserve_responses_total['200']"] == 2
    assert found["forkserve_model_seconds_count['wine', 'predict']"] == 2
    assert found["forkserve_model_refusals_total['wine', 'predict', '504']"] == 1
    assert found["forkserve_route_seconds_count['jobs']"] == 2
    assert found["forkserve_route_seconds_sum['jobs']"] == 1.0
    assert found["forkserve_route_seconds_count['other']"] == 1
    assert found["forkserve_route_seconds_count['health']"] == 0
    jobs = summarize(snapshot)["routes"]["jobs"]
    assert (jobs["answered"], jobs["seconds"]["mean"]) == (2, 0.5)
    assert found["forkserve_processes['web']"] == 2
    assert found["forkserve_pss_bytes['web']"] == 10
    assert found["forkserve_private_bytes['web']"] == 7
    assert found["forkserve_private_bytes_max['web']"] == 4
    assert found["forkserve_jobs['queued']"] == 2
    assert found["forkserve_jobs_oldest_queued_seconds[]"] == 1.5
    assert found["forkserve_model_versions['wine']"] == 2
    assert found["forkserve_model_live_info['wine', '2']"] == 1
    assert found["forkserve_start_time_seconds[]"] == datetime(2026, 5, 1, tzinfo=UTC).timestamp() - 60
    (build,) = (name for name in found if name.startswith("forkserve_build_info"))
    assert importlib.metadata.version("forkserve") in build
    assert found["forkserve_registry_errors['wine']"] == 1
    assert found["forkserve_memory_stage[]"] == 1
    assert found["forkserve_streams[]"] == 7


def test_quality_is_that_of_the_live_version(snapshot: Snapshot) -> None:
    found = {
        name: value for name, value in samples(snapshot).items() if re.search("model_(outcomes|accuracy|mean)", name)
    }
    assert found == {
        "forkserve_model_outcomes['wine', '2']": 40,
        "forkserve_model_outcomes['diabetes', '1']": 2,
        "forkserve_model_outcomes['new', '1']": 0,
        "forkserve_model_accuracy['wine', '2']": 0.75,
        "forkserve_model_mean_absolute_error['diabetes', '1']": 1.5,
    }


def drift_samples(snapshot: Snapshot, drift: Sequence[DriftMeasure]) -> dict[tuple[str, ...], float]:
    """The series of drift by their name without its prefix and the values of their labels, in the order of these."""
    labels = ("model", "version", "window", "kind", "name")
    return {
        (sample.name[len("forkserve_drift_") :], *[sample.labels[one] for one in labels if one in sample.labels]): (
            sample.value
        )
        for family in text_string_to_metric_families(expose(snapshot, QUALITY, drift).decode())
        for sample in family.samples
        if sample.name.startswith("forkserve_drift_")
    }


def test_drift_is_told_of_so_many_rows_that_it_is_no_chance(snapshot: Snapshot) -> None:
    found = drift_samples(snapshot, DRIFT)
    wine = "wine", "1", "1h"
    assert {key: value for key, value in found.items() if "few" in key} == {
        ("rows", "few", "1", "1h"): 499,
        ("alerts", "few", "1"): 2,
    }
    assert (found["rows", *wine], found["alerts", "wine", "1"]) == (1000, 2)
    assert found["psi_max", *wine] == found["psi", *wine, "feature", "x1"] > 1.0
    assert found["unseen", *wine, "output", ""] == 0.25
    assert found["out_of_range", *wine, "feature", "x0"] == 0.125
    assert found["missing", *wine, "feature", "x0"] == 0.0
    windows = summarize_drift(DRIFT)["wine"]["windows"]
    assert windows == {"1h": {"rows": 1000, "psi": pytest.approx(found["psi_max", *wine], abs=1e-4)}}


@pytest.mark.parametrize(("models", "each"), [(1, 20), (50, 8)])
def test_a_model_of_many_features_makes_few_series(snapshot: Snapshot, models: int, each: int) -> None:
    windows = ("1h", "1d")
    drift = [drift_of(f"m{n}", 100, 1000.0, window) for n in range(models) for window in windows]
    found = [key for key in drift_samples(snapshot, drift) if key[0] == "psi"]
    assert len(found) == models * len(windows) * each
    assert ("psi", "m0", "1", "1d", "output", "") in found
    assert ("psi", "m0", "1", "1d", "feature", "x99") in found


def test_jobs_are_missing_while_their_store_is_unavailable(snapshot: Snapshot) -> None:
    without = replace(snapshot, jobs=None)
    assert summarize(without)["jobs"] is None
    assert [name for name in samples(without) if name.startswith("forkserve_jobs")] == []


def test_every_metric_is_in_deployment_md(snapshot: Snapshot) -> None:
    lines = expose(snapshot, QUALITY, DRIFT).decode().splitlines()
    exposed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    explained = set(re.findall(r"`(forkserve_\w+)", (ROOT / "DEPLOYMENT.md").read_text()))
    assert len(exposed) > 30
    assert (exposed - explained, explained - exposed) == (set(), set())
