"""The Grafana dashboard is what dashboard.py makes, and what Grafana's own models of it know."""

import json
import runpy
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy import queries
from tests.deploy.queries import MONITORING, ROOT

PANELS = queries.panels()
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_json_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MONITORING)  # as for a script: panels.py lies beside it
    made = runpy.run_path(str(MONITORING / "dashboard.py"))["page"]()
    assert (MONITORING / "dashboard.json").read_text() == made, "run: python k8s/overlays/monitoring/dashboard.py"


def test_grafana_reads_every_field() -> None:
    """What its models do not know is lost on the way through them."""
    board = queries.dashboard()
    assert json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder)) == board
    wrong = {**board, "refrehs": "30s"}
    assert json.loads(json.dumps(Dashboard.from_json(wrong), cls=JSONEncoder)) != wrong
    assert board["schemaVersion"] >= 39


def test_panels_lie_side_by_side() -> None:
    cells: set[tuple[int, int]] = set()
    ids = set()
    for panel in queries.dashboard()["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, f"{panel['title']} covers another"
        assert place["x"] + place["w"] <= 24
        cells |= own
        ids.add(panel["id"])
    assert len(ids) == len(queries.dashboard()["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["type"] in ("table", "heatmap") or panel["fieldConfig"]["defaults"]["unit"]
    assert f"| {panel['title']} |" in PAGE, "docs/operations.md, 'Read the dashboard', does not have it"


def test_every_variable_chooses_something() -> None:
    variables = [variable["name"] for variable in queries.dashboard()["templating"]["list"]]
    assert variables == ["datasource", "namespace", "task", "model"]
    expressions = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    for name in variables[1:]:
        assert f'{name}=~"${name}"' in expressions


def test_grafanas_sidecar_finds_the_config_map() -> None:
    (generator,) = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generator["files"] == ["sparselane.json=dashboard.json"]
    assert generator["options"]["labels"]["grafana_dashboard"] == "1"


def test_the_pod_monitor_scrapes_the_port_of_the_probes() -> None:
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())["spec"]
    deployment = yaml.safe_load((ROOT / "k8s" / "base" / "deployment.yaml").read_text())["spec"]["template"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    ports = {port["name"] for container in deployment["spec"]["containers"] for port in container["ports"]}
    assert endpoint["port"] in ports
    assert endpoint["path"] == "/metrics"
    assert monitor["selector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items()
