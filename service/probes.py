"""Probes and metrics on a port and in threads of their own: an event loop that is busy or dead cannot silence them."""

import json
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import NotReadyError, meaning, problem
from service.health import Health
from service.middleware import PROBLEM_JSON

# A client that connects and says nothing holds a thread no longer than this.
PATIENCE_SECONDS: Final = 5
# How often the thread looks whether it should end.
POLL_SECONDS: Final = 0.1


class Probes(ThreadingMixIn, TCPServer):
    """Answers /healthz, /readyz and /metrics from `listen` on until the block ends."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, health: Health) -> None:
        """Take a bound socket; nothing is answered yet."""
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()  # the one that TCPServer made
        self.socket = listener
        self.health = health
        self._thread: threading.Thread | None = None

    def listen(self) -> None:
        """Begin to answer."""
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), name="probes", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Do nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; also where `listen` was never called."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a probe that hangs up is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: Probes
    timeout = PATIENCE_SECONDS
    server_version = "sparselane"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            if path == "/metrics":
                self._send(HTTPStatus.OK, CONTENT_TYPE_LATEST, self.server.health.page())
            elif path in ("/healthz", "/readyz"):
                body = self.server.health.live() if path == "/healthz" else self.server.health.ready()
                self._send(HTTPStatus.OK, "application/json", json.dumps(body).encode())
            else:
                self._problem(HTTPStatus.NOT_FOUND, "Not Found", "here are /healthz, /readyz and /metrics")
        except NotReadyError as error:
            self._problem(meaning(error).status, meaning(error).title, error.detail)

    def _problem(self, status: int, title: str, detail: str) -> None:
        body = problem(status, title, detail, uuid4().hex)
        self._send(status, PROBLEM_JSON, json.dumps(body).encode())

    def _send(self, status: int, media: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the library's name
        """Say nothing: probes come every few seconds."""
