"""Probes and metrics on a port and in a thread of their own: an event loop that is busy or dead cannot silence them.

One thread, not one for each connection: whoever wants the interpreter waits for it at every change of threads, and
behind a busy event loop that is up to a switch interval (service/server.py) and a turn at the CPU each time.
"""

import json
import logging
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from threading import Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import NotReadyError, meaning, problem
from service.health import Health
from service.middleware import PROBLEM_JSON

log = logging.getLogger("sparselane")

# A client that says nothing, or does not read, is forgotten after this.
PATIENCE_SECONDS: Final = 5.0
# More clients at once than any cluster has; the oldest is closed for the next one. And the most bytes of a head.
MOST_CLIENTS, MOST_HEAD_BYTES = 128, 16 * 1024
# A page of metrics takes a few milliseconds. Given away after each of them, the interpreter comes back after a turn of
# the event loop and one of the engine on the same CPU, and the page takes five times as long as its work.
UNINTERRUPTED_SECONDS: Final = 0.02
# Without a free file descriptor the kernel keeps new connections; so long until the next look.
NO_FILES_SECONDS: Final = 0.05

_REQUEST: Final = re.compile(rb"([A-Z]+) (/[^ ?\r\n]*)[^ \r\n]* HTTP/1\.[01]\r\n")
_END: Final = re.compile(rb"\r\n\r\n")


@dataclass(eq=False)
class _Client:
    """One connection: what it sent, or what it has not read yet."""

    connection: socket.socket
    until: float
    received: bytes = b""
    answer: memoryview | None = None


class Probes:
    """Answers /healthz, /readyz and /metrics from `listen` on until the block ends."""

    def __init__(self, listener: socket.socket, health: Health) -> None:
        """Take a bound socket; nothing is answered yet."""
        self._listener = listener
        self._health = health
        self._clients: dict[object, _Client] = {}
        self._stop, self._stopped = socket.socketpair()
        self._thread: Thread | None = None

    def listen(self) -> int:
        """Begin to answer; return the system's number of the thread that does."""
        self._listener.listen(MOST_CLIENTS)
        self._listener.setblocking(False)
        self._thread = Thread(target=self._serve, name="probes", daemon=True)
        self._thread.start()
        assert self._thread.native_id is not None  # it has started
        return self._thread.native_id

    def __enter__(self) -> Self:
        """Do nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; also where `listen` was never called."""
        self._stop.close()
        if self._thread is not None:
            self._thread.join()
        for open_ in (self._stopped, self._listener, *(client.connection for client in self._clients.values())):
            open_.close()

    def _serve(self) -> None:
        with DefaultSelector() as self._selector:
            self._selector.register(self._stopped, EVENT_READ)
            self._selector.register(self._listener, EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in self._selector.select(PATIENCE_SECONDS if self._clients else None)]
                if self._stopped in ready:
                    return
                for file in ready:
                    self._carefully(file)
                for client in [client for client in self._clients.values() if client.until < monotonic()]:
                    self._forget(client)

    def _carefully(self, file: object) -> None:
        """Serve a socket that is ready; a defect of ours costs one answer, not all that come after it."""
        try:
            if file is self._listener:
                self._accept()
            elif client := self._clients.get(file):  # else it was forgotten for another one just now
                self._go_on(client)
        except Exception:
            log.exception("a probe failed")
            sleep(NO_FILES_SECONDS)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:  # the client has gone
            return
        except OSError as error:
            log.warning("the probes' port accepts nobody: %s", error.strerror)
            sleep(NO_FILES_SECONDS)
            return
        if len(self._clients) >= MOST_CLIENTS:
            self._forget(next(iter(self._clients.values())))
        connection.setblocking(False)
        client = self._clients[connection] = _Client(connection, monotonic() + PATIENCE_SECONDS)
        self._selector.register(connection, EVENT_READ)
        self._go_on(client)  # its request is mostly there

    def _go_on(self, client: _Client) -> None:
        """Read or write what can be without waiting; forget a client that has its answer or has gone."""
        try:
            if client.answer is None:
                received = client.connection.recv(MOST_HEAD_BYTES)
                client.received += received
                whole = _END.search(client.received) is not None
                if not received or (not whole and len(client.received) >= MOST_HEAD_BYTES):
                    self._forget(client)
                elif whole:
                    client.answer = memoryview(self._answered(client.received))
            if client.answer is not None:
                client.answer = client.answer[client.connection.send(client.answer) :]
                if not client.answer:
                    client.connection.shutdown(socket.SHUT_WR)
                    self._forget(client)
                else:
                    self._selector.modify(client.connection, EVENT_WRITE)
        except BlockingIOError:
            pass
        except OSError:  # it hung up, which is no event
            self._forget(client)

    def _forget(self, client: _Client) -> None:
        if self._clients.pop(client.connection, None) is not None:
            self._selector.unregister(client.connection)
            client.connection.close()

    def _answered(self, received: bytes) -> bytes:
        request = _REQUEST.match(received)
        if request is None or request[1] not in (b"GET", b"HEAD"):
            return _problem(HTTPStatus.BAD_REQUEST, "Bad Request", "ask here with GET or HEAD and HTTP/1.1")
        answer = self._answer_to(request[2].decode("latin-1"))
        head, end, _ = answer.partition(b"\r\n\r\n")
        return answer if request[1] == b"GET" else head + end

    def _answer_to(self, path: str) -> bytes:
        try:
            if path == "/metrics":
                with _in_one_go():
                    page = self._health.page()
                return _answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, page)
            if path in ("/healthz", "/readyz"):
                body = self._health.live() if path == "/healthz" else self._health.ready()
                return _answer(HTTPStatus.OK, "application/json", json.dumps(body).encode())
        except NotReadyError as error:
            return _problem(meaning(error).status, meaning(error).title, error.detail)
        return _problem(HTTPStatus.NOT_FOUND, "Not Found", "here are /healthz, /readyz and /metrics")


@contextmanager
def _in_one_go() -> Iterator[None]:
    """Let no other thread take the interpreter inside the block, for UNINTERRUPTED_SECONDS at most."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(UNINTERRUPTED_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _problem(status: int, title: str, detail: str) -> bytes:
    return _answer(status, PROBLEM_JSON, json.dumps(problem(status, title, detail, uuid4().hex)).encode())


def _answer(status: int, media: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}\r\ndate: {formatdate(usegmt=True)}\r\n"
        f"content-type: {media}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
