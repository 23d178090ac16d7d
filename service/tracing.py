"""Where a request comes from and where its time went: W3C trace context in, OpenTelemetry spans out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.errors import StartupError
from service.request_record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

# https://www.w3.org/TR/trace-context/#traceparent-header; version 00 ends here, later ones may go on behind a dash.
TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
SAMPLED: Final = 1
# How long a stop waits for spans that are still here; the collector may be what is down.
FLUSH_SECONDS: Final = 3


@dataclass(frozen=True)
class TraceParent:
    """The caller's place in a trace: ids in lower-case hex, the flags' byte, and `tracestate` as it came."""

    trace_id: str
    span_id: str
    flags: int
    state: str


def parse(traceparent: str, tracestate: str) -> TraceParent | None:
    """Return what the two headers say; None where the first is absent or wrong, as the standard asks."""
    found = TRACEPARENT.fullmatch(traceparent.strip())
    if not found or (found[1] == "00" and found[5]):
        return None
    return TraceParent(found[2], found[3], int(found[4], 16), tracestate)


class Tracing:
    """Makes spans: one per request, and below it one per stage. Needs the extra `otel`."""

    def __init__(self, processor: SpanProcessor) -> None:
        """Send finished spans to `processor`; the standard's OTEL_* variables name the service and the sampler."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create()
        if str(resource.attributes.get("service.name")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "sparselane"}))
        # Not the global provider: another library's spans are not ours to send. We flush it ourselves, see `close`.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sparselane")

    @classmethod
    def to(cls, endpoint: str) -> Tracing:
        """Send spans to an OTLP collector, for example http://collector:4318/v1/traces, from a thread of their own.

        Raises:
            StartupError: the libraries are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise StartupError(
                f"SPARSELANE_OTLP_ENDPOINT is set, but {error.name} is not installed: pip install 'sparselane[otel]'"
            ) from error
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint)))

    def begin(self, method: str, parent: TraceParent | None, record: RequestRecord) -> Span:
        """Begin the span of a request; its trace id goes onto the record."""
        from opentelemetry.trace import SpanKind

        context = None if parent is None else _context(parent)
        span = self._tracer.start_span(method, context, SpanKind.SERVER, start_time=record.began_ns)
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        return span

    def end(self, span: Span, attributes: Mapping[str, Any], record: RequestRecord, seconds: float) -> None:
        """End a request's span, with a child for each stage; `attributes` are those of a server's HTTP span."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        if not span.is_recording():
            return
        span.update_name(f"{attributes['http.request.method']} {attributes.get('http.route', '')}".strip())
        known = {"request_id": record.request_id, "caller": record.caller, "model": record.model, "task": record.task}
        counts = {"tokens": record.tokens, "windows": record.windows} if record.model else {}
        named = {f"sparselane.{name}": value for name, value in {**known, **counts}.items() if value is not None}
        span.set_attributes({**attributes, **named})
        if attributes["http.response.status_code"] >= 500:
            span.set_status(StatusCode.ERROR)
        if record.door is not None:
            self._tracer.start_span("door", set_span_in_context(span), start_time=record.began_ns).end(
                record.began_ns + _ns(record.door)
            )
        at = record.began_ns + _ns(record.stages_began - record.began)
        for stage, stage_seconds in record.stages.items():
            child = self._tracer.start_span(stage, set_span_in_context(span), start_time=at)
            at += _ns(stage_seconds)
            child.end(at)
        span.end(record.began_ns + _ns(seconds))

    def close(self) -> None:
        """Send what is still here, for at most FLUSH_SECONDS; blocks."""
        from threading import Thread

        # The SDK's own stop waits up to 30 s for a collector that does not answer, and takes no other limit.
        last = Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)


def _context(parent: TraceParent) -> Any:
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

    state = TraceState.from_header([parent.state]) if parent.state else None
    flags = TraceFlags(parent.flags & SAMPLED)
    remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags, state)
    return set_span_in_context(NonRecordingSpan(remote))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
