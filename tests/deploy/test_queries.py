"""Every query of the rules and the dashboard is PromQL, and of series, labels and values that the service shows."""

import re
from pathlib import Path

import promql_parser
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.cgroup import CpuCollector, MemoryCollector
from service.metrics import Metrics
from service.models import Models
from service.pipeline import TASKS
from tests.deploy import queries
from tests.deploy.queries import Query
from tests.service import fake

ALL = queries.rule_queries() + queries.dashboard_queries()
# Made by Prometheus itself.
FOREIGN = {"up": set(), "ALERTS": {"alertname", "alertstate"}}
# Labels whose values are a deployment's own.
ANYTHING = {"namespace", "task", "model", "alertname", "alertstate"}
# Not asked by a panel or a rule, and why.
NOT_SHOWN = {
    "sparselane_truncated_inputs_total": "always 0",
    "process_virtual_memory_bytes": "says nothing of what the limit counts",
    "process_max_fds": "a constant",
    "python_info": "a constant of the image",
}

Labels = dict[str, set[str]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Labels]:
    """Every series' name on the page of a server under a cgroup's limits: its labels, and their values."""
    root = tmp_path_factory.mktemp("root")
    group = root / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("nr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n")
    (group / "memory.max").write_text("1000000\n")
    limited = CollectorRegistry()
    CpuCollector(limited, root)
    MemoryCollector(limited, root)
    served = [fake.model(tmp_path_factory.mktemp("models"), task)[0] for task in TASKS]
    metrics = Metrics(Models({model.name: model for model in served}, {}), TASKS)
    found: dict[str, Labels] = {}
    for page in (metrics.page(), generate_latest(limited)):
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                if sample.name.endswith("_created"):  # the server shows none of these (service/server.py)
                    continue
                labels = found.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
    return found


def known_labels(name: str, shown: dict[str, Labels]) -> set[str]:
    if name in queries.records():
        return set(name.split(":")[0].split("_"))  # level:metric:operation
    assert name in shown or name in FOREIGN, f"no such series: {name}"
    return (set(shown[name]) if name in shown else FOREIGN[name]) | queries.TARGET_LABELS


@pytest.mark.parametrize("query", ALL, ids=lambda query: query.where)
def test_series_labels_and_values_exist(query: Query, shown: dict[str, Labels]) -> None:
    read = queries.selectors(query.expression)
    together: set[str] = set()
    for selector in read:
        labels = known_labels(selector.name, shown)
        together |= labels
        for label, value, regex in selector.matchers:
            assert label in labels, f"{selector.name} has no label {label}"
            if label not in ANYTHING:
                values = shown.get(selector.name, shown["sparselane_requests_total"])[label]
                for one in value.split("|") if regex else [value]:
                    assert one in values, f"{selector.name} never has {label}={one}"
    grouped = set(queries.grouping_labels(query.expression)) | set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    assert grouped <= together, f"no series of {query.where} has {grouped - together}"


def test_everything_that_is_measured_is_shown(shown: dict[str, Labels]) -> None:
    asked = {selector.name for query in ALL for selector in queries.selectors(query.expression)}
    parts = ("_bucket", "_sum", "_count")
    families = {name.removesuffix(part) for name in shown for part in parts if name.endswith(part)}
    plain = {name for name in shown if not name.endswith(parts)}
    asked_families = {name.removesuffix(part) for name in asked for part in parts}
    assert {name for name in families | plain if name not in asked | asked_families} == NOT_SHOWN.keys()


def test_rates_are_taken_of_counters_only() -> None:
    """And summed after, not before: a restart of one pod must not look like a fall of all."""
    for query in ALL:
        for node in queries.nodes(query.expression):
            if isinstance(node, promql_parser.Call) and node.func.name in ("rate", "increase"):
                (argument,) = node.args
                assert isinstance(argument, promql_parser.MatrixSelector), query
                name = argument.vector_selector.name
                assert name.endswith(("_total", "_bucket", "_sum", "_count")), f"{query.where}: rate of {name}"


def test_the_edge_of_the_latency_objective_is_one_number() -> None:
    text = Path(queries.MONITORING / "rules.yaml").read_text()
    edges = set(re.findall(r'le="([^"]+)"', text))
    assert len(edges) == 1, edges
    milliseconds = f"{float(edges.pop()) * 1000:.0f} ms"
    for rule in queries.alerts():
        if "Latency" in rule["alert"]:
            assert milliseconds in rule["annotations"]["description"]
    assert f"Within {milliseconds}" in {panel["title"] for panel in queries.panels()}
