"""docs/operations.md says what the code does: every setting with its default, and the numbers of the manifests."""

import re
from pathlib import Path

import yaml

from service import health, priority, server
from service.settings import CONFIG, PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def shown(default: object) -> str:
    if default is None or default == ():
        return "unset"
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default.relative_to(ROOT) if isinstance(default, Path) else default}`"


def test_every_setting_is_in_the_table_with_its_default_and_meaning() -> None:
    rows = [
        f"| `{PREFIX}{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    table = [line for line in PAGE.splitlines() if line.startswith(f"| `{PREFIX}")]
    assert [line for line in table if "see engine.md" not in line] == rows, "docs/operations.md needs:\n" + "\n".join(
        rows
    )


def test_every_name_on_the_page_is_a_setting() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {"SPARSELANE_ISA", CONFIG}
    assert set(re.findall(rf"{PREFIX}[A-Z_]+(?<!_)\b", PAGE)) <= known


def test_the_sum_of_the_stop_is_the_one_in_the_manifests() -> None:
    deployment = yaml.safe_load((ROOT / "k8s" / "base" / "deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    lines = (ROOT / "k8s" / "base" / "settings.env").read_text().splitlines()
    settings = load_settings(dict(line.split("=", 1) for line in lines if line and not line.startswith("#")))
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    pattern = r"preStop sleep (\d+) s \+ notice (\d+) s \+ drain (\d+) s \+ margin (\d+) s = \w+ (\d+)"
    found = re.search(pattern, PAGE)
    assert found is not None
    terms = [int(number) for number in found.groups()]
    assert terms[:3] == [sleep, settings.notice_seconds, settings.drain_seconds]
    assert sum(terms[:4]) == terms[4] == pod["terminationGracePeriodSeconds"]


def test_the_numbers_that_operators_rely_on_are_those_of_the_code() -> None:
    """Alerts, probes and runbooks of others are built on them: a change is a change of the page, too."""
    assert (health.LATE_SECONDS, health.DEAD_SECONDS, health.STUCK_SECONDS) == (5, 30, 60)
    assert (
        "\n| `/healthz` | the event loop turned in the last 30 s, and no call of the engine has lasted 60 s |" in PAGE
    )
    assert "\n| `/readyz` | as above, but 5 s;" in PAGE
    assert priority.NICENESS == 7
    assert "All threads of the server but that one are 7 nicer (`nice`, " in PAGE
    assert server.CUT_OFF == 3
    assert '\n| exit code 3 | the log says "the drain of … cut off"' in PAGE
