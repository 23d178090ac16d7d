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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest

from tests.service import artifacts
from tests.service.artifacts import CLS, NER, QA

COMMAND = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--threads", "1"]
ROOT = Path(__file__).parents[2]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPARSELANE_")}
    return {**kept, **variables}


class Process:
    """A server in a process of its own, on a free port."""

    def __init__(self, folder: Path, **variables: str) -> None:
        command = [*COMMAND, "--port", "0", "--models-dir", str(folder)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(**variables)
        )
        self.lines: list[str] = []
        self.port = self._read_until_listening()
        self.reader = threading.Thread(target=self._read_rest)
        self.reader.start()

    def _read_until_listening(self) -> int:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+) ", line):
                return int(found[1])
        raise AssertionError("".join(self.lines))

    def _read_rest(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, json.loads(text) if text.startswith("{") else text
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        (line,) = (line for line in self.ask("GET", "/metrics")[1].splitlines() if line.startswith(f"{name} "))
        return float(line.split()[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.reader.join()
        return code


@contextmanager
def running(folder: Path, **variables: str) -> Iterator[Process]:
    server = Process(folder, **variables)
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
    with running(folder, SPARSELANE_MAX_BATCH_TOKENS="256", SPARSELANE_NOTICE_SECONDS="0") as process:
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


def test_64_mixed_requests_at_once_answer_as_one_by_one(server: Process) -> None:
    def ask(one: tuple[str, dict[str, Any]]) -> tuple[int, Any]:
        return server.ask("POST", f"/v1/{one[0]}", one[1])

    bodies = mixed_bodies(64)
    alone = [ask(one) for one in bodies]
    assert [status for status, _ in alone] == [200] * 64
    assert max(answer["usage"]["windows"] for _, answer in alone) > 5
    before = server.metric("sparselane_batch_windows_count")
    with ThreadPoolExecutor(64) as clients:
        together = list(clients.map(ask, bodies))
    assert together == alone
    windows = sum(answer["usage"]["windows"] for _, answer in alone)
    assert server.metric("sparselane_batch_windows_count") - before < windows, "nothing was batched"


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
    with running(folder, **limits, SPARSELANE_NOTICE_SECONDS="2") as server:
        with ThreadPoolExecutor(24) as clients:
            asked = [clients.submit(server.ask, "POST", f"/v1/{task}", body) for task, body in bodies]
            while server.metric("sparselane_queue_tokens") < 2000:
                assert not all(one.done() for one in asked)
                sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            # It still listens for the notice, and says what is going on.
            while (ready := server.ask("GET", "/readyz"))[0] == 200:
                pass
            assert (ready[0], ready[1]["detail"]) == (503, "the server is stopping")
            assert server.ask("GET", "/healthz")[0] == 200
            answers = [one.result() for one in asked]
        assert [status for status, _ in answers] == [200] * 24
        assert server.process.wait(timeout=60) == 0
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "/healthz")
    assert "stopped" in server.lines[-1]


def test_a_client_that_hangs_up_is_counted_and_its_work_dropped(folder: Path) -> None:
    """With batches this small its work takes seconds; a client that still was too late to hang up tries again."""
    inputs = ["the film was good " * 500] * 8
    body = json.dumps({"inputs": inputs}).encode()
    head = f"POST /v1/{NER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    outcome = 'sparselane_requests_total{model="ner",outcome="%s",task="' + NER + '"}'
    with running(folder, SPARSELANE_MAX_BATCH_TOKENS="64", SPARSELANE_NOTICE_SECONDS="0") as server:
        for attempt in range(1, 21):
            before = server.metric("sparselane_batch_tokens_sum")
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                while not server.metric("sparselane_queue_tokens") and server.metric(outcome % "ok") < attempt:
                    sleep(0.002)
            while server.metric(outcome % "ok") + server.metric(outcome % "cancelled") < attempt:
                sleep(0.01)
            if server.metric(outcome % "cancelled"):
                break
        assert server.metric(outcome % "cancelled") == 1
        while server.metric("sparselane_queue_tokens"):
            sleep(0.01)
        assert server.metric("sparselane_batch_tokens_sum") - before < 8 * 2000
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
