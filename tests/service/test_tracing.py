"""W3C trace context in, OpenTelemetry spans out: to memory, and over OTLP to a collector that really listens."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import time_ns
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import tracing
from service.app import create_app
from service.models import Models
from service.tracing import TraceParent, Tracing, parse
from tests.service import fake

CLS = "text-classification"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_is_read() -> None:
    assert parse(PARENT, "a=1,b=2") == TraceParent(TRACE, SPAN, 1, "a=1,b=2")
    assert parse(f" 00-{TRACE}-{SPAN}-00 ", "") == TraceParent(TRACE, SPAN, 0, "")
    # A later version may go on; what is known of it counts.
    assert parse(f"cc-{TRACE}-{SPAN}-03-more", "") == TraceParent(TRACE, SPAN, 3, "")


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
        "00-" + "x" * 100_000,
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(wrong: str) -> None:
    assert parse(wrong, "") is None


class Collected:
    """An app whose spans stay in memory: those of the last request."""

    def __init__(self, folder: Path) -> None:
        self.model, self.formula = fake.model(folder, CLS)
        self.exporter = InMemorySpanExporter()

    def ask(self, *, path: str = f"/v1/{CLS}", body: Any = None, **headers: str) -> httpx.Response:
        self.exporter = InMemorySpanExporter()
        tracer = Tracing(SimpleSpanProcessor(self.exporter))
        app = create_app(fake.settings(), Models({self.model.name: self.model}, {}), tracer)

        async def story() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://test") as http,
            ):
                if body is None:
                    return await http.get(path, headers=headers)
                return await http.post(path, json=body, headers=headers)

        return asyncio.run(story())

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    return Collected(tmp_path)


def test_a_request_is_a_span_and_its_stages_are_below_it(
    collected: Collected, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = time_ns()
    headers = {"traceparent": PARENT, "tracestate": "vendor=1", "x-request-id": "id-1"}
    assert collected.ask(body={"inputs": "a good film"}, **headers).status_code == 200
    spans = collected.spans()
    request = spans.pop(f"POST /v1/{CLS}")
    assert request.kind is SpanKind.SERVER and request.context is not None and request.parent is not None
    assert f"{request.context.trace_id:032x}-{request.parent.span_id:016x}" == f"{TRACE}-{SPAN}"
    assert request.context.trace_state.get("vendor") == "1"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": f"/v1/{CLS}",
        "url.scheme": "http",
        "sparselane.request_id": "id-1",
        "sparselane.model": "text",
        "sparselane.task": CLS,
        "sparselane.tokens": 5,
        "sparselane.windows": 1,
    }
    assert request.resource.attributes["service.name"] == "sparselane"
    assert list(spans) == ["tokenize", "queue", "infer", "post"]
    at = request.start_time or 0
    assert before <= at
    for span in spans.values():
        assert span.parent is not None and span.parent.span_id == request.context.span_id
        assert at <= (span.start_time or 0) <= (span.end_time or 0) <= (request.end_time or 0)
        at = span.end_time or 0
    (line,) = (vars(record)["fields"] for record in caplog.records if "fields" in vars(record))
    assert line["trace_id"] == TRACE


def test_errors_are_told_apart_and_probes_make_no_spans(collected: Collected) -> None:
    assert collected.ask(path="/healthz").status_code == 200
    assert not collected.spans()
    assert collected.ask(body={"inputs": 1}).status_code == 422
    assert collected.spans()[f"POST /v1/{CLS}"].status.status_code is StatusCode.UNSET
    collected.formula.error = RuntimeError("broken")
    assert collected.ask(body={"inputs": "a"}).status_code == 500
    (span,) = collected.spans().values()
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, "error")


def test_what_the_caller_does_not_sample_is_not_sent(collected: Collected, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert collected.ask(body={"inputs": "a"}, traceparent=PARENT[:-1] + "0").status_code == 200
    assert not collected.spans()
    assert [vars(record)["fields"]["trace_id"] for record in caplog.records if "fields" in vars(record)] == [TRACE]


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector on a port of its own: its address, and what it was sent."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()
        thread.join()


def test_spans_arrive_at_a_collector_when_the_server_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    model, _ = fake.model(tmp_path, CLS)

    async def conversation(http: httpx.AsyncClient) -> None:
        for _ in range(3):
            assert (await http.post(f"/v1/{CLS}", json={"inputs": "a"})).status_code == 200

    with collector() as (address, received):
        fake.talk([model], conversation, otlp_endpoint=address)
    groups = [group for one in received for group in one.resource_spans]
    attributes = {pair.key: pair.value.string_value for pair in groups[0].resource.attributes}
    assert (attributes["service.name"], attributes["deployment.environment"]) == ("sparselane", "test")
    spans = [span for group in groups for scope in group.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == sorted([f"POST /v1/{CLS}", "infer", "post", "queue", "tokenize"] * 3)


def test_a_collector_that_is_away_disturbs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.1)
    model, _ = fake.model(tmp_path, CLS)

    async def conversation(http: httpx.AsyncClient) -> None:
        assert (await http.post(f"/v1/{CLS}", json={"inputs": "a"})).status_code == 200

    fake.talk([model], conversation, otlp_endpoint="http://user:secret@127.0.0.1:9/v1/traces")
    assert "secret" not in caplog.text


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    code = "import sys, service.server; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "[]\n"


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(tracing.StartupError, match=r"pip install 'sparselane\[otel\]'"):
        Tracing.to("http://127.0.0.1:9/v1/traces")
