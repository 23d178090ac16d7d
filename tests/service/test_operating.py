"""The real process as its operators use it: settings file, SIGHUP, reloads under load, memory, logs, huge heads."""

import json
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import pytest

from service.connection import MAX_HEAD_BYTES
from service.keys import new_key
from tests.service import artifacts
from tests.service.artifacts import CLS, NER
from tests.service.test_server import Process, running
from tests.waiting import until

LONG = "john and mary was in london. who was the good film? " * 20


class Operated:
    """A server with keys and a settings file, and an admin's client of it."""

    def __init__(self, folder: Path, process: Process, secret: str) -> None:
        self.folder = folder
        self.process = process
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{process.port}", headers={"x-api-key": secret}, timeout=60)

    def version(self, name: str) -> str:
        models = self.http.get("/admin/models").json()["models"]
        return str({model["name"]: model["version"] for model in models}[name])

    def resident_megabytes(self) -> float:
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    root = tmp_path_factory.mktemp("operated")
    for task in (CLS, NER):
        artifacts.write(root / "models", task)
    secret, entry = new_key("ops", "admin")
    (root / "keys.toml").write_text(entry)
    config = root / "settings.toml"
    config.write_text(f'log_format = "json"\nkeys_file = "{root}/keys.toml"\nnotice_seconds = 0\nmax_batch_tokens = 64')
    with running(root / "models", SPARSELANE_CONFIG=str(config)) as process:
        server = Operated(root / "models", process, secret)
        yield server
        server.http.close()
        assert process.stop() == 0


def test_the_settings_stand_in_the_first_line(operated: Operated) -> None:
    first = json.loads(operated.process.lines[0])
    assert first["message"] == "settings"
    assert (first["settings"]["max_batch_tokens"], first["settings"]["log_format"]) == (64, "json")


def swap(folder: Path, made: Path) -> None:
    """Put an artifact in the place of another, as a careful operator does: never half of it."""
    name = made.name
    fresh = folder / f".{name}"
    shutil.copytree(made, fresh)
    (folder / name).rename(folder / ".old")
    fresh.rename(folder / name)
    shutil.rmtree(folder / ".old")


def test_reloads_under_load_lose_and_mix_nothing(operated: Operated, tmp_path: Path) -> None:
    """Eight clients ask texts of many small batches while the model is swapped ten times, by call and by SIGHUP."""
    made = [artifacts.write(tmp_path / str(seed), NER, seed=seed) for seed in (1, 2)]
    body = {"inputs": [LONG, LONG[7:], "john"], "parameters": {"ignore_labels": []}}
    allowed: list[Any] = []
    for artifact in made:
        swap(operated.folder, artifact)
        assert operated.http.post("/admin/models/ner/reload").status_code == 200
        allowed.append(operated.http.post(f"/v1/{NER}", json=body).json())
    assert allowed[0] != allowed[1]
    done = threading.Event()

    def ask(_: int) -> list[int]:
        seen = []
        with httpx.Client(base_url=operated.http.base_url, headers=operated.http.headers, timeout=60) as http:
            while not done.is_set():
                answer = http.post(f"/v1/{NER}", json=body)
                assert answer.status_code == 200, answer.text
                seen.append(allowed.index(answer.json()))
        return seen

    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(ask, number) for number in range(8)]
        try:
            for turn in range(10):
                before = operated.version("ner")
                swap(operated.folder, made[turn % 2])
                if turn % 3:
                    assert operated.http.post("/admin/models/ner/reload").status_code == 200
                    continue
                operated.process.process.send_signal(signal.SIGHUP)
                until(lambda old=before: operated.version("ner") != old)
        finally:
            done.set()
        seen = [answer for one in asked for answer in one.result()]
    assert set(seen) == {0, 1}, "answers of both versions"


def test_twenty_reloads_leave_no_memory_behind(operated: Operated, tmp_path: Path) -> None:
    size = {"hidden": 256, "heads": 4, "ffn": 1024, "layers": 4, "sparsity": 0.0}
    made = artifacts.write(tmp_path, CLS, name="large", **size)
    megabytes = sum(file.stat().st_size for file in made.iterdir()) / 2**20
    assert megabytes > 3
    shutil.copytree(made, operated.folder / "large")
    body = {"inputs": LONG, "model": "large"}

    def reload() -> None:
        assert operated.http.post("/admin/models/large/load").status_code == 200
        assert operated.http.post(f"/v1/{CLS}", json=body).status_code == 200

    for _ in range(4):
        reload()
    before = operated.resident_megabytes()
    for _ in range(20):
        reload()
    # A leak would be 20 models; the allocator may keep a few.
    growth = operated.resident_megabytes() - before
    assert growth < 5 * megabytes, (growth, megabytes)
    shutil.rmtree(operated.folder / "large")
    assert operated.http.post("/admin/models/large/unload").status_code == 200


def raw(operated: Operated, *parts: bytes) -> bytes:
    """Send bytes as they are; return what comes until the server closes."""
    with socket.create_connection(("127.0.0.1", operated.process.port), timeout=60) as client:
        received = b""
        try:
            for part in parts:
                client.sendall(part)
            while chunk := client.recv(65536):
                received += chunk
        except ConnectionError:  # it closed while we were still sending
            pass
        return received


def test_a_large_head_and_a_larger_body_are_read(operated: Operated) -> None:
    for _ in range(3):
        headers = {"x-big": "a" * 30_000, "content-type": "application/json"}
        body = b'{"inputs": "a"}' + b" " * 10 * MAX_HEAD_BYTES
        assert operated.http.post(f"/v1/{CLS}", content=body, headers=headers).status_code == 200


def test_every_line_is_json_whoever_writes_it(operated: Operated) -> None:
    assert raw(operated, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    for _ in range(1000):
        lines = [json.loads(line) for line in list(operated.process.lines)]
        if "uvicorn.error" in {line["logger"] for line in lines}:
            break
        sleep(0.01)
    assert {line["logger"] for line in lines} == {"sparselane", "uvicorn.error"}
