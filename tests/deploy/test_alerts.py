"""The alert rules: Prometheus' own tool proves when they fire; each has its page in the runbook."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import queries
from tests.deploy.queries import MONITORING, ROOT

CASES = sorted(Path(__file__).parent.glob("alert_tests*.yaml"))
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
NAMES = [rule["alert"] for rule in queries.alerts()]


def promtool(*arguments: str) -> str:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus): the rules are not run")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(queries.rules())} rules found" in promtool("check", "rules", str(MONITORING / "rules.yaml"))


def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", *map(str, CASES))


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_a_case_that_fires_and_one_that_must_not(name: str) -> None:
    texts = [path.read_text() for path in CASES]
    cases = [case for text in texts for case in yaml.safe_load(text)["tests"]]
    firing: list[set[str]] = []
    for case in cases:
        firing += [
            {name} if alert["exp_alerts"] else set()
            for alert in case.get("alert_rule_test", [])
            if alert["alertname"] == name
        ]
        queried = [query for query in case.get("promql_expr_test", []) if "ALERTS" in query["expr"]]
        firing += [named(query["exp_samples"]) for query in queried]
    assert any(name in fired for fired in firing)
    assert any(name not in fired for fired in firing)
    assert any(f"alertname: {name}\n" in text for text in texts), "no case has its annotations"


def named(samples: list[dict[str, Any]]) -> set[str]:
    return {found for sample in samples for found in re.findall(r'alertname="(\w+)"', sample["labels"])}


def test_the_operator_gets_the_same_rules() -> None:
    resource = (MONITORING / "prometheusrule.yaml").read_text()
    made = runpy.run_path(str(MONITORING / "prometheusrule.py"))["resource"]()
    assert resource == made, "run: python k8s/overlays/monitoring/prometheusrule.py"
    assert yaml.safe_load(resource)["spec"] == yaml.safe_load((MONITORING / "rules.yaml").read_text())


@pytest.mark.parametrize("rule", queries.alerts(), ids=NAMES)
def test_every_alert_says_how_bad_it_is_and_has_its_page(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
    section = re.search(rf"^### {rule['alert']}\n(.*?)(?=^##)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None, "docs/operations.md has no section of it"
    assert re.findall(r"^(\d)\. ", section.group(1), re.MULTILINE) == ["1", "2", "3"], "the first three steps"


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    assert re.findall(r"^### (Sparselane\w+)$", RUNBOOK, re.MULTILINE) == NAMES
