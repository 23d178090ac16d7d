"""Which PromQL do the rules and the dashboard of k8s/overlays/monitoring ask, and of which series and labels?"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "overlays" / "monitoring"
# What Prometheus or the PodMonitor adds to every series of a target.
TARGET_LABELS = {"namespace", "pod", "instance", "job"}


@dataclass(frozen=True)
class Query:
    """An expression, and where it stands."""

    where: str
    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Selector:
    """A series that a query reads, with its matchers as (label, value, whether the value is a regular expression)."""

    name: str
    matchers: tuple[tuple[str, str, bool], ...]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def records() -> list[str]:
    return [rule["record"] for rule in rules() if "record" in rule]


def rule_queries() -> list[Query]:
    return [Query(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def dashboard_queries(interval: str = "5m") -> list[Query]:
    """Every query of every panel, with the variables at "all" and `interval` for Grafana's rate interval."""
    return [
        Query(f"{panel['title']} {target['refId']}", filled(target["expr"], interval), target.get("legendFormat", ""))
        for panel in panels()
        for target in panel["targets"]
    ]


def filled(expression: str, interval: str) -> str:
    return re.sub(r"\$(namespace|task|model)\b", ".*", expression.replace("$__rate_interval", interval))


def nodes(expression: str) -> list[Any]:
    """All parts of an expression; a ValueError where it is no PromQL."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), lambda node: found.append(node))
    return found


def selectors(expression: str) -> list[Selector]:
    return [
        Selector(
            node.name,
            tuple((m.name, m.value, m.op == promql_parser.MatchOp.Re) for m in node.matchers.matchers),
        )
        for node in nodes(expression)
        if isinstance(node, promql_parser.VectorSelector)
    ]


def grouping_labels(expression: str) -> Iterator[str]:
    """The labels after `by` and `on`, and in `group_left`."""
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            yield from node.modifier.labels
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            matching = node.modifier.matching
            yield from matching.labels if matching is not None else []
