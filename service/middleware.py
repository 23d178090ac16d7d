"""What happens around every request, as plain ASGI: its id, outcome and error body; its own body and its client."""

import asyncio
import logging
import re
from dataclasses import dataclass
from time import perf_counter
from typing import Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    ClientGoneError,
    EngineFailedError,
    ServiceError,
    TooLargeError,
    UnsupportedMediaTypeError,
    meaning,
    problem,
    shown,
)
from service.metrics import NO_MODEL, Metrics

log = logging.getLogger("sparselane")

# Ids from outside are repeated in headers and logs: letters, digits and a little more, and not long.
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
PROBLEM_JSON: Final = "application/problem+json"


@dataclass
class Lifecycle:
    """The one thing that changes while the server runs: whether it is stopping."""

    stopping: bool = False


class RequestContext:
    """Outermost: gives each request an id, turns errors into problem bodies, counts and logs the outcome."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tasks: frozenset[str], lifecycle: Lifecycle) -> None:
        """Wrap `app`; `tasks` are the paths under /v1/ that are counted."""
        self._app = app
        self._metrics = metrics
        self._tasks = tasks
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._lifecycle.stopping:
                    # The client opens its next connection elsewhere instead of meeting a closed one here.
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("request %s failed", request_id)
                error = EngineFailedError("an unexpected error; the server's log has more under this request_id")
            state["outcome"] = meaning(error).outcome
            if not status:
                await problem_response(error, request_id)(scope, receive, send_marked)
        finally:
            self._record(scope, status, perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state, path = scope["state"], scope["path"]
        task = path.removeprefix("/v1/")
        if task in self._tasks and scope["method"] == "POST":
            model = state.get("model", NO_MODEL)
            outcome = state.get("outcome") or _outcome(status)
            self._metrics.requests.labels(task, model, outcome).inc()
            if outcome == "ok":
                self._metrics.stage_seconds.labels(task, model, "total").observe(seconds)
        level = logging.INFO if path.startswith("/v1/") else logging.DEBUG
        line = "%s %s %d %.1f ms id=%s"
        log.log(level, line, scope["method"], shown(path), status, seconds * 1e3, state["request_id"])


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
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    body = problem(means.status, means.title, error.detail, request_id, error.fields)
    return JSONResponse(body, means.status, headers, media_type=PROBLEM_JSON)


class BodyGuard:
    """Reads the body of a POST, so that its type and size are checked first, then watches for the client to leave."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Wrap `app`; a body may have `max_bytes`."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says.

        Raises:
            UnsupportedMediaTypeError, TooLargeError: the body. ClientGoneError: it left, and the work is cancelled.
        """
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        _check_type(headers.get("content-type", ""))
        length = headers.get("content-length", "")
        self._check_size(int(length) if length.isdecimal() else 0)
        body = await self._read(receive)
        await _while_client_waits(self._app, scope, body, receive, send)

    async def _read(self, receive: Receive) -> bytes:
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client left while it sent the body")
            chunk = message.get("body", b"")
            size += len(chunk)
            self._check_size(size)
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            message = f"the body has more than {self._max_bytes} bytes: send fewer or shorter inputs"
            raise TooLargeError.at("", message, value=size, limit=self._max_bytes)


def _check_type(value: str) -> None:
    media = value.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise UnsupportedMediaTypeError(
            f"the content type is {shown(value)!r}; send JSON with 'content-type: application/json'"
        )


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
