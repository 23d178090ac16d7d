"""A request that cannot be in time is refused before its body is read; one that is not in time is cut off."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.models import Model, Models
from tests.service import fake
from tests.service.fake import Formula

CLS = "text-classification"
PATH = f"/v1/{CLS}"


@pytest.fixture
def served(tmp_path: Path) -> tuple[Model, Formula]:
    return fake.model(tmp_path, CLS)


def outcome(page: str, kind: str, model: str = "text") -> float:
    name = f'sparselane_requests_total{{model="{model}",outcome="{kind}",task="{CLS}"}} '
    (line,) = (line for line in page.splitlines() if line.startswith(name))
    return float(line.split()[-1])


def test_what_is_not_answered_in_time_is_a_504_and_its_work_is_dropped(served: tuple[Model, Formula]) -> None:
    model, formula = served

    async def conversation(http: httpx.AsyncClient) -> None:
        formula.gate.clear()
        first = asyncio.ensure_future(http.post(PATH, json={"inputs": "a"}))
        await fake.wait_until(formula.started.is_set)
        headers = {"x-request-timeout-ms": "300"}
        late = await http.post(PATH, json={"inputs": ["a b"] * 3}, headers=headers)
        assert (late.status_code, late.json()["title"]) == (504, "Deadline passed")
        assert "X-Request-Timeout-Ms" in late.json()["detail"]
        page = (await http.get("/metrics")).text
        assert outcome(page, "timeout") == 1
        assert "sparselane_inflight_requests 1.0" in page
        formula.gate.set()
        assert (await first).status_code == 200
        assert formula.batches == [[3]], "the late one was never run"

    fake.talk([model], conversation)


def test_what_has_no_chance_is_refused_before_its_body_is_read(served: tuple[Model, Formula]) -> None:
    model, formula = served
    app = create_app(fake.settings(max_queue_tokens=10**6), Models({model.name: model}, {}))
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    async def story() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t") as http,
        ):
            formula.gate.clear()
            asked = [asyncio.ensure_future(http.post(PATH, json={"inputs": ["a " * 25] * 100})) for _ in range(8)]
            await fake.wait_until(lambda: b"sparselane_queue_tokens 21600.0" in app.state.health.page())
            await asyncio.sleep(1.0)  # so that a small one can overtake none of them
            headers = [(b"content-type", b"application/json"), (b"x-request-timeout-ms", b"100")]
            scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
            await app(scope, receive, send)
            formula.gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 8

    asyncio.run(story())
    assert sent[0]["status"] == 503
    assert int(dict(sent[0]["headers"])[b"retry-after"]) >= 1
    assert "this may need" in json.loads(sent[1]["body"])["detail"]
    assert outcome(app.state.health.page().decode(), "overloaded", "none") == 1


def test_a_body_that_does_not_come_is_a_408(served: tuple[Model, Formula]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        async def slow() -> Any:
            yield b'{"inputs":'
            await asyncio.sleep(60)

        headers = {"content-type": "application/json", "x-request-timeout-ms": "50"}
        response = await http.post(PATH, content=slow(), headers=headers)
        assert (response.status_code, response.json()["title"]) == (408, "Request timeout")

    fake.talk([served[0]], conversation)


@pytest.mark.parametrize("header", [{"x-request-timeout-ms": "soon"}, {"x-priority": "urgent"}])
def test_a_wrong_header_is_a_422(served: tuple[Model, Formula], header: dict[str, str]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        response = await http.post(PATH, json={"inputs": "a"}, headers=header)
        assert response.status_code == 422
        assert response.json()["errors"][0]["value"] == next(iter(header.values()))
        assert outcome((await http.get("/metrics")).text, "invalid", "none") == 1
        assert (await http.get("/healthz", headers=header)).status_code == 200, "only requests to models read them"

    fake.talk([served[0]], conversation)


def test_the_settings_have_the_default(served: tuple[Model, Formula]) -> None:
    model, formula = served

    async def conversation(http: httpx.AsyncClient) -> int:
        formula.gate.clear()
        response = await http.post(PATH, json={"inputs": "a"})
        formula.gate.set()
        return response.status_code

    assert fake.talk([model], conversation, request_timeout_ms=50) == 504


def test_both_lanes_give_the_same_answers(served: tuple[Model, Formula]) -> None:
    async def conversation(http: httpx.AsyncClient) -> list[Any]:
        lanes = ("interactive", "batch")
        return [(await http.post(PATH, json={"inputs": "a"}, headers={"x-priority": lane})).json() for lane in lanes]

    one, other = fake.talk([served[0]], conversation)
    assert one == other


def test_the_door_answers_as_the_application_would(served: tuple[Model, Formula]) -> None:
    """What is refused before the application hears of it has an id, a reason, CORS headers, and is counted."""
    model, formula = served
    app = create_app(fake.settings(cors_origins="https://a.example"), Models({model.name: model}, {}))
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    async def unasked(*_: Any) -> None:
        raise AssertionError("the application was asked")

    async def story() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t") as http,
        ):
            formula.gate.clear()
            asked = [asyncio.ensure_future(http.post(PATH, json={"inputs": ["a " * 25] * 10})) for _ in range(8)]
            await fake.wait_until(lambda: len(formula.batches) and b"queue_tokens 2160.0" in app.state.health.page())
            headers = [(b"origin", b"https://a.example"), (b"x-request-timeout-ms", b"1"), (b"x-request-id", b"seven")]
            scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "state": {}, "scheme": "http"}
            chosen: list[Any] = []
            app.state.door.come(scope, unasked, chosen.append)
            await chosen[0](scope, receive, send)
            formula.gate.set()
            await asyncio.gather(*asked)

    asyncio.run(story())
    start, body = sent
    given = {name.decode(): value.decode() for name, value in start["headers"]}
    assert start["status"] == 503
    assert int(given["retry-after"]) >= 1
    assert (given["x-request-id"], given["access-control-allow-origin"]) == ("seven", "https://a.example")
    assert json.loads(body["body"])["request_id"] == "seven"
    assert outcome(app.state.health.page().decode(), "overloaded", "none") == 1


def test_a_wrong_header_is_looked_at_behind_the_door_where_the_keys_are(served: tuple[Model, Formula]) -> None:
    app = create_app(fake.settings(), Models({served[0].name: served[0]}, {}))
    asked: list[str] = []
    chosen: list[Any] = []

    async def application(*_: Any) -> None:
        asked.append("the application")

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"x-priority", b"urgent")], "state": {}}
    app.state.door.come(scope, application, chosen.append)
    asyncio.run(chosen[0](scope, None, None))
    assert asked == ["the application"]
