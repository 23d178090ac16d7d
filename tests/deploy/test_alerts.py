"""The alert rules: Prometheus' own tool proves when they fire; each has its page in the runbook."""

import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import queries
from tests.deploy.queries import MONITORING, ROOT, Selector

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
    firing = [fires for case in cases for fires in looks(name, case)]
    assert True in firing
    assert False in firing
    assert any(f"alertname: {name}\n" in text for text in texts), "no case has its annotations"


def looks(name: str, case: dict[str, Any]) -> list[bool]:
    """Whether this alert fires, each time that a case looks at it: by its name, or at all that fire.

    The latter counts where the case has the series that the alert reads; without them it could not fire. The former
    names all that fire: of series with other labels it says that they do not.
    """
    (expression,) = (rule["expr"] for rule in queries.alerts() if rule["alert"] == name)
    series = [queries.selectors(one["series"])[0] for one in case["input_series"]]

    def could_fire(given: list[Selector]) -> bool:
        return all(any(gives(one, wanted) for one in given) for wanted in read_by(expression))

    found = []
    for looked in case.get("alert_rule_test", []):
        if looked["alertname"] == name:
            fire = [alert["exp_labels"] for alert in looked["exp_alerts"]]
            found.append(bool(fire))
            if fire and could_fire([one for one in series if all(apart(one, labels) for labels in fire)]):
                found.append(False)
    if could_fire(series):
        queried = [query for query in case.get("promql_expr_test", []) if "ALERTS" in query["expr"]]
        found += [name in named(query["exp_samples"]) for query in queried]
    return found


def read_by(expression: str) -> Iterator[Selector]:
    """The series that an expression reads in the end: those of recording rules, with the labels asked of those."""
    records = {rule["record"]: rule["expr"] for rule in queries.rules() if "record" in rule}
    for selector in queries.selectors(expression):
        if selector.name in records:
            for inner in read_by(records[selector.name]):
                yield Selector(inner.name, inner.matchers + selector.matchers)
        else:
            yield selector


def gives(series: Selector, wanted: Selector) -> bool:
    """Whether a series is one of those that a selector asks for."""
    labels = {label: value for label, value, _ in series.matchers}
    return series.name == wanted.name and all(
        re.fullmatch(value if expression else re.escape(value), labels.get(label, ""))
        for label, value, expression in wanted.matchers
    )


def apart(series: Selector, labels: dict[str, str]) -> bool:
    """Whether an alert with these labels is of another series."""
    return any(labels.get(label, value) != value for label, value, _ in series.matchers)


REFUSED = 'sparselane_requests_total{namespace="%s", outcome="%s"}'


@pytest.mark.parametrize(
    ("series", "fires"),
    [
        (["sparselane_build_info"], []),
        ([REFUSED % ("a", "error")], []),
        ([REFUSED % ("a", "overloaded")], [False]),
    ],
)
def test_a_case_without_an_alerts_series_says_nothing_of_it(series: list[str], fires: list[bool]) -> None:
    case: dict[str, Any] = {"input_series": [{"series": one} for one in series]}
    nothing = {"promql_expr_test": [{"expr": 'ALERTS{alertstate="firing"}', "exp_samples": []}]}
    assert looks("SparselaneRefuses", case | nothing) == fires
    silent = {"alert_rule_test": [{"alertname": "SparselaneRefuses", "exp_alerts": []}]}
    assert looks("SparselaneRefuses", case | silent) == [False]
    other = {
        "alert_rule_test": [{"alertname": "SparselaneRefuses", "exp_alerts": [{"exp_labels": {"namespace": "b"}}]}]
    }
    assert set(looks("SparselaneRefuses", case | other)) == {True, *fires}


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
