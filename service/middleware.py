"""What happens around every request, as plain ASGI: its id, outcome and error body; its own body and its client."""

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.call import plain_headers
from service.deadlines import ARRIVED, CALL, asks_a_model
from service.errors import (
    ClientGoneError,
    EngineFailedError,
    NotReadyError,
    OverloadedError,
    QuotaExceededError,
    ServiceError,
    SlowClientError,
    TooLargeError,
    UnsupportedMediaTypeError,
    meaning,
    problem,
    shown,
)
from service.logs import where
from service.metrics import NONE, Metrics
from service.request_record import CURRENT, RequestRecord
from service.tracing import Tracing, parse

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("sparselane")

# Ids from outside are repeated in headers and logs: letters, digits and a little more, and not long.
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
PROBLEM_JSON: Final = "application/problem+json"
# Bodies are held up to the bytes of so many of the largest; beyond, only small ones get in. Parsed and tokenized a body
# takes nine times its size: this is what bounds a server's memory (docs/operations.md, "Size").
BODIES: Final = 8
SMALL_BYTES: Final = 16 * 1024
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})


@dataclass
class Lifecycle:
    """What changes while the server runs: whether it is stopping, and how many accepted requests that cut off."""

    stopping: bool = False
    cut_off: int = 0


class RequestContext:
    """Outermost: each request's record, id and span; errors to problem bodies; the outcome counted and logged."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tasks: frozenset[str],
        lifecycle: Lifecycle,
        tracing: Tracing | None = None,
        log_texts: bool = False,
    ) -> None:
        """Wrap `app`; `tasks` are the paths under /v1/ that are counted."""
        self._app = app
        self._metrics = metrics
        self._tasks = tasks
        self._lifecycle = lifecycle
        self._tracing = tracing
        self._log_texts = log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = plain_headers(scope["headers"])
        state = scope.setdefault("state", {})
        record = RequestRecord(_request_id(headers.get("x-request-id", "")), state.get(ARRIVED) or perf_counter())
        if CALL in state:
            record.door = perf_counter() - record.began
        state["request_id"] = record.request_id
        token = CURRENT.set(record)
        span = self._begin_trace(scope, headers, record)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                self._mark(MutableHeaders(scope=message), message["status"], record)
            await send(message)
            # Not before: it may wait for the client to read until the deadline cancels it, and be another answer then.
            status = message.get("status", status)

        try:
            await self._app(scope, receive, send_marked)
        except asyncio.CancelledError:  # the end of the drain
            self._lifecycle.cut_off += 1
            if not status:
                stopped = NotReadyError("the server stopped before this was answered: send it again", retry_after=1)
                state["outcome"] = meaning(stopped).outcome
                await problem_response(stopped, record.request_id)(scope, receive, send_marked)
            raise
        except Exception as error:
            answer = self._as_service_error(error)
            state["outcome"] = meaning(answer).outcome
            if not status:
                await problem_response(answer, record.request_id)(scope, receive, send_marked)
            _forget_frames(error)
        finally:
            self._conclude(scope, status, record, span)
            CURRENT.reset(token)

    def _begin_trace(self, scope: Scope, headers: Mapping[str, str], record: RequestRecord) -> "Span | None":
        parent = None
        if given := headers.get("traceparent"):
            parent = parse(given, ",".join(Headers(scope=scope).getlist("tracestate")))
        record.trace_id = parent.trace_id if parent else None
        return self._tracing.begin(scope["method"], parent, record) if self._tracing and not _is_probe(scope) else None

    def _mark(self, headers: MutableHeaders, status: int, record: RequestRecord) -> None:
        headers["x-request-id"] = record.request_id
        if record.door is not None and (timing := headers.get("server-timing")):
            headers["server-timing"] = f"door;dur={record.door * 1e3:.2f}, {timing}"
        if record.quota is not None:
            wait = headers.get("retry-after") if status == meaning(QuotaExceededError("")).status else None
            headers.update(record.quota.headers(int(wait) if wait else None))
        if self._lifecycle.stopping:
            # The client opens its next connection elsewhere instead of meeting a closed one here.
            headers["connection"] = "close"

    def _as_service_error(self, error: Exception) -> ServiceError:
        if isinstance(error, ServiceError):
            return error
        if self._log_texts:
            log.exception("a request failed")
        else:
            log.error(
                "a request failed; its message may quote a text, set SPARSELANE_LOG_TEXTS to see it: %s", where(error)
            )
        return EngineFailedError("an unexpected error; the server's log has more under this request_id")

    def _conclude(self, scope: Scope, status: int, record: RequestRecord, span: "Span | None") -> None:
        seconds = perf_counter() - record.began
        state = scope["state"]
        outcome = state.get("outcome") or _outcome(status)
        if asks_a_model(scope):
            # Refused before the pipeline had it: then its route or its path may say what it wanted.
            wanted = record.task or state.get("task") or scope["path"].removeprefix("/v1/")
            task = wanted if wanted in self._tasks else NONE
            self._metrics.ended(task, record.model or state.get("model") or NONE, outcome, seconds)
        route = getattr(scope.get("route"), "path", None)
        if span is not None and self._tracing is not None:
            attributes = {
                "http.request.method": scope["method"],
                "http.response.status_code": status,
                "url.scheme": scope["scheme"],
                **({"http.route": route} if route else {}),
                **({"error.type": outcome} if status >= 500 else {}),
            }
            self._tracing.end(span, attributes, record, seconds)
        level = logging.DEBUG if _is_probe(scope) else logging.INFO
        if log.isEnabledFor(level):
            log_access(level, scope, route, status, outcome, record, seconds)


def _forget_frames(error: BaseException) -> None:
    """Take the way there out of an error that is answered, and out of its causes.

    Frames that keep their own error are freed only when Python searches for cycles, which it does by the number of
    objects, not by their size: under load hundreds of large bodies were waiting for it.
    """
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__context__


def log_access(
    level: int,
    scope: Mapping[str, Any],
    route: str | None,
    status: int,
    outcome: str,
    record: RequestRecord,
    seconds: float,
) -> None:
    """Write the one line of a request, of whose `scope` it takes method, path and headers.

    A path is cut and escaped, and its query, which may hold a text, left out.
    """
    path = json.dumps(shown(scope["path"]))[1:-1]
    known = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "caller": record.caller,
        "method": scope["method"],
        "route": route,
        "status": status,
        "outcome": outcome,
        "ms": round(seconds * 1e3, 2),
        "model": record.model,
        "task": record.task,
        "tokens": record.tokens if record.model else None,
        "windows": record.windows if record.model else None,
        "door_ms": None if record.door is None else round(record.door * 1e3, 2),
        **{f"{stage}_ms": round(stage_seconds * 1e3, 2) for stage, stage_seconds in record.stages.items()},
        "amzn_trace_id": _amazon_id(Headers(raw=scope["headers"])),
        "texts": record.texts or None,
    }
    fields = {name: value for name, value in known.items() if value is not None}
    log.log(level, "%s %s %d", scope["method"], path, status, extra={"fields": fields})


def _amazon_id(headers: Headers) -> str | None:
    """Hugging Face's clients and Amazon's load balancers send it; what is no id is left out."""
    given = headers.get("x-amzn-trace-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9=;:._-]{1,128}", given) else None


def _is_probe(scope: Scope) -> bool:
    """Probes come every few seconds from every side: no spans, and no lines unless all are asked for."""
    return scope["path"] in PROBES or scope["path"].startswith("/v2/health/")


def _outcome(status: int) -> str:
    """Name the outcome of a request that ended without an error of ours; status 0: cut off by the end of the drain."""
    if not status:
        return "cancelled"
    return "ok" if status < 400 else "invalid" if status < 500 else "error"


def _request_id(given: str) -> str:
    return given if REQUEST_ID.fullmatch(given) else uuid4().hex


def problem_response(error: ServiceError, request_id: str) -> JSONResponse:
    """Return the RFC 9457 answer to an error."""
    means = meaning(error)
    headers = dict(means.headers)
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, SlowClientError):
        headers["connection"] = "close"  # what is left of its body would hold the connection
    body = problem(means.status, means.title, error.detail, request_id, error.fields)
    return JSONResponse(body, means.status, headers, media_type=PROBLEM_JSON)


class BodyGuard:
    """Reads the body of a POST, so that its type and size are checked first, then watches for the client to leave."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float) -> None:
        """Wrap `app`; a body may have `max_bytes` and take `max_seconds` to arrive."""
        self._app = app
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        # Bytes of the bodies that are read or worked on.
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says.

        Raises:
            UnsupportedMediaTypeError, TooLargeError, SlowClientError: the body. OverloadedError: all bodies together.
            ClientGoneError: it left, and the work is cancelled.
        """
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length not in ("", "0") or "transfer-encoding" in headers:
            # Clients of the Open Inference Protocol send tensors behind JSON, under any type or none.
            if not scope["path"].startswith("/v2/"):
                _check_type(headers.get("content-type", ""))
            _check_encoding(headers.get("content-encoding", "identity"))
        self._check_size(int(length) if length.isdecimal() else 0)
        body = bytearray()
        try:
            await self._read_in_time(receive, body)
            await _while_client_waits(self._app, scope, bytes(body), receive, send)
        finally:
            self._held -= len(body)

    async def _read_in_time(self, receive: Receive, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._max_seconds):
                await self._read(receive, body)
        except TimeoutError:
            raise SlowClientError(f"the body took more than {self._max_seconds:g} s to arrive: send it again") from None

    async def _read(self, receive: Receive, body: bytearray) -> None:
        """Add what arrives to `body`, and to what is held."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client left while it sent the body")
            chunk = message.get("body", b"")
            self._check_size(len(body) + len(chunk))
            if len(body) + len(chunk) > SMALL_BYTES and self._held + len(chunk) > BODIES * self._max_bytes:
                raise OverloadedError(
                    f"the server holds {self._held} bytes of bodies, and no more: try again later", retry_after=1
                )
            body += chunk
            self._held += len(chunk)
            more = message.get("more_body", False)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            message = f"the body has more than {self._max_bytes} bytes: send fewer or shorter inputs"
            raise TooLargeError.at("", message, value=size, limit=self._max_bytes)


def _check_type(media_type: str) -> None:
    media = media_type.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise UnsupportedMediaTypeError(
            f"the content type is {shown(media_type)!r}; send JSON with 'content-type: application/json'"
        )


def _check_encoding(encoding: str) -> None:
    # A small packed body may unpack to gigabytes, and texts this short gain nothing by it.
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"the content encoding is {shown(encoding)!r}; send the JSON as it is")


async def _while_client_waits(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run `app` on a body that was read; cancel it and raise ClientGoneError if the client leaves before the answer."""
    unread, answered = True, False

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def replay() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.wait({gone})
        return {"type": "http.disconnect"}

    async def send_watched(message: Message) -> None:
        nonlocal answered
        answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    gone = asyncio.ensure_future(left())
    work = asyncio.ensure_future(app(scope, replay, send_watched))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not answered:
            raise ClientGoneError("the client left before the answer")
        await work
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
