"""The PromQL of the dashboard and of the alerts in `docs/`, and whether the metrics have what it asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import promql_parser as promql
import yaml

from harness.service import ROOT

DASHBOARD = ROOT / "docs" / "grafana-dashboard.json"
ALERTS = ROOT / "docs" / "prometheus-alerts.yml"

VARIABLES = {"$__rate_interval": "5m", "$job": "forkserve", "$instance": ".*", "$model": ".*", "$window": "1h"}
"""What Grafana writes in place of variables."""

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds to what it reads, and the metric of its own."""
OWN = "up"

Series = Mapping[str, Sequence[Mapping[str, str]]]
"""The labels of all series of a scrape, by the name of the metric."""


@dataclass(frozen=True)
class Query:
    """An expression, where it stands, and the labels that texts beside it name."""

    place: str
    expression: str
    named: frozenset[str]


def queries() -> Iterator[Query]:
    """All expressions of both files."""
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield Query(panel["title"], _filled(target["expr"]), _braced(target["legendFormat"]))
    for one in board["annotations"]["list"]:
        yield Query(one["name"], _filled(one["expr"]), _braced(one["titleFormat"]))
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found
            yield Query(variable["name"], _filled(found[1]), frozenset({found[2]}))
    for rule in alert_rules():
        named = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
        yield Query(rule["alert"], rule["expr"], frozenset(named))


def alert_rules() -> list[dict[str, Any]]:
    """The rules of all alerts."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def _filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _braced(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"{{\s*(\w+)\s*}}", text))


def faults(query: Query, series: Series) -> list[str]:
    """What a query names that no series has: metrics, labels, values of labels. Raises ValueError for bad PromQL."""
    expression = promql.parse(query.expression)
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector) and node.name != OWN:
            found.extend(_faults_of_selector(node, series))
        elif isinstance(node, promql.AggregateExpr) and node.modifier:
            found.extend(f"by {one}" for one in node.modifier.labels if one not in _labels(node.expr, series))
        elif isinstance(node, promql.BinaryExpr) and node.modifier and node.modifier.matching:
            for side in (node.lhs, node.rhs):
                found.extend(f"on {one}" for one in node.modifier.matching.labels if one not in _labels(side, series))

    promql.walk(expression, visit)
    return found + [f"named {one}" for one in sorted(query.named - _labels(expression, series))]


def _faults_of_selector(node: Any, series: Series) -> Iterator[str]:
    known = series.get(node.name)
    if not known:
        yield node.name
        return
    for matcher in node.matchers.matchers:
        if matcher.name in SCRAPED:
            continue
        is_pattern = matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
        for wanted in matcher.value.split("|") if is_pattern else [re.escape(matcher.value)]:
            if not any(re.fullmatch(wanted, labels.get(matcher.name, "")) for labels in known):
                yield f"{node.name}{{{matcher.name}={wanted}}}"


def _labels(node: Any, series: Series) -> set[str]:
    """The labels that the result of an expression has."""
    found: set[str] = set()
    match node:
        case promql.VectorSelector():
            found = SCRAPED.union(*(labels for labels in series.get(node.name or "", ())))
        case promql.MatrixSelector():
            found = _labels(node.vector_selector, series)
        case promql.AggregateExpr() if node.modifier:
            found = set(node.modifier.labels)
        case promql.BinaryExpr():
            found = _labels(node.lhs, series) or _labels(node.rhs, series)
        case promql.Call():
            found = found.union(*(_labels(one, series) for one in node.args))
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            found = _labels(node.expr, series)
    return found
