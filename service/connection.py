"""One connection: uvicorn's HTTP/1.1, with limits on how long and how large a request may be on its way.

uvicorn alone waits for ever for the head of a request, keeps as many bytes of it as arrive, and reads for ever what is
left of a body after its answer; and for ever it keeps an answer that its client does not read. The time for a body that
is read is `middleware.BodyGuard`'s.
"""

import asyncio
import json
import re
from asyncio.events import TimerHandle
from http import HTTPStatus
from math import inf
from typing import Any, ClassVar, Final
from uuid import uuid4

from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.deadlines import Door
from service.errors import problem
from service.front import Front
from service.glance import Glance

# Request line and headers; twice what nginx and Apache allow by default, so they would have refused it before.
MAX_HEAD_BYTES: Final = 64 * 1024
# A stop waits for an answer that is being read, but no longer than this for a client that reads nothing.
STOP_SECONDS: Final = 2.0

UPGRADE: Final = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)


class HeadTooLargeError(Exception):
    """Stops the parser; never leaves this file."""


class Flow(FlowControl):
    """uvicorn's, but a request whose answer waits for its client to read keeps no other one at the door."""

    def __init__(self, transport: asyncio.Transport, front: Front) -> None:
        """Count by `front`."""
        super().__init__(transport)
        self._front = front

    async def drain(self) -> None:
        """Wait until there is room."""
        with self._front.elsewhere():
            await super().drain()


class PatientProtocol(HttpToolsProtocol):
    """Answers 408 to a head that takes more than `seconds`, 431 to one over MAX_HEAD_BYTES, 400 to what is no HTTP.

    Cuts off a client that reads nothing of its answers for `seconds`, and up to twice as long.
    """

    seconds: ClassVar[float]
    door: ClassVar[Door]
    glance: ClassVar[Glance | None]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*arguments, **named)
        self._timer: TimerHandle | None = None
        # Looks again and again whether the client reads, and the bytes that waited for it at the last look.
        self._watch: TimerHandle | None = None
        self._unsent = 0
        self._head_bytes = 0
        self._body_open = False
        # Pieces of bodies so far, and the bytes that came since the last one while a body was not at its end.
        self._pieces = self._beside_body = 0
        # Bytes that are to come of a body that was refused at a glance, and when the last such refusal was.
        self._unread = 0
        self._refused_at = -inf
        self._refusal = HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.door.front)
        self._wait()
        self._look(self.seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        self._stop_looking()
        super().connection_lost(exc)

    def _look(self, seconds: float) -> None:
        """Cut off a client that read nothing since the last look; look again after so many seconds."""
        # Nothing is added to what a full or closing connection holds: the same number of bytes are the same bytes.
        held = self.flow.write_paused or self.transport.is_closing()
        unsent = self.transport.get_write_buffer_size() if held else 0
        if unsent and unsent == self._unsent:
            self.transport.abort()
        self._unsent = unsent
        self._watch = self.loop.call_later(seconds, self._look, seconds)

    def _stop_looking(self) -> None:
        self._unsent = 0
        if self._watch is not None:
            self._watch.cancel()

    def resume_writing(self) -> None:
        """Know that all was read: what will wait next is something else."""
        self._unsent = 0
        super().resume_writing()

    def shutdown(self) -> None:
        """Finish the request at hand, and be less patient with who does not read: that would take all of the drain."""
        super().shutdown()
        self._stop_looking()
        self._look(min(STOP_SECONDS, self.seconds))

    def data_received(self, data: bytes) -> None:
        """Refuse at a glance what can be; parse the rest."""
        if self._unread or (self.glance is not None and self.glance.worth_it):
            data = self._left_to_parse(data)
        if data:
            self._parse(data)

    def _left_to_parse(self, data: bytes) -> bytes:
        """Answer the requests at the beginning of `data` that are refused at a glance, and drop their bodies."""
        place = self._skip(len(data), 0)
        while place < len(data) and self.glance is not None and self._between_requests():
            refusal = self.glance.refusal(data, place, self.server_state.default_headers)
            if refusal is None:
                break
            answer, end = refusal
            self.transport.write(answer)
            self.server_state.total_requests += 1
            self._refused_at = self.loop.time()
            self._unread = end - place
            place = self._skip(len(data), place)
            if self._unread:
                self._wait()
        return data[place:] if place else data

    def _skip(self, length: int, place: int) -> int:
        """Return where a refused request ends that goes on at `place` of `length` bytes; the end may not be there."""
        there = min(self._unread, length - place)
        self._unread -= there
        return place + there

    def _between_requests(self) -> bool:
        """Whether the next byte begins a request, and its answer may be written at once."""
        busy = self.cycle is not None and not self.cycle.response_complete
        closing = self.transport.is_closing() or self.flow.write_paused
        return not (self._head_bytes or self._body_open or busy or closing)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one with a refusal since the last answer of the application is not that old."""
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _parse(self, data: bytes) -> None:
        """Parse bytes, and count those of a head that is not complete yet, or beside a body."""
        unfinished, was_open, pieces = self._head_bytes, self._body_open, self._pieces
        super().data_received(data if was_open else _without_upgrade(data))
        if was_open and self._body_open:
            self._beside_body = self._beside_body + len(data) if pieces == self._pieces else 0
            if self._beside_body > MAX_HEAD_BYTES:
                self._refuse_rest()
        # Counted from the second piece on: the first may hold the end of another request.
        if unfinished and self._head_bytes == unfinished:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(*_head_too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; those behind a chunked body are dropped, for they are none (RFC 9110, 6.5.1)."""
        if not self._body_open:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Know that it goes on."""
        self._pieces += 1
        super().on_body(body)

    def _refuse_rest(self) -> None:
        """End a connection that sends chunk extensions or trailers without end."""
        if self.cycle is not None and self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(*_head_too_large())

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of the head."""
        super().on_message_begin()
        self._head_bytes = 1
        self._wait()

    def on_headers_complete(self) -> None:
        """Let uvicorn start the request, or stop the parser, which ends in `send_400_response`."""
        self._stop_waiting()
        self._head_bytes = 0
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refusal = _head_too_large()
            raise HeadTooLargeError
        self._body_open, self._beside_body = True, 0
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        """Begin a request, or put it off: uvicorn would begin all at once."""
        start = super()._start_asgi_task
        self.door.come(cycle.scope, app, lambda chosen: start(cycle, chosen))  # type: ignore[arg-type]

    def on_message_complete(self) -> None:
        """Know that nothing of the body is left."""
        self._body_open = False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give a client whose body was refused a while to send the rest of it, so that it reads the answer."""
        super().on_response_complete()
        if self._body_open and self.cycle.response_complete:
            self._wait()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002, uvicorn's words are the same for all
        """Answer what the parser cannot read."""
        self._refuse(*self._refusal)

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.seconds, self._waited)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _waited(self) -> None:
        """Close a connection that sent nothing; answer one that sent a part; be patient while we are the slow ones."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()
        elif self._refused_at > -inf and not (self._head_bytes or self._unread or self._body_open):
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_handler()
        elif self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the head of the request took more than {self.seconds:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        if self.transport.is_closing():
            return
        request_id = uuid4().hex
        body = json.dumps(problem(status, status.phrase, detail, request_id)).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Make `Upgrade` in a head another field of the same length: a server may ignore it, the parser would not.

    It would take the body for another protocol's. Java's client offers h2c with each request. A name that comes in two
    pieces is not seen.
    """
    end = data.find(b"\r\n\r\n")
    found = UPGRADE.search(data, 0, len(data) if end < 0 else end)
    return data if found is None else data[: found.start()] + b"\r\nx-grade" + data[found.end() :]


def _head_too_large() -> tuple[HTTPStatus, str]:
    detail = f"request line and headers have more than {MAX_HEAD_BYTES} bytes; texts belong into the body"
    return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail


def protocol(seconds: float, door: Door, glance: Glance | None = None) -> type[PatientProtocol]:
    """Return the class that uvicorn makes for each connection."""
    return type("PatientProtocol", (PatientProtocol,), {"seconds": seconds, "door": door, "glance": glance})
