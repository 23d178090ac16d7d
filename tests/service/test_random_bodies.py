"""10,000 bodies that no one meant to send, over every operation that takes one: an answer or a problem, no defect."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from service.app import create_app
from service.models import Models
from service.pipeline import TASKS
from tests.service import fake

BODIES = 10_000
SEEDS = [
    b'{"inputs": {"question": "who was in london?", "context": "john was in paris. mary was in london."}}',
    b'{"inputs": ["a good film", "a bad film"], "parameters": {"top_k": 1}, "model": "text"}',
    b'{"inputs": "john and mary was in london", "parameters": {"aggregation": "max", "ignore_labels": []}}',
    b'{"inputs": [{"question": "who", "context": "mary"}], "parameters": {"top_k": 2, "stride": 3}}',
    b'{"inputs": [], "parameters": {}, "model": null}',
]
PIECES = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\ud800", b"\\u0000"),
    *(b"null", b"true", b"NaN", b"Infinity", b"-1", b"0.5", b"1e999", b"9" * 400, b"[" * 3000),
    *(b"\xff", b"\x00", b"\xef\xbb\xbf", "😀".encode(), "\u202e".encode(), b"a " * 2000, b'"__proto__"'),
    *(b'"inputs"', b'"model"', b'"parameters"', b'"question"', b'"context"', b'"top_k"'),
]  # fmt: skip


def mutant(rng: random.Random) -> bytes:
    """Return a body that was right until a few edits; one in ten is noise from the start."""
    body = bytearray(rng.randbytes(rng.randrange(200)) if rng.random() < 0.1 else rng.choice(SEEDS))
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(body) + 1)
        match rng.randrange(5):
            case 0:
                body[place:place] = rng.choice(PIECES)
            case 1:
                del body[place : place + rng.randrange(1, 20)]
            case 2:
                body[place : place + 1] = rng.randbytes(1)
            case 3:
                other = rng.choice(SEEDS)
                body[place:] = other[rng.randrange(len(other)) :]
            case 4:
                body[place : place + rng.randrange(8)] = rng.choice(PIECES)
    return bytes(body)


async def post(app: Any, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Call the app as a server does; an HTTP client would take most of the time of this test."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
    await app({**scope, "query_string": b"", "http_version": "1.1", "scheme": "http"}, receive, send)
    start = sent[0]
    shown = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], shown, b"".join(message.get("body", b"") for message in sent[1:])


def paths(document: dict[str, Any], names: list[str]) -> list[str]:
    """Return the paths that take JSON, with each model's name in place of a parameter."""
    found = []
    for path, item in document["paths"].items():
        if "application/json" in item.get("post", {}).get("requestBody", {}).get("content", {}):
            before, brace, after = path.partition("{")
            found += [before + name + after.partition("}")[2] for name in names] if brace else [path]
    return [path for path in found if "{" not in path]


def test_10_000_random_bodies_bring_no_defect(tmp_path: Path) -> None:
    models = [fake.model(tmp_path, task)[0] for task in TASKS]
    app = create_app(fake.settings(), Models({model.name: model for model in models}, {}))
    rng = random.Random(5)
    statuses: Counter[int] = Counter()

    async def story() -> None:
        async with app.router.lifespan_context(app):
            everywhere = paths(app.openapi(), [model.name for model in models])
            assert len(everywhere) >= len(TASKS)
            for number in range(BODIES):
                path, body = everywhere[number % len(everywhere)], mutant(rng)
                status, headers, answer = await post(app, path, body)
                statuses[status] += 1
                assert status < 500, (path, body, answer)
                parsed = json.loads(answer)
                if status >= 400:
                    assert headers["content-type"] == "application/problem+json", (path, body)
                    assert parsed["detail"] and parsed["request_id"], (path, body)

    asyncio.run(story())
    assert statuses.total() == BODIES
    assert min(statuses[status] for status in (200, 400, 422)) > BODIES // 50, statuses
