"""The process around the app: the port, the start, and a stop that loses nothing.

`python -m service.server` serves with the settings of the environment; `sparselane serve` becomes it.
"""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from time import monotonic, perf_counter
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from service.app import create_app
from service.connection import protocol
from service.errors import CANNOT_START, ModelRefusedError, StartupError, nearest
from service.loading import load_models
from service.logs import prepare
from service.middleware import Lifecycle
from service.models import Models
from service.priority import goes_first
from service.probes import Probes
from service.reloading import Reloader
from service.settings import Settings, load_settings, shown_settings

log = logging.getLogger("sparselane")

# Above the 60 s after which common load balancers drop idle connections: they must be the ones to close.
KEEP_ALIVE_SECONDS: Final = 75
# The exit code of a stop that cut off accepted requests.
CUT_OFF: Final = 3
# The longest that Python lets one thread keep the others waiting. A probe changes threads a few times, and must be done
# in 50 ms though tokenizing and JSON are busy.
SWITCH_SECONDS: Final = 0.001
# So many more objects than before make Python search for cycles. Answers, refusals and errors leave none; Python's own
# 700 came every fifth answer, and took 9 % of the CPU. A search holds up everything, in proportion to this.
SEARCHED_OBJECTS, SEARCHED_AGAIN = 5_000, 20
# uvloop accepts one connection in a turn of the event loop, and for each listening socket. A turn under load takes
# milliseconds, so a burst of new connections waited for seconds in the kernel, where no deadline counts.
ACCEPTED_AT_ONCE: Final = 32


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM turns /readyz to 503, and it listens for `notice` more seconds before it drains."""

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        reloader: Reloader,
        probes: Probes,
        notice: float,
        greeting: str,
    ) -> None:
        """Answer `probes` and log `greeting` once it listens; reload on SIGHUP."""
        super().__init__(config)
        self._lifecycle = lifecycle
        self._reloader = reloader
        self._reloads: set[asyncio.Task[None]] = set()
        self._probes = probes
        self._notice = notice
        self._greeting = greeting
        self._close_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
            goes_first(self._probes.listen())
            log.info("%s", self._greeting)

    def _hang_up(self) -> None:
        log.info("SIGHUP: reading the keys file and the models folder again")
        work = asyncio.create_task(self._reload())
        self._reloads.add(work)
        work.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        with suppress(ModelRefusedError):  # the log has it
            await self._reloader.reload_all()

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


def serve(settings: Settings) -> int:
    """Load the models and answer until SIGTERM or SIGINT, then finish what was accepted.

    Returns the exit code: 0, or CUT_OFF where the drain was too short for an accepted request.

    Raises:
        StartupError: a port cannot be had, or there are no models.
    """
    # Its default would end a server that still loads; see Server.startup for what it does from then on.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The kernel keeps a signal without a handler from process 1, which a container's server is; later uvicorn has one.
    signal.signal(signal.SIGTERM, _stop_loading)
    log.info("settings", extra={"fields": {"settings": shown_settings(settings)}})
    with bind(settings.host, settings.port) as listener, bind_probes(settings) as probe_listener:
        began = perf_counter()
        models = load_models(settings.models_dir, settings.threads, settings.default_models)
        warn_of_unknown_defaults(settings, models)
        app = create_app(settings, models)
        engines = {(model.details.get("isa"), model.details.get("threads")) for model in models.serving.values()}
        greeting = (
            f"listening on http://{_address(listener)} (open it in a browser), "
            f"probes on http://{_address(probe_listener)}; "
            f"models: {', '.join(f'{m.name} ({m.task})' for m in models.serving.values()) or 'none'}; "
            f"engine: {', '.join(f'{isa}, {threads} threads' for isa, threads in sorted(engines, key=str)) or 'none'}; "
            f"started in {perf_counter() - began:.2f} s"
        )
        with Probes(probe_listener, app.state.health) as probes:
            return _run(app, listener, probes, settings, greeting)


def warn_of_unknown_defaults(settings: Settings, models: Models) -> None:
    """Log the names that somebody set as default models and no artifact has: others answer in their place."""
    known = sorted({*models.serving, *models.failures})
    for name in settings.default_models if "default_models" in settings.model_fields_set else ():
        if name not in known:
            message = "SPARSELANE_DEFAULT_MODELS has %r, which is no model in %s%s"
            log.warning(message, name, settings.models_dir, nearest(name, known))


def _stop_loading(_signal: int, _frame: FrameType | None) -> None:
    log.info("SIGTERM before the server was ready: stopped")
    sys.exit(0)


def bind_probes(settings: Settings) -> socket.socket:
    """Take the probes' port; a free one, with a warning, where nobody asked for the default and it is taken."""
    try:
        return bind(settings.host, settings.probe_port, "PROBE_PORT")
    except StartupError as error:
        if "probe_port" in settings.model_fields_set:
            raise
        log.warning("%s; probes take a free one for now", error)
        return bind(settings.host, 0, "PROBE_PORT")


def _run(app: FastAPI, listener: socket.socket, probes: Probes, settings: Settings, greeting: str) -> int:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        http=protocol(settings.read_seconds, app.state.door, app.state.glance),
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    lifecycle = app.state.lifecycle
    server = Server(config, lifecycle, app.state.reloader, probes, settings.notice_seconds, greeting)
    sys.setswitchinterval(SWITCH_SECONDS)
    # What is there after the start stays. Python would search it for garbage a few times a second under load, and that
    # takes longer than an answer each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(SEARCHED_OBJECTS, SEARCHED_AGAIN)
    server.run(sockets=[listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))])
    gc.unfreeze()
    if not server.started:
        raise StartupError("the server could not start; the log above says why")
    if app.state.health.engine_stuck:
        # Python would join the engine's thread, for ever.
        logging.shutdown()
        os._exit(CUT_OFF)
    if lifecycle.cut_off:
        log.error("stopped; the drain of %d s cut off %d requests", settings.drain_seconds, lifecycle.cut_off)
        return CUT_OFF
    log.info("stopped")
    return 0


def bind(host: str, port: int, setting: str = "PORT") -> socket.socket:
    """Take the port before the models are loaded; nothing can connect until the server listens.

    `setting`: what chooses the port, for the message.

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
        choose = f"SPARSELANE_{setting} or --{setting.lower().replace('_', '-')}"
        hint = {
            errno.EADDRINUSE: f"another program has this port; stop it, or choose one with {choose}",
            errno.EACCES: f"ports below 1024 need privileges; choose another with {choose}",
        }.get(error.errno or 0, "set SPARSELANE_HOST or --host to an address of this machine")
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}; {hint}") from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> None:
    """Serve; exit as `serve` says, or with 2 and a line on stderr where that cannot start."""
    try:
        settings = load_settings()
        prepare(settings.log_level, settings.log_format)
        # The time at which each series was made: a quarter of the page, and in this format nobody reads it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        sys.exit(serve(settings))
    except StartupError as error:
        print(f"sparselane: {error}", file=sys.stderr)  # noqa: T201, the log may not be set up
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    main()
