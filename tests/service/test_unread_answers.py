"""Clients that do not read: they keep no other one out, hold no answer for ever, and no stop waits for them."""

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from service import connection
from service.connection import protocol
from service.deadlines import Deadlines, Door, refuse
from service.front import AT_ONCE, Front
from service.metrics import Metrics
from service.middleware import Lifecycle, RequestContext
from service.models import Models
from service.pipeline import TASKS
from tests.service import artifacts, fake
from tests.service.artifacts import NER
from tests.service.test_server import running
from tests.waiting import until

# Many times what the kernel takes off the server for a client of ours.
ANSWER = b"x" * 1_000_000
PATIENT_SECONDS = 600.0


def request(*, timeout_ms: int = 600_000, more: str = "") -> bytes:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nx-request-timeout-ms: {timeout_ms}\r\n{more}\r\n"
    return head.encode() + b"{}"


def client(port: int) -> socket.socket:
    """Connect with buffers so small that the server keeps what is not read."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    return made


async def read(one: socket.socket, size: int) -> bytes:
    """Read so many bytes; fewer only where the server hangs up."""
    read, loop = b"", asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while len(read) < size and (piece := await loop.sock_recv(one, size - len(read))):
            read += piece
    return read


async def answer(one: socket.socket) -> tuple[int, bytes]:
    """Read one answer."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = await read(one, 1)
        assert byte, "the server hung up"
        head += byte
    fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:-2])
    return int(head.split()[1]), await read(one, int(fields["content-length"]))


class Served:
    """The server's own layers around an application with large answers, on real sockets and the server's event loop."""

    def __init__(self, seconds: float) -> None:
        self.state = ServerState()
        self.front = Front()
        self.answer = ANSWER
        # Requests that the application was asked, and those of them that their deadline took from it.
        self.asked = self.cancelled = 0
        metrics, lifecycle = Metrics(Models({}, {}), TASKS), Lifecycle()
        inner = Deadlines(self.application, 10_000, lambda _: None, self.front, metrics)
        app, refusing = (RequestContext(one, metrics, frozenset(TASKS), lifecycle) for one in (inner, refuse))
        made = protocol(seconds, Door(10_000, lambda _: None, self.front, refusing))
        self.config = uvicorn.Config(
            app, log_config=None, lifespan="off", ws="none", http=made, timeout_keep_alive=int(PATIENT_SECONDS)
        )
        self.config.load()
        self.port = 0

    async def application(self, _: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        while (await receive()).get("more_body"):
            pass
        length = (b"content-length", b"%d" % len(self.answer))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send({"type": "http.response.body", "body": self.answer})
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    @property
    def connection(self) -> Any:
        (connection,) = self.state.connections
        return connection

    @property
    def unsent(self) -> int:
        return int(self.connection.transport.get_write_buffer_size())


def tell(story: Callable[[Served], Coroutine[Any, Any, None]], seconds: float = PATIENT_SECONDS) -> None:
    async def run() -> None:
        served = Served(seconds)
        made = served.config.http_protocol_class
        listener = socket.create_server(("127.0.0.1", 0))
        # Else it grows with what a client reads, to more than an answer.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        served.port = listener.getsockname()[1]
        listening = await asyncio.get_running_loop().create_server(
            lambda: made(served.config, served.state, {}),  # type: ignore[call-arg, arg-type, return-value]
            sock=listener,
        )
        try:
            await story(served)
        finally:
            listening.close()
            for connection in list(served.state.connections):
                connection.transport.abort()
            for task in list(served.state.tasks):
                task.cancel()
            await fake.wait_until(lambda: not served.state.tasks)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_they_keep_no_other_one_out() -> None:
    """Each has an answer that it does not read, and behind it one that waits to be sent."""

    async def story(served: Served) -> None:
        with ExitStack() as clients:
            for _ in range(AT_ONCE + 8):
                clients.enter_context(client(served.port)).sendall(request() * 2)
            await fake.wait_until(lambda: served.asked >= 2 * AT_ONCE + 8)
            reader = clients.enter_context(client(served.port))
            reader.sendall(request())
            assert await answer(reader) == (200, ANSWER)
            assert served.front.at_the_door == 0
            assert served.front.seconds == 0, "they are not counted"

    tell(story)


@pytest.mark.parametrize("more", ["", "connection: close\r\n"], ids=["kept", "closed"])
@pytest.mark.parametrize("count", [1, 2])
def test_their_connections_are_cut_off(count: int, more: str) -> None:
    async def story(served: Served) -> None:
        with client(served.port) as one:
            one.sendall(request() * (count - 1) + request(more=more))
            await fake.wait_until(lambda: served.asked == count)
            await fake.wait_until(lambda: not served.state.connections and not served.state.tasks)
            assert len(await read(one, len(ANSWER))) < len(ANSWER)

    tell(story, 0.3)


def test_a_closed_connection_is_not_kept_for_a_rest_so_small_that_more_could_be_sent() -> None:
    async def story(served: Served) -> None:
        served.answer = ANSWER[:40_000]
        with client(served.port) as one:
            one.sendall(request(more="connection: close\r\n"))
            await fake.wait_until(lambda: served.state.connections and served.unsent)
            assert not served.connection.flow.write_paused
            await fake.wait_until(lambda: not served.state.connections)

    tell(story, 0.3)


@pytest.mark.parametrize("more", ["", "connection: close\r\n"], ids=["kept", "closed"])
def test_one_that_reads_slowly_is_not_and_one_that_stops_is(more: str) -> None:
    async def story(served: Served) -> None:
        with client(served.port) as one:
            one.sendall(request(more=more))
            await fake.wait_until(lambda: served.asked)
            for _ in range(5):
                before = served.unsent
                served.connection._look(PATIENT_SECONDS)
                assert len(await read(one, 100_000)) == 100_000
                await fake.wait_until(lambda before=before: served.unsent < before)
            for _ in range(2):
                served.connection._look(PATIENT_SECONDS)
            await fake.wait_until(lambda: not served.state.connections)

    tell(story)


def test_the_next_answer_is_not_taken_for_the_last() -> None:
    async def story(served: Served) -> None:
        with client(served.port) as one:
            one.sendall(request() * 2)
            await fake.wait_until(lambda: served.asked == 2)
            served.connection._look(PATIENT_SECONDS)
            assert served.connection._unsent > 0
            assert (await answer(one))[0] == 200
            await fake.wait_until(lambda: served.connection._unsent == 0)
            assert (await answer(one))[0] == 200

    tell(story)


def test_an_answer_that_waits_until_its_deadline_becomes_a_504() -> None:
    async def story(served: Served) -> None:
        with client(served.port) as one:
            one.sendall(request() + request(timeout_ms=50))
            await fake.wait_until(lambda: served.cancelled)
            assert await answer(one) == (200, ANSWER)
            status, body = await answer(one)
            assert (status, json.loads(body)["title"]) == (504, "Deadline passed")

    tell(story)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_does_not_wait_for_them(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STOP_SECONDS", 0.3)

    async def story(served: Served) -> None:
        with client(served.port) as one:
            one.sendall(request() * count)
            await fake.wait_until(lambda: served.asked == count and served.unsent)
            served.connection.shutdown()
            await fake.wait_until(lambda: not served.state.connections)

    tell(story)


def test_a_stop_waits_for_one_that_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STOP_SECONDS", 30.0)

    async def story(served: Served) -> None:
        with client(served.port) as one:
            one.sendall(request() * 2)
            await fake.wait_until(lambda: served.asked == 2)
            served.connection._look(PATIENT_SECONDS)
            served.connection.shutdown()  # which begins to count anew
            assert [await answer(one) for _ in range(2)] == [(200, ANSWER)] * 2
            assert await read(one, 1) == b""

    tell(story)


def test_sigterm_ends_a_server_with_an_answer_that_nobody_reads(tmp_path: Path) -> None:
    artifacts.write(tmp_path, NER)
    body = json.dumps({"inputs": ["john and mary was in london. " * 10] * 100}).encode()
    head = f"POST /v1/{NER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-timeout-ms: 600000\r\n"
    patient = {"SPARSELANE_READ_SECONDS": "600", "SPARSELANE_DRAIN_SECONDS": "600", "SPARSELANE_NOTICE_SECONDS": "0"}
    with (
        running(tmp_path, SPARSELANE_MAX_QUEUE_TOKENS="1000000", **patient) as server,
        client(server.port) as one,
    ):
        status, whole = server.ask("POST", f"/v1/{NER}", json.loads(body), x_request_timeout_ms="600000")
        assert status == 200 and len(json.dumps(whole)) > 500_000
        one.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.metric(f'sparselane_requests_total{{model="ner",outcome="ok",task="{NER}"}}') == 2)
        assert server.stop() == 0
