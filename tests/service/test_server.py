"""The real process: real engine, real sockets, signals."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import StartupError
from service.models import Models
from service.server import CUT_OFF, bind_probes, warn_of_unknown_defaults
from service.settings import Settings, load_settings
from tests.service import artifacts
from tests.service.artifacts import CLS, NER, QA
from tests.waiting import until

COMMAND = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--threads", "1"]
ROOT = Path(__file__).parents[2]
# For requests that must be answered however slow the machine is.
PATIENT = {"x_request_timeout_ms": "600000"}


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPARSELANE_")}
    return {**kept, **variables}


def parsed(answer: tuple[int, str]) -> tuple[int, Any]:
    status, text = answer
    return status, json.loads(text) if text.startswith("{") else text


class Process:
    """A server in a process of its own, on free ports where it is given none."""

    def __init__(
        self, folder: Path, ports: tuple[int, int] = (0, 0), *, program: Sequence[str] = COMMAND, **variables: str
    ) -> None:
        chosen = ["--port", str(ports[0]), "--probe-port", str(ports[1])]
        command = [*program, *chosen, "--models-dir", str(folder)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(**variables)
        )
        self.lines: list[str] = []
        self.port, self.probe_port = self._read_until_listening()
        self.reader = threading.Thread(target=self._read_rest)
        self.reader.start()

    def _read_until_listening(self) -> tuple[int, int]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(
                r"listening on http://127\.0\.0\.1:(\d+) .*probes on http://127\.0\.0\.1:(\d+);", line
            ):
                return int(found[1]), int(found[2])
        raise AssertionError("".join(self.lines))

    def _read_rest(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        return parsed(self.ask_at(self.port, method, path, body, **headers))

    def probe(self, path: str) -> tuple[int, Any]:
        return parsed(self.ask_at(self.probe_port, "GET", path))

    def ask_at(self, port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sent = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        try:
            connection.request(method, path, json.dumps(body) if body else None, sent)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        (line,) = (line for line in self.probe("/metrics")[1].splitlines() if line.startswith(f"{name} "))
        return float(line.split()[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.reader.join()
        return code


@contextmanager
def running(
    folder: Path, ports: tuple[int, int] = (0, 0), *, program: Sequence[str] = COMMAND, **variables: str
) -> Iterator[Process]:
    server = Process(folder, ports, program=program, **variables)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.reader.join()
        assert server.process.stderr is not None
        server.process.stderr.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.write_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    """A server for all tests that do not stop it."""
    limits = {"SPARSELANE_MAX_BATCH_TOKENS": "256", "SPARSELANE_MAX_QUEUE_TOKENS": "1000000"}
    with running(folder, **limits, SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process
        assert process.stop() == 0


def mixed_bodies(count: int) -> list[tuple[str, dict[str, Any]]]:
    rng = np.random.default_rng(7)
    words = ["john", "mary", "london", "the", "film", "wasn't", "in", "paris.", "good", "bad", "é😀", "who?"]
    bodies = []
    for number in range(count):
        texts = [" ".join(rng.choice(words, rng.integers(1, 200))) for _ in range(1 + number % 3)]
        task = (QA, CLS, NER)[number % 3]
        inputs = [{"question": "who was in london?", "context": text} for text in texts] if task == QA else texts
        bodies.append((task, {"inputs": inputs}))
    return bodies


def test_200_mixed_requests_at_once_answer_as_one_by_one(server: Process) -> None:
    """Byte for byte, whatever the lane."""

    def ask(one: tuple[str, dict[str, Any]]) -> tuple[int, str]:
        lane = "batch" if len(one[1]["inputs"]) == 2 else "interactive"
        return server.ask_at(server.port, "POST", f"/v1/{one[0]}", one[1], x_priority=lane, **PATIENT)

    bodies = mixed_bodies(200)
    alone = [ask(one) for one in bodies]
    assert [status for status, _ in alone] == [200] * 200
    usages = [json.loads(answer)["usage"]["windows"] for _, answer in alone]
    assert max(usages) > 5
    before = server.metric("sparselane_batch_size_count")
    with ThreadPoolExecutor(200) as clients:
        together = list(clients.map(ask, bodies))
    assert together == alone
    assert server.metric("sparselane_batch_size_count") - before < sum(usages), "nothing was batched"


def test_a_call_as_in_the_readme(server: Process) -> None:
    question = artifacts.INPUTS[QA]
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/question-answering",
        data=json.dumps({"inputs": question}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    ((best,),) = answer["results"]
    assert question["context"][best["start"] : best["end"]] == best["answer"]
    status, page = server.ask("GET", "/readyz")
    assert (status, page["models"]) == (200, ["ner", "qa", "sentiment"])
    start = "".join(server.lines)
    assert re.search(r"models: ner \(token-classification\).*engine: \w+, 1 threads; started in \d", start)


def test_sigterm_finishes_everything_that_was_accepted_and_exits_0(folder: Path) -> None:
    bodies = [(task, {"inputs": body["inputs"] * 3}) for task, body in mixed_bodies(24)]
    limits = {"SPARSELANE_MAX_BATCH_TOKENS": "64", "SPARSELANE_MAX_QUEUE_TOKENS": "1000000"}
    with running(folder, **limits, SPARSELANE_NOTICE_SECONDS="2", SPARSELANE_DRAIN_SECONDS="600") as server:
        with ThreadPoolExecutor(25) as clients:
            asked = [clients.submit(server.ask, "POST", f"/v1/{task}", body, **PATIENT) for task, body in bodies]

            def queued() -> bool:
                assert not all(one.done() for one in asked)
                return server.metric("sparselane_queue_tokens") >= 2000

            until(queued)
            hurried = clients.submit(server.ask, "POST", f"/v1/{CLS}", {"inputs": "a"}, x_request_timeout_ms="1")
            server.process.send_signal(signal.SIGTERM)
            # It still listens for the notice, and says what is going on.
            ready = 200, {}

            def stopping() -> bool:
                nonlocal ready
                ready = server.ask("GET", "/readyz")
                return ready[0] != 200

            until(stopping)
            assert (ready[0], ready[1]["detail"]) == (503, "the server is stopping")
            assert server.ask("GET", "/healthz")[0] == server.probe("/healthz")[0] == 200
            assert server.probe("/readyz")[0] == 503
            assert hurried.result()[0] in (503, 504), "a deadline holds while the server stops, too"
            answers = [one.result() for one in asked]
        assert [status for status, _ in answers] == [200] * 24
        assert server.process.wait(timeout=60) == 0
        for closed in (server.port, server.probe_port):
            with pytest.raises(ConnectionRefusedError):
                server.ask_at(closed, "GET", "/healthz")
    assert "stopped" in server.lines[-1]


def test_sigint_skips_the_notice_finishes_what_was_accepted_and_exits_0(folder: Path) -> None:
    """Ctrl-C: with a notice of ten minutes only what skips it ends in time."""
    bodies = [(task, {"inputs": body["inputs"] * 10}) for task, body in mixed_bodies(24)]
    limits = {"SPARSELANE_MAX_BATCH_TOKENS": "64", "SPARSELANE_MAX_QUEUE_TOKENS": "1000000"}
    with (
        running(folder, **limits, SPARSELANE_NOTICE_SECONDS="600", SPARSELANE_DRAIN_SECONDS="600") as server,
        ThreadPoolExecutor(24) as clients,
    ):
        asked = [clients.submit(server.ask, "POST", f"/v1/{task}", body, **PATIENT) for task, body in bodies]
        # All must be in: a connection that the server never took is reset when it stops to listen.
        until(lambda: server.metric("sparselane_inflight_requests") + sum(one.done() for one in asked) >= len(asked))
        assert not all(one.done() for one in asked)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=300) == 0
        assert [one.result()[0] for one in asked] == [200] * 24
    assert "stopped" in server.lines[-1]


def test_sigterm_while_models_load_ends_process_1_too(folder: Path) -> None:
    """The kernel keeps signals without a handler from process 1; that there is one in time is looked at here."""
    program = (
        "import os, signal, service.server as server\n"
        "def load(*_):\n"
        "    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    raise AssertionError('it went on')\n"
        "server.load_models = load\n"
        "server.main()\n"
    )
    ports = {"SPARSELANE_PORT": "0", "SPARSELANE_PROBE_PORT": "0", "SPARSELANE_MODELS_DIR": str(folder)}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment(**ports), timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert "SIGTERM before the server was ready" in ended.stderr


def test_a_drain_that_is_too_short_shows_in_the_exit_code(folder: Path) -> None:
    bodies = [(task, {"inputs": body["inputs"] * 40}) for task, body in mixed_bodies(24)]
    limits = {"SPARSELANE_MAX_BATCH_TOKENS": "64", "SPARSELANE_MAX_QUEUE_TOKENS": "10000000"}
    stop = {"SPARSELANE_NOTICE_SECONDS": "0", "SPARSELANE_DRAIN_SECONDS": "1"}
    with running(folder, **limits, **stop) as server, ThreadPoolExecutor(24) as clients:
        asked = [clients.submit(server.ask, "POST", f"/v1/{task}", body, **PATIENT) for task, body in bodies]
        # All must be in: a connection that the server never took is reset when it stops to listen.
        until(lambda: server.metric("sparselane_inflight_requests") + sum(one.done() for one in asked) >= len(asked))
        assert not all(one.done() for one in asked)
        assert server.stop() == CUT_OFF
        assert {one.result()[0] for one in asked} <= {200, 503}, "who was cut off is told to send it again"
        assert any(one.result()[0] == 503 for one in asked)
    ended = [line for line in server.lines if re.search(r"POST /v1/\S+ 503", line)]
    assert ended and all("outcome=unavailable" in line for line in ended), ended
    assert re.search(r"the drain of 1 s cut off \d+ requests", server.lines[-1])


def test_probes_and_metrics_answer_on_a_port_of_their_own(server: Process) -> None:
    assert server.probe("/healthz") == (200, {"status": "alive"})
    assert server.probe("/readyz?verbose") == (200, {"status": "ready", "models": ["ner", "qa", "sentiment"]})
    assert "sparselane_ready 1.0" in server.probe("/metrics")[1]
    status, problem = server.probe("/v1/text-classification")
    assert (status, problem["detail"]) == (404, "here are /healthz, /readyz and /metrics")


def test_head_gets_the_head_of_what_get_gets(server: Process) -> None:
    def heads(path: str, method: str) -> bytes:
        request = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-request-id: 7\r\nconnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(request.encode())
            return b"".join(iter(lambda: connection.recv(65536), b""))

    for path in ("/healthz", "/readyz", "/v2/health/ready", "/v2/models/qa", "/models/nobody", "/docs"):
        whole, head = heads(path, "GET"), heads(path, "HEAD")
        assert head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1
        fields = [
            sorted(field for field in answer.partition(b"\r\n\r\n")[0].split(b"\r\n") if field[:5] != b"date:")
            for answer in (whole, head)
        ]
        assert fields[0] == fields[1]


def test_default_models_that_no_artifact_has_are_logged_where_somebody_set_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = Models({}, {"sentiment": "ChecksumError: x"})
    warn_of_unknown_defaults(load_settings({}), Models({}, {}))
    warn_of_unknown_defaults(load_settings({"SPARSELANE_DEFAULT_MODELS": "sentiment"}), models)
    assert not caplog.records
    settings = load_settings({"SPARSELANE_DEFAULT_MODELS": "sentimnet,sentiment", "SPARSELANE_MODELS_DIR": "/models"})
    warn_of_unknown_defaults(settings, models)
    (line,) = caplog.messages
    assert line == (
        "SPARSELANE_DEFAULT_MODELS has 'sentimnet', which is no model in /models; did you mean 'sentiment'?"
    )


def test_a_probe_port_that_was_asked_for_must_be_free_and_the_default_need_not_be(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [*COMMAND, "--port", "0", "--probe-port", str(port), "--models-dir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=60)
        assert done.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and "SPARSELANE_PROBE_PORT" in done.stderr
        default = load_settings({}, host="127.0.0.1").model_copy(update={"probe_port": port})
        with pytest.raises(StartupError):
            bind_probes(default)
        assert default.model_fields_set == {"host", "probe_port"}
        with bind_probes(Settings.model_construct({"host"}, **default.model_dump())) as free:
            assert free.getsockname()[1] != port


def test_a_client_that_hangs_up_is_counted_and_its_work_dropped(folder: Path) -> None:
    """With batches this small its work takes seconds; a client that still was too late to hang up tries again."""
    inputs = ["the film was good " * 500] * 8
    body = json.dumps({"inputs": inputs}).encode()
    head = f"POST /v1/{NER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-timeout-ms: 600000\r\n"
    with running(folder, SPARSELANE_MAX_BATCH_TOKENS="64", SPARSELANE_NOTICE_SECONDS="0") as server:

        def ended(outcome: str) -> float:
            return server.metric(f'sparselane_requests_total{{model="ner",outcome="{outcome}",task="{NER}"}}')

        for attempt in range(1, 21):
            before = server.metric('sparselane_batch_tokens_sum{kind="real"}')
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                until(lambda of=attempt: server.metric("sparselane_queue_tokens") or ended("ok") == of)
            until(lambda of=attempt: ended("ok") + ended("cancelled") == of, 600)
            if ended("cancelled"):
                break
        assert ended("cancelled") == 1
        until(lambda: not server.metric("sparselane_queue_tokens"))
        assert server.metric('sparselane_batch_tokens_sum{kind="real"}') - before < 8 * 2000
        assert server.stop() == 0


def test_the_service_never_imports_torch_or_transformers(folder: Path) -> None:
    code = (
        "import sys, service.cli, service.server, service.loading; from pathlib import Path\n"
        f"service.loading.load_models(Path({str(folder)!r}), 1)\n"
        "print([name for name in ('torch', 'transformers', 'compression') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


# The server with an engine that never comes back, and does not wait long for it; reads the environment alone.
STUCK = """
import time
from service import batcher
batcher.timed_forward = lambda *_: time.sleep(1000)
batcher.LAST_CALL_SECONDS = 0.5
from service.server import main
main()
"""


def test_an_engine_that_does_not_return_cannot_hold_up_a_stop(folder: Path) -> None:
    variables = {
        "SPARSELANE_HOST": "127.0.0.1",
        "SPARSELANE_PORT": "0",
        "SPARSELANE_PROBE_PORT": "0",
        "SPARSELANE_MODELS_DIR": str(folder),
        "SPARSELANE_DRAIN_SECONDS": "1",
        "SPARSELANE_NOTICE_SECONDS": "0",
    }
    with running(folder, program=[sys.executable, "-c", STUCK], **variables) as process:
        asking = threading.Thread(target=lambda: process.ask("POST", f"/v1/{CLS}", {"inputs": "a"}, **PATIENT))
        asking.start()
        until(lambda: process.metric("sparselane_inflight_requests"))
        assert process.stop() == CUT_OFF
        asking.join()
    assert [line for line in process.lines if "a call of the engine has not returned" in line]
