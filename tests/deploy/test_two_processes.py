"""Two real servers behind a real HAProxy with docs/haproxy.cfg: a rolling restart, and kill -9, under load."""

import random
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import httpx
import pytest

from service.client import Attempts, Client, ClientError
from service.server import KEEP_ALIVE_SECONDS
from service.settings import Settings
from tests.service import artifacts
from tests.service.artifacts import CLS
from tests.service.test_server import Process, running
from tests.waiting import until

CONFIG = Path(__file__).parents[2] / "docs" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
# With these small batches a request takes so long that each server always has one.
TEXTS = ["the film was good " * 100] * 4
SETTINGS = {"SPARSELANE_MAX_BATCH_TOKENS": "64", "SPARSELANE_NOTICE_SECONDS": "2"}
CLIENTS = 4
SERVERS = ("one", "two")
PATIENCE = 60

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy here (Debian: apt-get install haproxy)")


class Pair:
    """Two servers, each on ports that stay its own, and the proxy before them."""

    def __init__(self, models: Path, folder: Path, stack: ExitStack) -> None:
        port, *rest = free_ports(1 + 2 * len(SERVERS))
        self.url = f"http://127.0.0.1:{port}"
        self._ports = {name: (rest.pop(), rest.pop()) for name in SERVERS}
        self._models, self._stack, self._admin = models, stack, folder / "admin"
        self.servers: dict[str, Process] = {}
        config = folder / "haproxy.cfg"
        config.write_text(self._config(port))
        proxy = subprocess.Popen([str(HAPROXY), "-db", "-q", "-f", str(config)])
        stack.callback(proxy.wait)
        stack.callback(proxy.kill)
        self.both_up()

    def _config(self, port: int) -> str:
        """Return docs/haproxy.cfg with other ports, and a socket on which the proxy says what it knows."""
        text = CONFIG.read_text().replace("bind :8080", f"bind 127.0.0.1:{port}")
        for name, (requests, probes) in self._ports.items():
            line = rf"server {name} 127\.0\.0\.1:\d+ port \d+"
            text, count = re.subn(line, f"server {name} 127.0.0.1:{requests} port {probes}", text)
            assert count == 1
        return text.replace("global\n", f"global\n    stats socket {self._admin} level admin\n", 1)

    def both_up(self) -> None:
        """Start the servers that do not run; return when the proxy sends requests to both."""
        for name in SERVERS:
            if name not in self.servers or self.servers[name].process.poll() is not None:
                server = running(self._models, self._ports[name], **SETTINGS)
                self.servers[name] = self._stack.enter_context(server)
            until(lambda name=name: self.said(name)["status"] == "UP")

    def said(self, name: str) -> dict[str, str]:
        """Return what the proxy's statistics have about a server."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._admin))
            admin.sendall(b"show stat\n")
            table = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        heads, *rows = (line.lstrip("# ").split(",") for line in table.splitlines() if line)
        (found,) = (row for row in (dict(zip(heads, row, strict=True)) for row in rows) if row["svname"] == name)
        return found

    def tried_again(self, name: str) -> int:
        """Return how many requests the proxy could not give to a server and then gave to it again, or to the other."""
        said = self.said(name)
        return int(said["wretr"]) + int(said["wredis"])


def free_ports(count: int) -> list[int]:
    """Ports outside of the range that connections take theirs from, or one might while a server is away."""
    found: list[int] = []
    for port in random.sample(range(20_000, 30_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports between 20000 and 30000")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    models = tmp_path_factory.mktemp("models")
    artifacts.write(models, CLS)
    with ExitStack() as stack:
        yield Pair(models, tmp_path_factory.mktemp("proxy"), stack)


@dataclass(frozen=True)
class Asked:
    """One request: when it began and ended on the monotonic clock, and what its caller got."""

    began: float
    ended: float
    outcome: str


@contextmanager
def load(ask: Callable[[], str]) -> Iterator[list[Asked]]:
    """CLIENTS callers, each with the next request as soon as it has an answer, until the block ends."""
    asked: list[Asked] = []
    enough = threading.Event()

    def caller() -> None:
        while not enough.is_set():
            began = monotonic()
            outcome = ask()
            asked.append(Asked(began, monotonic(), outcome))

    callers = [threading.Thread(target=caller) for _ in range(CLIENTS)]
    for thread in callers:
        thread.start()
    try:
        until(lambda: len(asked) >= 2 * CLIENTS)
        yield asked
        after = len(asked)
        until(lambda: len(asked) >= after + 2 * CLIENTS)
    finally:
        enough.set()
        for thread in callers:
            thread.join()


@contextmanager
def plain(url: str) -> Iterator[Callable[[], str]]:
    """Ask once; the outcome is the status."""
    with httpx.Client(timeout=PATIENCE) as http:

        def ask() -> str:
            try:
                return str(http.post(f"{url}/v1/{CLS}", json={"inputs": TEXTS}).status_code)
            except httpx.HTTPError as error:
                return repr(error)

        yield ask


@contextmanager
def patient(url: str) -> Iterator[Callable[[], str]]:
    """Ask with our own client; the outcome is the answer."""
    with Client(url, timeout=PATIENCE) as client:

        def ask() -> str:
            try:
                return client.text_classification(TEXTS).model_dump_json()
            except ClientError as error:
                return repr(error)

        yield ask


@needs_haproxy
def test_no_request_fails_while_one_server_after_the_other_is_restarted(pair: Pair) -> None:
    pair.both_up()
    before = {name: pair.tried_again(name) for name in SERVERS}
    with plain(pair.url) as ask, load(ask) as asked:
        for name in SERVERS:
            assert pair.servers[name].stop() == 0
            pair.both_up()
    assert {one.outcome for one in asked} == {"200"}
    for name in SERVERS:
        assert pair.tried_again(name) == before[name], "saved by trying again: the proxy did not heed /readyz"
        done = f'sparselane_requests_total{{model="sentiment",outcome="ok",task="{CLS}"}}'
        assert pair.servers[name].metric(done) > 0, "a server that came back got no request"


def kill(server: Process) -> tuple[float, float]:
    """Kill a server that has a request; return when it was told, and when it was gone."""
    until(lambda: server.metric("sparselane_inflight_requests"))
    told = monotonic()
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    return told, monotonic()


@needs_haproxy
def test_a_killed_server_takes_no_request_with_it_but_those_that_it_had(pair: Pair) -> None:
    pair.both_up()
    with plain(pair.url) as ask, load(ask) as asked:
        told, gone = kill(pair.servers["one"])
    failed = [one for one in asked if one.outcome != "200"]
    assert 1 <= len(failed) <= CLIENTS
    # HAProxy closes the caller's connection, too, where the one to the server had been used before.
    assert all(one.outcome == "502" or "Server disconnected" in one.outcome for one in failed)
    assert all(one.began < gone and told < one.ended for one in failed)


@needs_haproxy
def test_callers_with_our_client_do_not_see_that_a_server_was_killed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[ClientError] = []
    pause = Attempts.pause

    def noted(self: Attempts, now: float, error: ClientError) -> float:
        lost.append(error)
        return pause(self, now, error)

    monkeypatch.setattr(Attempts, "pause", noted)
    pair.both_up()
    with patient(pair.url) as ask, load(ask) as asked:
        kill(pair.servers["two"])
    (answer,) = {one.outcome for one in asked}
    assert '"usage"' in answer
    assert lost and all(error.lost for error in lost), "what was asked again is what the killed server had"


def seconds(pattern: str) -> float:
    (found,) = re.findall(rf"{pattern} (\d+)(ms|s)\b", CONFIG.read_text())
    return int(found[0]) / (1000 if found[1] == "ms" else 1)


def test_the_proxys_times_go_with_the_servers() -> None:
    settings = Settings()
    # Noticed at the latest after one interval; a machine in a hurry may take twice that.
    assert 2 * seconds("check inter") < settings.notice_seconds
    assert seconds("timeout http-request") >= settings.read_seconds
    assert seconds("timeout server") > settings.request_timeout_ms / 1000
    # Who closes an idle connection first must be the proxy: a server that did might get a request at that moment.
    assert seconds("timeout client") < KEEP_ALIVE_SECONDS
