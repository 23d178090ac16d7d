"""Requests leave nothing that only Python's search for cycles frees: it is rare here, and a body may be megabytes."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.app import create_app
from service.call import Call
from service.connection import protocol
from service.errors import OverloadedError
from service.models import Models
from service.pipeline import TASKS
from tests.service import fake

TIMES = 20
QA, CLS, NER = "question-answering", "text-classification", "token-classification"
GOOD = {QA: {"question": "who", "context": "mary had a lamb"}, CLS: "a good film", NER: "mary had a lamb"}


def post(path: str, body: Any, *lines: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(data)}"]
    return "\r\n".join([*head, *lines, "\r\n"]).encode() + data


REQUESTS = {
    **{f"200 {task}": post(f"/v1/{task}", {"inputs": item}) for task, item in GOOD.items()},
    "200 in a thread": post(f"/v1/{NER}", {"inputs": "mary had a lamb " * 300}),
    "200 Hugging Face": post("/models/text", {"inputs": "a good film"}),
    "200 probe": b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
    "400 no JSON": post(f"/v1/{CLS}", b"{" * 100),
    "404 path": post("/v1/nothing", {}),
    "404 model": post(f"/v1/{CLS}", {"inputs": "a", "model": "other"}),
    "405": b"DELETE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "413 body": post(f"/v1/{CLS}", {"inputs": "a" * 5000}),
    "413 inputs": post(f"/v1/{CLS}", {"inputs": ["a"] * 200}),
    "415": post(f"/v1/{CLS}", {"inputs": "a"}).replace(b"application/json", b"text/plain"),
    "422 field": post(f"/v1/{CLS}", {"inputs": "a", "nothing": 1}),
    "422 header": post(f"/v1/{CLS}", {"inputs": "a"}, "x-priority: urgent"),
    "503": post(f"/v1/{CLS}", {"inputs": "a"}, "x-request-timeout-ms: 7"),
}


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    (length,) = (line for line in head.split("\r\n") if line.startswith("content-length: "))
    await reader.readexactly(int(length.removeprefix("content-length: ")))
    return head.split()[1]


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_leaves_no_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    models = [fake.model(tmp_path, task)[0] for task in TASKS]
    app = create_app(
        fake.settings(max_body_bytes=4000 + 1000 * ("thread" in kind)), Models({m.name: m for m in models}, {})
    )
    found: list[Any] = []
    monkeypatch.setattr(app.state.door, "_check", _hurried(app.state.door._check))

    async def story() -> None:
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", ws="none", http=protocol(30, app.state.door, app.state.glance)
        )
        config.load()
        state, loop, made = ServerState(), asyncio.get_running_loop(), config.http_protocol_class
        listening = await loop.create_server(lambda: made(config, state, {}), "127.0.0.1", 0)  # type: ignore[call-arg, arg-type, return-value]
        async with listening, app.router.lifespan_context(app):
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            for _ in range(3):
                assert await ask(reader, writer, REQUESTS[kind]) == kind[:3]
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for _ in range(TIMES):
                    await ask(reader, writer, REQUESTS[kind])
                gc.collect()
                found.extend(gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            writer.close()

    asyncio.run(story())
    # The heart beats now and then, and pytest is there, too.
    assert len(found) < TIMES, Counter(type(one).__qualname__ for one in found)


def _hurried(check: Callable[[Call], None]) -> Callable[[Call], None]:
    def hurried(call: Call) -> None:
        if call.deadline - perf_counter() < 0.008:
            raise OverloadedError("no time", retry_after=1)
        check(call)

    return hurried
