"""A request that cannot be in time is refused before its body is read; one that is not in time is cut off."""

import asyncio
import json
import logging
from contextlib import ExitStack
from pathlib import Path
from time import time_ns
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app import create_app
from service.deadlines import ARRIVED, Door
from service.front import AT_ONCE
from service.models import Model, Models
from service.tracing import Tracing
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
        patient, hurried = ({"x-request-timeout-ms": str(seconds * 1000)} for seconds in (600, 300))
        first = asyncio.ensure_future(http.post(PATH, json={"inputs": "a"}, headers=patient))
        await fake.wait_until(formula.started.is_set)
        waiting = asyncio.ensure_future(http.post(PATH, json={"inputs": ["a b"] * 3}, headers=hurried))
        app = http.app  # type: ignore[attr-defined]
        await fake.wait_until(lambda: b"sparselane_queue_tokens 15.0" in app.state.health.page())
        await fake.jump(400)
        late = await waiting
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
        asked = asyncio.ensure_future(http.post(PATH, json={"inputs": "a"}))
        await fake.wait_until(formula.started.is_set)
        await fake.jump(200)
        assert not asked.done(), "it has 300 s"
        await fake.jump(200)
        response = await asked
        formula.gate.set()
        return response.status_code

    assert fake.talk([model], conversation, request_timeout_ms=300_000) == 504


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


class Request:
    """One that comes to a door: what the door chose to answer it with, and what was sent."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        every = [(b"content-type", b"application/json"), *headers]
        self.scope: dict[str, Any] = {"type": "http", "method": "POST", "path": PATH, "headers": every, "state": {}}
        self.scope |= {"scheme": "http", "query_string": b""}
        self.chosen: list[Any] = []
        self.sent: list[Any] = []
        self._body = [b'{"inputs": "a"}']

    def come(self, door: Door, app: Any) -> None:
        door.come(self.scope, app, self.chosen.append)

    async def receive(self) -> Any:
        if not self._body:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": self._body.pop(), "more_body": False}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def answered(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Let what was chosen answer: status, headers, body."""
        await self.chosen[0](self.scope, self.receive, self.send)
        start, body = self.sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], headers, json.loads(body["body"])


def inflight(app: Any) -> float:
    (line,) = (one for one in app.state.health.page().decode().splitlines() if one.startswith("sparselane_inflight"))
    return float(line.split()[-1])


@pytest.mark.parametrize("wrong", [[], [(b"x-priority", b"urgent")]], ids=["right headers", "wrong headers"])
def test_whose_turn_does_not_come_in_time_is_refused_then(served: tuple[Model, Formula], wrong: Any) -> None:
    limits = fake.settings(request_timeout_ms=300)
    app = create_app(limits, Models({served[0].name: served[0]}, {}))
    app.middleware_stack = app.build_middleware_stack()  # as a server's start does
    door = app.state.door

    async def unasked(*_: Any) -> None:
        raise AssertionError("the application was asked")

    async def story() -> None:
        async with app.router.lifespan_context(app):
            with ExitStack() as stack:
                for _ in range(AT_ONCE):
                    stack.enter_context(door.front.here())
                late = Request(*wrong)
                late.come(door, unasked)
                assert late.chosen == [], "it waits"
                assert inflight(app) == 1, "and that can be seen"
                assert not door.shut
                await fake.wait_until(lambda: late.chosen)
                status, headers, body = await late.answered()
            assert (status, body["title"]) == (503, "Overloaded")
            assert int(headers["retry-after"]) >= 1
            assert "its turn did not come" in body["detail"]
            assert len(late.chosen) == 1, "once"
            assert door.shut
            assert inflight(app) == 0
            assert outcome(app.state.health.page().decode(), "overloaded", "none") == 1

    asyncio.run(story())


def test_the_wait_at_the_door_is_a_part_of_a_requests_time(
    served: tuple[Model, Formula], caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, the metrics, the answer and the span."""
    caplog.set_level(logging.INFO)
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    app = create_app(fake.settings(), Models({served[0].name: served[0]}, {}), tracing)

    async def story() -> dict[str, str]:
        async with app.router.lifespan_context(app):
            with ExitStack() as stack:
                for _ in range(AT_ONCE):
                    stack.enter_context(app.state.door.front.here())
                request = Request()
                request.come(app.state.door, app)
                assert request.chosen == []
                request.scope["state"][ARRIVED] -= 5  # so long ago
            status, headers, _ = await request.answered()
            assert status == 200
            return headers

    before = time_ns()
    headers = asyncio.run(story())
    door, *others = headers["server-timing"].split(", ")
    name, milliseconds = door.split(";dur=")
    assert (name, float(milliseconds) >= 5000) == ("door", True)
    assert [part.partition(";")[0] for part in others] == ["tokenize", "queue", "infer", "post"]
    (line,) = (vars(record)["fields"] for record in caplog.records if "fields" in vars(record))
    assert line["ms"] >= line["door_ms"] >= 5000
    seconds = f'sparselane_request_duration_seconds_sum{{model="text",task="{CLS}"}} '
    (total,) = (one for one in app.state.health.page().decode().splitlines() if one.startswith(seconds))
    assert float(total.split()[-1]) >= 5
    spans = {one.name: one for one in exporter.get_finished_spans()}
    span, waited = spans[f"POST {PATH}"], spans["door"]
    assert waited.start_time == span.start_time and (waited.end_time or 0) - (waited.start_time or 0) >= 5e9
    assert (waited.end_time or 0) <= (spans["tokenize"].start_time or 0)
    assert (span.end_time or 0) - (span.start_time or 0) >= 5e9
    assert (span.end_time or 0) >= before, "it ends now"
    assert (span.start_time or 0) < before, "and began then"


def test_what_does_not_come_through_the_door_has_no_wait_there(
    served: tuple[Model, Formula], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def conversation(http: httpx.AsyncClient) -> None:
        response = await http.post(PATH, json={"inputs": "a"})
        assert "door" not in response.headers["server-timing"]

    fake.talk([served[0]], conversation)
    (line,) = (vars(record)["fields"] for record in caplog.records if "fields" in vars(record))
    assert "door_ms" not in line
