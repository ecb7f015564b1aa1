"""The dashboard and the alerts in `docs/`: their PromQL is taken, and each alert is raised when it should be."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.judges import promtool
from harness.promql import ALERTS, DASHBOARD, Query, alert_rules, faults, queries

SERIES = {"requests": [{"status": "200", "model": "a"}, {"status": "500", "model": "b"}]}

WHERE = 'job="forkserve",instance="here"'
RATES = "forkserve_responses_total"
BUCKETS = f'forkserve_model_seconds_bucket{{{WHERE},model="m",operation="predict",le="%s"}}'

FIRES: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "ForkserveDown": ({f"up{{{WHERE}}}": "0x60"}, {f"up{{{WHERE}}}": "1x60"}),
    "ForkserveFails": (
        {f'{RATES}{{{WHERE},status="500"}}': "0+2x60", f'{RATES}{{{WHERE},status="200"}}': "0+98x60"},
        {f'{RATES}{{{WHERE},status="422"}}': "0+50x60", f'{RATES}{{{WHERE},status="500"}}': "0x60"},
    ),
    "ForkserveSheds": (
        {f'{RATES}{{{WHERE},status="503"}}': "0+10x60", f'{RATES}{{{WHERE},status="200"}}': "0+90x60"},
        {f'{RATES}{{{WHERE},status="503"}}': "0+1x60", f'{RATES}{{{WHERE},status="200"}}': "0+90x60"},
    ),
    "ForkserveSlow": (
        {BUCKETS % "1": "0+90x60", BUCKETS % "4": "0+100x60", BUCKETS % "+Inf": "0+100x60"},
        {BUCKETS % "1": "0+100x60", BUCKETS % "4": "0+100x60", BUCKETS % "+Inf": "0+100x60"},
    ),
    "ForkserveMemoryShort": (
        {f"forkserve_memory_stage{{{WHERE}}}": "1x60"},
        {f"forkserve_memory_stage{{{WHERE}}}": "0x60"},
    ),
    "ForkserveThreadsStuck": (
        {f"forkserve_threads_stuck_now{{{WHERE}}}": "2x60"},
        {f"forkserve_threads_stuck_now{{{WHERE}}}": "0x60"},
    ),
    "ForkserveProcessesLost": (
        {
            f"forkserve_executor_replacements_total{{{WHERE}}}": "0+1x60",
            f"forkserve_job_executor_replacements_total{{{WHERE}}}": "0x60",
        },
        {
            f"forkserve_executor_replacements_total{{{WHERE}}}": "7x60",
            f"forkserve_job_executor_replacements_total{{{WHERE}}}": "1x60",
        },
    ),
    "ForkserveVersionNotLoaded": (
        {f'forkserve_registry_errors{{{WHERE},model="m"}}': "1x60"},
        {f'forkserve_registry_errors{{{WHERE},model="m"}}': "0x60"},
    ),
    "ForkserveReloadRefused": (
        {f"forkserve_reload_refused{{{WHERE}}}": "1x60"},
        {f"forkserve_reload_refused{{{WHERE}}}": "0x60"},
    ),
    "ForkserveVersionsDiffer": (
        {
            f'forkserve_model_live_info{{{WHERE},model="m",version="1"}}': "1x60",
            'forkserve_model_live_info{job="forkserve",instance="there",model="m",version="2"}': "1x60",
        },
        {
            f'forkserve_model_live_info{{{WHERE},model="m",version="1"}}': "1x60",
            'forkserve_model_live_info{job="forkserve",instance="there",model="m",version="1"}': "1x60",
        },
    ),
    "ForkserveJobsWait": (
        {f"forkserve_jobs_oldest_queued_seconds{{{WHERE}}}": "1000x60"},
        {f"forkserve_jobs_oldest_queued_seconds{{{WHERE}}}": "0x60"},
    ),
    "ForkserveJobStoreUnavailable": (
        {f"forkserve_start_time_seconds{{{WHERE}}}": "1x60"},
        {
            f"forkserve_start_time_seconds{{{WHERE}}}": "1x60",
            f"forkserve_jobs_oldest_queued_seconds{{{WHERE}}}": "0x60",
        },
    ),
    "ForkserveAttemptsLost": (
        {f'forkserve_job_attempts_total{{{WHERE},outcome="lost"}}': "0+1x60"},
        {f'forkserve_job_attempts_total{{{WHERE},outcome="done"}}': "0+1x60"},
    ),
    "ForkserveWithoutRedis": (
        {f'forkserve_breakers_open{{{WHERE},breaker="redis"}}': "1x60"},
        {f'forkserve_breakers_open{{{WHERE},breaker="redis"}}': "0x60"},
    ),
    "ForkserveOutcomesWait": (
        {f"forkserve_outcomes_queued{{{WHERE}}}": "3x60"},
        {f"forkserve_outcomes_queued{{{WHERE}}}": "0 3 0 3 0x60"},
    ),
    "ForkserveLogUnread": (
        {f"forkserve_log_lines_dropped_total{{{WHERE}}}": "0+1x60"},
        {f"forkserve_log_lines_dropped_total{{{WHERE}}}": "5x60"},
    ),
    "ForkserveQualityLow": (
        {f'forkserve_model_is_low{{{WHERE},model="m",version="1"}}': "1x60"},
        {f'forkserve_model_is_low{{{WHERE},model="m",version="1"}}': "0x60"},
    ),
    "ForkserveDrift": (
        {f'forkserve_drift_alerts{{{WHERE},model="m",version="1"}}': "2x60"},
        {f'forkserve_drift_alerts{{{WHERE},model="m",version="1"}}': "0x60"},
    ),
    "ForkservePredictionsNotLogged": (
        {f'forkserve_logged_predictions_total{{{WHERE},outcome="dropped"}}': "0+1x60"},
        {f'forkserve_logged_predictions_total{{{WHERE},outcome="stored"}}': "0+1x60"},
    ),
}
"""For each alert, minute by minute, series that raise it within half an hour and series that do not."""


@pytest.fixture(scope="module")
def judge() -> Path:
    program = promtool()
    if program is None:
        pytest.skip("promtool is neither on PATH nor in a package of this system")
    return program


@pytest.mark.parametrize(
    ("expression", "named", "wrong"),
    [
        ('sum by (status) (rate(requests{status=~"200|500",job="x"}[5m]))', {"status"}, []),
        ("sum by (status) (rate(request[5m]))", set(), ["by status", "request"]),
        ('requests{state="200"}', set(), ["requests{state=200}"]),
        ('requests{status=~"200|404"}', set(), ["requests{status=404}"]),
        ("sum by (model) (requests)", {"status"}, ["named status"]),
        ("sum by (key) (requests)", set(), ["by key"]),
        ("requests / on (model, zone) requests", {"model", "instance"}, ["on zone", "on zone"]),
    ],
)
def test_what_no_series_has_is_found(expression: str, named: set[str], wrong: list[str]) -> None:
    assert faults(Query("here", expression, frozenset(named)), SERIES) == wrong


def test_promtool_takes_the_alerts_and_every_expression_of_the_dashboard(judge: Path, tmp_path: Path) -> None:
    found = list(queries())
    assert len(found) > 50
    rules = [{"record": f"query:{place}", "expr": one.expression} for place, one in enumerate(found)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    for rules_file, count in ((file, len(found)), (ALERTS, len(alert_rules()))):
        done = subprocess.run([judge, "check", "rules", rules_file], capture_output=True, text=True, check=False)
        assert (done.returncode, f"SUCCESS: {count} rules found" in done.stdout) == (0, True), done.stdout + done.stderr


def test_each_alert_is_raised_when_it_should_be_and_not_otherwise(judge: Path, tmp_path: Path) -> None:
    assert list(FIRES) == [rule["alert"] for rule in alert_rules()]
    raised = [_raised(judge, tmp_path, name, series) for name, (series, _) in FIRES.items()]
    calm = [_raised(judge, tmp_path, name, series) for name, (_, series) in FIRES.items()]
    assert dict(zip(FIRES, zip(raised, calm, strict=True), strict=True)) == dict.fromkeys(FIRES, (True, False))


def _raised(judge: Path, directory: Path, alert: str, series: Mapping[str, str]) -> bool:
    """Whether an alert is raised after half an hour of these series, as Prometheus itself computes it."""
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": "30m", "alertname": alert, "exp_alerts": []}],
    }
    file = directory / "case.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run([judge, "test", "rules", file], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or "exp:[" in said, said
    return done.returncode != 0


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Ids are unique, panels lie on the grid without covering each other, and know their data source."""
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    sources = [one["datasource"] for panel in panels if "targets" in panel for one in (panel, *panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
