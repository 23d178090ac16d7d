"""The process around the app: the port, the start, and a stop that loses nothing.

`python -m service.server` serves with the settings of the environment; `sparselane serve` becomes it.
"""

import errno
import logging
import signal
import socket
import sys
from time import monotonic, perf_counter
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.errors import CANNOT_START, StartupError
from service.loading import load_models
from service.logs import prepare
from service.middleware import Lifecycle
from service.settings import Settings, load_settings

log = logging.getLogger("sparselane")

# Above the 60 s after which common load balancers drop idle connections: they must be the ones to close.
KEEP_ALIVE_SECONDS: Final = 75


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM turns /readyz to 503, it listens for `notice` more seconds, and then the process exits 0."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, notice: float, greeting: str) -> None:
        """Log `greeting` once it listens."""
        super().__init__(config)
        self._lifecycle = lifecycle
        self._notice = notice
        self._greeting = greeting
        self._close_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets)
        if self.started:
            log.info("%s", self._greeting)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take SIGTERM or SIGINT; a second one, or SIGINT, skips the notice, and SIGINT after that skips the drain."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        again = self._lifecycle.stopping
        self._lifecycle.stopping = True
        self._close_at = monotonic() + (0 if again or sig == signal.SIGINT else self._notice)

    async def on_tick(self, counter: int) -> bool:
        """Begin to close once the notice has passed; called ten times a second."""
        if self._close_at is not None and monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)


def serve(settings: Settings) -> None:
    """Load the models and answer until SIGTERM or SIGINT, then finish what was accepted and return.

    Raises:
        StartupError: the port cannot be had, or there are no models.
    """
    listener = bind(settings.host, settings.port)
    with listener:
        began = perf_counter()
        models = load_models(settings.models_dir, settings.threads)
        app = create_app(settings, models)
        engines = {(model.details.get("isa"), model.details.get("threads")) for model in models.serving.values()}
        greeting = (
            f"listening on http://{_address(listener)} (try /docs); "
            f"models: {', '.join(f'{m.name} ({m.task})' for m in models.serving.values()) or 'none'}; "
            f"engine: {', '.join(f'{isa}, {threads} threads' for isa, threads in sorted(engines, key=str)) or 'none'}; "
            f"started in {perf_counter() - began:.2f} s"
        )
        _run(app, listener, settings, greeting)


def _run(app: FastAPI, listener: socket.socket, settings: Settings, greeting: str) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    server = Server(config, app.state.lifecycle, settings.notice_seconds, greeting)
    server.run(sockets=[listener])
    if not server.started:
        raise StartupError("the server could not start; the log above says why")
    log.info("stopped")


def bind(host: str, port: int) -> socket.socket:
    """Take the port before the models are loaded; nothing can connect until the server listens.

    Raises:
        StartupError: in use, not allowed, or no such address.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        hint = {
            errno.EADDRINUSE: "another program has this port; stop it, or choose one with SPARSELANE_PORT or --port",
            errno.EACCES: "ports below 1024 need privileges; choose another with SPARSELANE_PORT or --port",
        }.get(error.errno or 0, "set SPARSELANE_HOST or --host to an address of this machine")
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}; {hint}") from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> None:
    """Serve; exit with 2 and a line on stderr where that cannot start."""
    try:
        settings = load_settings()
        prepare(settings.log_level)
        serve(settings)
    except StartupError as error:
        print(f"sparselane: {error}", file=sys.stderr)  # noqa: T201, the log may not be set up
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    main()
