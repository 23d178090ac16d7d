"""A real Prometheus scrapes the real server with the embedded models under load: every query has an answer."""

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import yaml

from tests.deploy import queries
from tests.deploy.queries import MONITORING, ROOT, Query
from tests.service.test_server import Process, running

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus): no query is run"
)
# For what must come, however slow the machine is.
PATIENCE_SECONDS = 60
# A process without a quota counts no periods of one, and one without a limit shows none: then these have no data.
OF_A_CGROUP = ("sparselane_process_cpu_periods_total", "sparselane_memory_limit_bytes")
LONG = "Mary was in London and John was in Paris. The film was good. " * 60


class Prometheus:
    """A Prometheus of our own, on a free port, with the rules of the repository."""

    def __init__(self, folder: Path, target: int) -> None:
        self.port = free_port()
        labels = {"namespace": "sparselane", "pod": "a"}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(MONITORING / "rules.yaml")],
            "scrape_configs": [
                {"job_name": "sparselane", "static_configs": [{"targets": [f"127.0.0.1:{target}"], "labels": labels}]}
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        arguments = [
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([str(PROMETHEUS), *arguments], stderr=log)
        until(self._is_ready, lambda: self.log.read_text())

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            return json.load(response)["data"]

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The answers of a query that are numbers."""
        found = [(one["metric"], float(one["value"][1])) for one in self.get("query", query=expression)["result"]]
        return [(labels, value) for labels, value in found if value == value]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(true: Callable[[], bool], why: Callable[[], str]) -> None:
    end = monotonic() + PATIENCE_SECONDS
    while not true():
        assert monotonic() < end, why()
        sleep(0.3)


@contextmanager
def load(server: Process) -> Iterator[None]:
    """Ask all that there is to ask, right and wrong, until the block ends."""
    done = threading.Event()
    question = {"question": "Who was in London?", "context": LONG}
    calls: list[tuple[str, Any, dict[str, str]]] = [
        ("/v1/question-answering", {"inputs": question}, {}),
        ("/v1/text-classification", {"inputs": ["a good film", "a bad film"]}, {}),
        ("/v1/token-classification", {"inputs": LONG}, {"x_priority": "batch"}),
        ("/v1/text-classification", {"inputs": 7}, {}),
        # Nothing that long is answered within a millisecond: refused, as in an overload.
        ("/v1/question-answering", {"inputs": question}, {"x_request_timeout_ms": "1"}),
    ]

    def ask(first: int) -> None:
        number = first
        while not done.is_set():
            path, body, headers = calls[number % len(calls)]
            server.ask("POST", path, body, **headers)
            number += 1

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(ask, first) for first in range(3)]
        try:
            yield
        finally:
            done.set()
        for client in clients:
            client.result()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Fed with some seconds of load, and with one reload that fails."""
    models = tmp_path_factory.mktemp("models")
    for path in (ROOT / "service" / "models").iterdir():
        (models / path.name).symlink_to(path)
    with running(models, SPARSELANE_NOTICE_SECONDS="0") as server:
        mine = Prometheus(tmp_path_factory.mktemp("prometheus"), server.probe_port)
        try:
            with load(server):
                until(lambda: bool(mine.ask("sparselane_ready == 1")), lambda: str(mine.get("targets")))
                broken = models / "broken"
                broken.mkdir()
                (broken / "manifest.json").write_text("{")
                server.process.send_signal(signal.SIGHUP)
                wanted = [query for query in queries.dashboard_queries("10s") if not of_a_cgroup(query, server)]
                until(
                    lambda: not unanswered(mine, wanted) and bool(mine.ask('ALERTS{alertstate="firing"}')),
                    lambda: "no data: " + "\n".join(map(str, unanswered(mine, wanted))),
                )
                yield mine
        finally:
            mine.stop()


def of_a_cgroup(query: Query, server: Process) -> bool:
    """Whether it has no data because the server runs without the limits that it shows."""
    page = server.probe("/metrics")[1]
    there = {name for name in OF_A_CGROUP if re.search(rf"^{name} [1-9]", page, re.MULTILINE)}
    return any(s.name in OF_A_CGROUP and s.name not in there for s in queries.selectors(query.expression))


def unanswered(prometheus: Prometheus, wanted: list[Query]) -> list[Query]:
    return [query for query in wanted if not prometheus.ask(query.expression)]


def test_every_panel_has_data(prometheus: Prometheus) -> None:
    """The fixture waited for it; here is what the numbers say."""
    (labels, burning), *_ = prometheus.ask("namespace:sparselane_failures:ratio_rate5m")
    assert labels["namespace"] == "sparselane"
    assert 0 < burning < 1
    outcomes = {
        labels["outcome"]: rate
        for labels, rate in prometheus.ask("sum by (outcome) (namespace_task_model_outcome:sparselane_requests:rate5m)")
    }
    seen = {outcome for outcome, rate in outcomes.items() if rate > 0}
    # Where the machine gets slower within a moment, what was accepted may time out.
    assert seen - {"timeout"} == {"ok", "invalid", "overloaded"}
    real, padded = (
        prometheus.ask(f'sum(rate(sparselane_batch_tokens_sum{{kind="{kind}"}}[10s]))')[0][1]
        for kind in ("real", "padded")
    )
    assert 0 < real <= padded


@pytest.mark.parametrize("name", queries.records())
def test_every_recording_rule_has_data_at_its_level(prometheus: Prometheus, name: str) -> None:
    found = prometheus.ask(name)
    assert found
    for labels, value in found:
        assert labels.keys() == {"__name__", *name.split(":")[0].split("_")}
        assert value >= 0


def test_no_rule_fails(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(queries.rules())
    assert not [rule for rule in rules if rule["health"] != "ok"]


def test_a_reload_that_fails_is_an_alert(prometheus: Prometheus) -> None:
    firing = prometheus.ask('ALERTS{alertname="SparselaneModelLoadFailed", alertstate="firing"}')
    assert [(labels["model"], labels["severity"]) for labels, _ in firing] == [("broken", "warning")]
    assert not prometheus.ask('ALERTS{alertname=~"Sparselane(Absent|NoneReady|Restarts|ScrapeFails|PodNotReady)"}')


def test_every_variable_has_values(prometheus: Prometheus) -> None:
    expected = {
        "namespace": {"sparselane"},
        "task": {"none", "question-answering", "text-classification", "token-classification"},
    }
    for variable in queries.dashboard()["templating"]["list"][1:]:
        query = queries.filled(variable["query"]["query"], "10s")
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert found is not None
        values = set(prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]}))
        assert values >= expected.get(variable["name"], {"none"}), variable["name"]
