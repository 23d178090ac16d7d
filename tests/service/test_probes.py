"""Health over real sockets: answered while the event loop stands still, and it says so."""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import health, probes
from service.app import create_app
from service.models import Model, Models
from service.probes import Probes
from service.server import bind
from tests.service import fake

CLS = "text-classification"


def get(port: int, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers["content-type"], response.read().decode()
    finally:
        connection.close()


def watched(model: Model, story: Callable[[Any, int], Any], failures: dict[str, str] | None = None) -> None:
    """Run `story` with an app whose event loop turns, and the port of its probes."""

    async def run() -> None:
        app = create_app(fake.settings(), Models({model.name: model}, failures or {}))
        async with app.router.lifespan_context(app):
            with bind("127.0.0.1", 0) as listener, Probes(listener, app.state.health) as answering:
                answering.listen()
                await story(app, listener.getsockname()[1])

    asyncio.run(run())


def test_a_loop_that_stands_still_is_not_ready_and_then_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fake.model(tmp_path, CLS)
    answers: dict[str, tuple[int, str, str]] = {}

    async def story(_: Any, port: int) -> None:
        def look(*names: str) -> None:
            for name in names:
                answers[name] = get(port, "/" + name.partition(" ")[0])

        await asyncio.to_thread(look, "readyz before", "healthz before")
        monkeypatch.setattr(health, "LATE_SECONDS", 0.0)
        watcher = threading.Thread(target=look, args=("readyz blocked", "healthz blocked"))
        watcher.start()
        watcher.join()  # on the event loop's own thread: it stands still
        monkeypatch.setattr(health, "DEAD_SECONDS", 0.0)
        watcher = threading.Thread(target=look, args=("healthz dead", "metrics dead"))
        watcher.start()
        watcher.join()

    watched(model, story)
    assert [answers[f"{name} before"][0] for name in ("readyz", "healthz")] == [200, 200]
    assert (answers["readyz blocked"][0], answers["healthz blocked"][0]) == (503, 200)
    assert answers["readyz blocked"][1] == "application/problem+json"
    assert "the event loop has not turned" in json.loads(answers["readyz blocked"][2])["detail"]
    assert answers["healthz dead"][0] == 503
    assert "sparselane_ready 0.0" in answers["metrics dead"][2]


def test_a_loop_that_was_held_up_shows_for_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fake.model(tmp_path, CLS)
    monkeypatch.setattr(health, "BEAT_SECONDS", 0.01)
    pages: list[str] = []

    async def story(_: Any, port: int) -> None:
        await asyncio.sleep(0.02)
        time.sleep(0.06)  # on the event loop's own thread
        await asyncio.sleep(0.02)
        pages.append((await asyncio.to_thread(get, port, "/metrics"))[2])

    watched(model, story)
    (line,) = (line for line in pages[0].splitlines() if line.startswith("sparselane_event_loop_lag_seconds_sum "))
    assert float(line.split()[1]) >= 0.04


def test_an_engine_that_does_not_return_and_a_queue_that_ended_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, formula = fake.model(tmp_path, CLS)

    async def story(app: Any, port: int) -> None:
        import httpx

        monkeypatch.setattr(health, "STUCK_SECONDS", 0.05)
        formula.gate.clear()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            asked = asyncio.ensure_future(http.post(f"/v1/{CLS}", json={"inputs": "a"}))
            await fake.wait_until(formula.started.is_set)
            await asyncio.sleep(0.1)
            status, _, body = await asyncio.to_thread(get, port, "/healthz")
            assert status == 503
            assert re.fullmatch(r"a call of the engine has not returned for \d+ s", json.loads(body)["detail"])
            assert (await http.get("/healthz")).status_code == 503, "the main port says the same"
            formula.gate.set()
            assert (await asked).status_code == 200
            assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200
            (batcher,) = (task for task in asyncio.all_tasks() if task.get_name() == "batcher")
            batcher.cancel()
            await asyncio.sleep(0.01)
            status, _, body = await asyncio.to_thread(get, port, "/readyz")
            assert (status, json.loads(body)["detail"]) == (503, "the queue is not served any more")

    watched(model, story)


def test_a_model_that_failed_is_named_and_nobody_is_killed_for_it(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, CLS)

    async def story(_: Any, port: int) -> None:
        status, _, body = await asyncio.to_thread(get, port, "/readyz")
        assert (status, json.loads(body)["detail"]) == (503, "qa: ChecksumError: x")
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200
        assert 'sparselane_model_ready{model="qa"} 0.0' in (await asyncio.to_thread(get, port, "/metrics"))[2]

    watched(model, story, {"qa": "ChecksumError: x"})


def test_clients_that_say_nothing_or_hang_up_hold_up_nobody(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, CLS)

    async def story(_: Any, port: int) -> None:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        rude = socket.create_connection(("127.0.0.1", port))
        rude.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        rude.close()
        began = time.perf_counter()
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200
        assert time.perf_counter() - began < 30, "it waited for the silent ones"
        for client in silent:
            client.close()

    watched(model, story)


def talk(port: int, data: bytes) -> bytes:
    """Send bytes and read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /readyz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz?verbose=1 HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /admin HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"POST /readyz HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"get /readyz HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET /readyz HTTP/1.1\r\nx: " + b"a" * probes.MOST_HEAD_BYTES, None),
    ],
)
def test_what_is_asked_and_what_is_not(tmp_path: Path, data: bytes, status: int | None) -> None:
    model, _ = fake.model(tmp_path, CLS)

    async def story(_: Any, port: int) -> None:
        with contextlib.suppress(ConnectionResetError):  # it may hang up while we send
            received = await asyncio.to_thread(talk, port, data)
            assert (int(received.split()[1]) if received else None) == status
            if status:
                head, _, body = received.partition(b"\r\n\r\n")
                assert f"content-length: {len(body)}\r\n".encode() in head
                assert b"connection: close" in head
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200

    watched(model, story)


@pytest.mark.parametrize("path", ["/readyz", "/healthz", "/admin"])
def test_head_gets_the_head_of_what_get_gets(tmp_path: Path, path: str) -> None:
    model, _ = fake.model(tmp_path, CLS)

    async def story(_: Any, port: int) -> None:
        heads, bodies = [], []
        for method in ("GET", "HEAD"):
            answer = await asyncio.to_thread(talk, port, f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            head, end, body = answer.partition(b"\r\n\r\n")
            assert end
            heads.append([line for line in head.split(b"\r\n") if not line.startswith(b"date: ")])
            bodies.append(body)
        assert heads[0] == heads[1]
        assert bodies[0] and not bodies[1]

    watched(model, story)


def test_a_request_in_pieces_is_read(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, CLS)

    async def story(_: Any, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in b"GET /healthz HTTP/1.1\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()

    watched(model, story)


def test_who_does_not_read_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fake.model(tmp_path, CLS)
    page = b"#" * 10_000_000
    monkeypatch.setattr(health.Health, "page", lambda _: page)

    async def story(_: Any, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as lazy:
            lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200
            assert await asyncio.to_thread(get, port, "/metrics") == (200, probes.CONTENT_TYPE_LATEST, page.decode())

    watched(model, story)


def test_a_page_is_made_in_one_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fake.model(tmp_path, CLS)
    seen: list[float] = []

    def page(_: Any) -> bytes:
        seen.append(sys.getswitchinterval())
        raise ZeroDivisionError  # it is given back even then

    monkeypatch.setattr(health.Health, "page", page)
    monkeypatch.setattr(probes, "PATIENCE_SECONDS", 0.1)

    async def story(_: Any, port: int) -> None:
        before = sys.getswitchinterval()
        await asyncio.to_thread(talk, port, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert seen == [pytest.approx(probes.UNINTERRUPTED_SECONDS)]
        assert sys.getswitchinterval() == before

    watched(model, story)


def test_the_oldest_of_too_many_clients_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fake.model(tmp_path, CLS)
    monkeypatch.setattr(probes, "MOST_CLIENTS", 3)

    async def story(_: Any, port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200
        async with asyncio.timeout(30):
            assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()

    watched(model, story)


def test_a_client_that_says_nothing_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fake.model(tmp_path, CLS)
    monkeypatch.setattr(probes, "PATIENCE_SECONDS", 0.1)

    async def story(_: Any, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()

    watched(model, story)


def test_a_defect_costs_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fake.model(tmp_path, CLS)
    monkeypatch.setattr(probes, "PATIENCE_SECONDS", 0.1)

    def broken(_: Any) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(health.Health, "page", broken)

    async def story(_: Any, port: int) -> None:
        assert await asyncio.to_thread(talk, port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200

    watched(model, story)
