"""Refusals from the bytes of a request: the application's answers, on real sockets, however the bytes are cut."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from service import deadlines, glance
from service.app import create_app
from service.connection import protocol
from service.errors import OverloadedError
from service.glance import HEADS, MOST_HEAD_BYTES, Glance
from service.keys import new_key
from service.metrics import Metrics
from service.middleware import Lifecycle
from service.models import Models
from service.pipeline import TASKS
from service.settings import Settings
from tests.service import fake

CLS = "text-classification"
PATH = f"/v1/{CLS}"
BODY = b'{"inputs": "a"}'
# Seconds for a head or a body here.
PATIENCE = 0.5


def request(path: str = PATH, *lines: str, body: bytes = BODY, method: str = "POST", version: str = "1.1") -> bytes:
    """Return a request whose deadline cannot be met while others wait."""
    head = [f"{method} {path} HTTP/{version}", "host: x", "content-type: application/json", "x-request-timeout-ms: 10"]
    return "\r\n".join([*head, f"content-length: {len(body)}", *lines, "\r\n"]).encode() + body


PATIENT = request().replace(b"timeout-ms: 10", b"timeout-ms: 600000")
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


class Served:
    """An app behind real sockets whose engine is held up; `seen` are the requests that its door was asked about."""

    def __init__(self, app: Any, port: int, go_on: Callable[[], None]) -> None:
        self.app = app
        self.port = port
        self.go_on = go_on
        self.seen: list[str] = []
        come = app.state.door.come

        def noted(scope: Any, application: Any, start: Callable[[Any], None]) -> None:
            self.seen.append(scope["path"])
            come(scope, application, start)

        app.state.door.come = noted

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        yield reader, writer
        writer.close()

    async def ask(self, *requests: bytes) -> list[tuple[int, dict[str, str], bytes]]:
        """Send requests over one connection, and read as many answers."""
        async with self.connection() as (reader, writer):
            writer.write(b"".join(requests))
            return [await answer(reader) for _ in requests]


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(30):
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def overloaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, story: Callable[[Served], Coroutine[Any, Any, None]], **limits: Any
) -> None:
    """Tell `story` with a server that has refused a request, and whose engine stands still meanwhile."""
    monkeypatch.setattr(deadlines, "SHUT_SECONDS", inf)
    model, formula = fake.model(folder, CLS)
    app = create_app(fake.settings(max_queue_tokens=10**6, **limits), Models({model.name: model}, {}))

    async def run() -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            ws="none",
            http=protocol(PATIENCE, app.state.door, app.state.glance),
            timeout_keep_alive=75,
        )
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        made = config.http_protocol_class
        listening = await loop.create_server(lambda: made(config, state, {}), "127.0.0.1", 0)  # type: ignore[call-arg, arg-type, return-value]
        async with (
            listening,
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http,
        ):
            formula.gate.clear()
            headers = {"x-request-timeout-ms": "600000", "x-api-key": KEY}
            work = {"json": {"inputs": ["a " * 25] * 100}, "headers": headers}
            asked = [asyncio.ensure_future(http.post(PATH, **work)) for _ in range(8)]
            try:
                await fake.wait_until(lambda: b"sparselane_queue_tokens 21600.0" in app.state.health.page())
                # At first a small one may overtake them.
                await fake.wait_until(lambda: app.state.door.refusal({"x-request-timeout-ms": "100"}, perf_counter()))
                app.state.door._refused_at = -inf
                served = Served(app, listening.sockets[0].getsockname()[1], formula.gate.set)
                ((status, _, _),) = await served.ask(request())
                assert (status, served.seen) == (503, [PATH]), "the first refusal takes the usual way"
                served.seen.clear()
                await story(served)
            finally:
                formula.gate.set()
            assert [one.status_code for one in await asyncio.gather(*asked)] == [200] * 8

    asyncio.run(run())


KEY, KEYS = new_key("alice", tokens_per_minute=10**9)


def refused(served: Served, task: str) -> float:
    name = f'sparselane_requests_total{{model="none",outcome="overloaded",task="{task}"}} '
    (line,) = (line for line in served.app.state.health.page().decode().splitlines() if line.startswith(name))
    return float(line.split()[-1])


@pytest.mark.parametrize("given", ["seven", "", "not an id!", "i" * 128, "i" * 129])
def test_the_answer_is_the_applications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    async def story(served: Served) -> None:
        asked = request(PATH, f"x-request-id: {given}")
        ((status, headers, body),) = await served.ask(asked)
        assert served.seen == [], "it was not refused at a glance"
        monkeypatch.setattr(served.app.state.door, "_refused_at", -inf)
        ((usual_status, usual_headers, usual_body),) = await served.ask(asked)
        assert served.seen == [PATH], "it was not refused in the usual way"
        assert (status, usual_status) == (503, 503)
        assert headers.keys() - {"date"} == usual_headers.keys() - {"date"}
        assert headers["content-type"] == usual_headers["content-type"] == "application/problem+json"
        assert int(headers["retry-after"]) >= 1
        problem, usual = json.loads(body), json.loads(usual_body)
        assert list(problem) == list(usual)
        for one, its in ((problem, headers), (usual, usual_headers)):
            assert one["request_id"] == its["x-request-id"]
            assert (one["request_id"] == given) is (given in ("seven", "i" * 128))
            assert re.fullmatch(r"seven|i{128}|[0-9a-f]{32}", one.pop("request_id"))
            # How long it would take is another moment's.
            for name in ("detail", "error"):
                one[name], changes = re.subn(r"need \d+\.\d s", "need ? s", one[name])
                assert changes == 1
        assert problem == usual

    overloaded(tmp_path, monkeypatch, story)


def test_refusals_are_counted_by_task_and_logged_as_the_applications(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trace = "0af7651916cd43dd8448eb211c80319c"
    lines = ["x-request-id: seven", f"traceparent: 00-{trace}-b7ad6b7169203331-01", "x-amzn-trace-id: Root=1-2"]

    async def story(served: Served) -> None:
        before = [refused(served, task) for task in (CLS, "none")]
        caplog.clear()
        paths = (f"{PATH}?secret=1", "/models/text", "/", "/v2/models/text/infer", "/v1/nothing")
        for path in paths:
            assert (await served.ask(request(path, *lines)))[0][0] == 503
        assert served.seen == []
        assert [refused(served, task) for task in (CLS, "none")] == [before[0] + 1, before[1] + 4]
        own = [record for record in caplog.records if record.name == "sparselane"]
        assert [record.getMessage() for record in own] == [f"POST {path.partition('?')[0]} 503" for path in paths]
        monkeypatch.setattr(served.app.state.door, "_refused_at", -inf)
        await served.ask(request(PATH, *lines))
        fields, usual = (vars(record)["fields"] for record in (own[0], caplog.records[-1]))
        assert fields.pop("ms") >= 0
        assert usual.pop("ms") >= 0
        assert fields == usual
        assert (fields["trace_id"], fields["outcome"]) == (trace, "overloaded")

    overloaded(tmp_path, monkeypatch, story)


ODD = {
    "chunked": request().replace(b"content-length: 15", b"transfer-encoding: chunked"),
    "expect": request(PATH, "expect: 100-continue"),
    "close": request(PATH, "connection: close"),
    "upgrade": request(PATH, "connection: upgrade", "upgrade: websocket"),
    "HTTP/1.0": request(version="1.0"),
    "GET": request(method="GET"),
    "two lengths": request(PATH, "content-length: 15"),
    "other lengths": request(PATH, "content-length: 3"),
    "no length": request().replace(b"content-length: 15", b"content-length: ten"),
    "signed length": request().replace(b"content-length: 15", b"content-length: +15"),
    "space before the colon": request(PATH, "x : y"),
    "folded": request(PATH, "x: y\r\n z"),
    "bare line feed": request(PATH, "x: y\nz: 1"),
    "control character": request(PATH, "x: \x01"),
    "escaped path": request("/v1/text%2Dclassification"),
    "full address": request("http://x/v1/text-classification"),
    "long head": request(PATH, f"x: {'y' * MOST_HEAD_BYTES}"),
    "a probe": request("/healthz"),
    "administration": request("/admin/reload"),
    "not begun": b"\r\n" + request(),
    "half a head": request()[:60],
    "wrong deadline": request().replace(b"timeout-ms: 10", b"timeout-ms: soon"),
    "wrong priority": request(PATH, "x-priority: urgent"),
    "time enough": PATIENT,
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_odd_or_may_be_in_time_takes_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes
) -> None:
    async def story(served: Served) -> None:
        look = served.app.state.glance
        for _ in range(2):  # the second time from memory
            assert look.refusal(odd, 0, ()) is None
            assert look.refusal(b"..." + request() + odd, 3, ()) is not None

    overloaded(tmp_path, monkeypatch, story)


def test_it_agrees_with_the_parser_on_where_a_request_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes in one piece, and in many random ones: the same answers in the same order, whoever gives them."""
    usual = [request(PATH, "connection: keep-alive", "x-padding: " + "y" * n) for n in range(5)]
    mixed = [*usual, HEALTH, request("/nothing"), request(body=b"x" * 5000), HEALTH, request(body=b""), *usual, HEALTH]
    expected = [503] * 5 + [200, 404, 503, 200, 503] + [503] * 5 + [200]
    random = Random(5)

    async def story(served: Served) -> None:
        assert [status for status, _, _ in await served.ask(*mixed)] == expected
        assert served.seen.count(PATH) < expected.count(503), "none was refused at a glance"
        for _ in range(30):
            data, pieces = b"".join(mixed), []
            while data:
                size = random.choice((1, 7, 100, 300, 3000))
                pieces, data = [*pieces, data[:size]], data[size:]
            async with served.connection() as (reader, writer):
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                assert [(await answer(reader))[0] for _ in expected] == expected

    overloaded(tmp_path, monkeypatch, story)


def test_a_refusal_waits_for_the_answer_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(served: Served) -> None:
        async with served.connection() as (reader, writer):
            writer.write(PATIENT)
            await fake.wait_until(lambda: served.seen)
            writer.write(request())
            await asyncio.sleep(0.05)
            served.go_on()
            assert (await answer(reader))[0] == 200
            assert (await answer(reader))[0] in (200, 503)  # there may be time now

    overloaded(tmp_path, monkeypatch, story)


def test_a_refused_body_that_comes_later_is_dropped_and_the_next_request_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(served: Served) -> None:
        async with served.connection() as (reader, writer):
            for _ in range(2):
                asked = request(body=b"x" * 100_000)
                writer.write(asked[:1000])
                assert (await answer(reader))[0] == 503, "refused before its body came"
                writer.write(asked[1000:] + HEALTH)
                assert (await answer(reader))[0] == 200
            assert served.seen == ["/healthz"] * 2

    overloaded(tmp_path, monkeypatch, story)


def test_what_is_left_of_a_refused_body_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(served: Served) -> None:
        async with served.connection() as (reader, writer):
            writer.write(HEALTH)
            assert (await answer(reader))[0] == 200
            writer.write(request(body=b"x" * 1000)[:-1])
            assert (await answer(reader))[0] == 503
            async with asyncio.timeout(30):
                assert await reader.read() == b"", "closed without another answer"
        assert served.seen == ["/healthz"]

    overloaded(tmp_path, monkeypatch, story)


def test_a_refused_client_may_think_between_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(served: Served) -> None:
        async with served.connection() as (reader, writer):
            for _ in range(2):
                writer.write(request())
                assert (await answer(reader))[0] == 503
                await asyncio.sleep(2 * PATIENCE)
            writer.write(HEALTH)
            assert (await answer(reader))[0] == 200

    overloaded(tmp_path, monkeypatch, story)


@pytest.mark.parametrize("first", [b"", HEALTH])
def test_an_idle_connection_is_closed_by_its_last_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    async def story(served: Served) -> None:
        made = []
        original = protocol(0, None).connection_made  # type: ignore[arg-type]

        def noted(self: Any, transport: Any) -> None:
            self.timeout_keep_alive = 100
            made.append(self)
            original(self, transport)

        monkeypatch.setattr("service.connection.PatientProtocol.connection_made", noted)
        async with served.connection() as (reader, writer):
            if first:
                writer.write(first)
                await answer(reader)
            for _ in range(3):
                writer.write(request())
                assert (await answer(reader))[0] == 503
                await fake.jump(40)
            (connection,) = made
            assert not connection.transport.is_closing(), "100 s after its first answer, not after its last"
            await fake.jump(70)
            async with asyncio.timeout(30):
                assert await reader.read() == b""

    overloaded(tmp_path, monkeypatch, story)


def test_no_key_is_looked_at_and_no_quota_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal tells nothing that a key protects; the same without one, with a wrong one and with a right one."""
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)

    async def story(served: Served) -> None:
        for lines in ([], ["x-api-key: wrong"], [f"authorization: Bearer {KEY}"]):
            ((status, headers, _),) = await served.ask(request(PATH, *lines))
            assert (status, "ratelimit" in headers) == (503, False)
        assert served.seen == []
        ((status, _, _),) = await served.ask(request(PATH, "x-priority: urgent"))
        assert status == 401, "what is wrong waits for the keys"

    overloaded(tmp_path, monkeypatch, story, keys_file=path)


def test_pages_of_other_origins_get_their_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(served: Served) -> None:
        ((status, headers, _),) = await served.ask(request(PATH, "origin: https://a.example"))
        assert (status, headers["access-control-allow-origin"]) == (503, "https://a.example")
        assert served.seen == [PATH]
        await served.ask(request())
        assert served.seen == [PATH], "without an origin there is nothing to add"

    overloaded(tmp_path, monkeypatch, story, cors_origins="https://a.example")


def test_a_server_that_stops_closes_connections_in_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(served: Served) -> None:
        served.app.state.lifecycle.stopping = True
        ((status, headers, _),) = await served.ask(request())
        assert (status, headers["connection"], served.seen) == (503, "close", [PATH])

    overloaded(tmp_path, monkeypatch, story)


def test_spans_are_made_of_all_requests(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, CLS)
    models = Models({model.name: model}, {})
    endpoint = {"otlp_endpoint": "http://127.0.0.1:9/v1/traces"}
    assert create_app(fake.settings(), models).state.glance is not None
    assert create_app(Settings(**{**fake.settings().model_dump(), **endpoint}), models).state.glance is None


class Counting:
    """A door that refuses all and counts how often it is asked."""

    shut = True

    def __init__(self) -> None:
        self.asked = 0

    def refusal(self, _: Any, now: float) -> OverloadedError:
        self.asked += 1
        return OverloadedError(f"refused at {now}", retry_after=self.asked)


def test_a_refusal_holds_for_a_moment_for_those_with_the_same_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(glance, "perf_counter", lambda: now[0])
    door = Counting()
    look = Glance(door, Metrics(Models({}, {}), TASKS), TASKS, Lifecycle(), origins=False)  # type: ignore[arg-type]
    other = request(PATH, "x-priority: batch")
    for asked, count in ((request(), 1), (request("/models/a"), 1), (other, 2), (request(), 2)):
        found = look.refusal(asked, 0, [(b"date", b"today")])
        assert found is not None
        assert door.asked == count
        assert b"\r\ndate: today\r\n" in found[0]
        assert found[1] == len(asked)
    now[0] += glance.SAME_SECONDS
    found = look.refusal(other, 0, ())
    assert door.asked == 3
    assert found is not None
    assert b"retry-after: 3\r\n" in found[0]
    assert b"refused at 100.005" in found[0]


def test_heads_are_remembered_up_to_a_number() -> None:
    look = Glance(Counting(), Metrics(Models({}, {}), TASKS), TASKS, Lifecycle(), origins=False)  # type: ignore[arg-type]
    for number in range(3 * HEADS):
        assert look.refusal(request(PATH, f"x-request-id: {number}"), 0, ()) is not None
    assert len(look._heads) <= HEADS
