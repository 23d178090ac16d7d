"""Health over real sockets: answered while the event loop stands still, and it says so."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import health
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
            with bind("127.0.0.1", 0) as listener, Probes(listener, app.state.health) as probes:
                probes.listen()
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
            assert (status, json.loads(body)["detail"]) == (503, "a call of the engine has not returned for 0 s")
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
