"""The way in for every request that asks a model: refused at once where it would be late, and cut off when it is."""

import asyncio
from collections.abc import Callable, Mapping
from math import ceil, inf
from time import perf_counter
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.call import Call, plain_headers, read_call, working_for
from service.errors import DeadlineError, InvalidRequestError, OverloadedError, SlowClientError
from service.front import Front
from service.metrics import Metrics

# Where the contracts put their models; everything else (probes, documents, administration) has no deadline.
ASKS_A_MODEL: Final = ("/v1/", "/models/", "/v2/models/", "/predict")

# What the Door leaves in a scope's state: when the head had come, `perf_counter` seconds; the Call of what it does not
# refuse at once, None where the headers are wrong; why it refuses.
ARRIVED: Final = "arrived"
CALL: Final = "call"
REFUSED: Final = "refused"
# After a refusal for so long the next requests are looked at before they are parsed, see service/glance.py.
SHUT_SECONDS: Final = 0.1


def asks_a_model(scope: Scope) -> bool:
    """Whether this is a request to a model: it is counted, and has a deadline."""
    return is_to_a_model(scope["method"], scope["path"])


def is_to_a_model(method: str, path: str) -> bool:
    """The same by method and path."""
    # A server of one model answers Hugging Face's clients at its root.
    return method == "POST" and (path == "/" or path.startswith(ASKS_A_MODEL))


class Deadlines:
    """Reads X-Request-Timeout-Ms and X-Priority, and holds a request to them."""

    def __init__(
        self, app: ASGIApp, default_ms: int, check: Callable[[Call], None], front: Front, metrics: Metrics
    ) -> None:
        """Wrap `app`; `check` raises OverloadedError where a call has no chance, whatever its body."""
        self._app = app
        self._default_ms = default_ms
        self._check = check
        self._front = front
        self._inside = 0
        metrics.inflight.set_function(lambda: self._inside + front.at_the_door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says.

        Raises:
            InvalidRequestError: a header is wrong. OverloadedError: no chance; the body is not even read.
            DeadlineError, SlowClientError: the deadline passed after the body was read, or before.
        """
        if scope["type"] != "http" or not asks_a_model(scope):
            await self._app(scope, receive, send)
            return
        call = scope["state"].get(CALL) or read_call(plain_headers(scope["headers"]), self._default_ms, perf_counter())
        self._check(call)
        read = False

        async def receive_noted() -> Message:
            nonlocal read
            if read:
                return await receive()
            with self._front.elsewhere():
                message = await receive()
            read = not message.get("more_body", False)
            return message

        self._inside += 1
        try:
            with working_for(call):
                async with asyncio.timeout(call.deadline - perf_counter()) as limit:
                    await self._app(scope, receive_noted, send)
                self._front.answered()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._late(read) from error
        finally:
            self._inside -= 1

    def _late(self, read: bool) -> DeadlineError | SlowClientError:
        advice = "allow more with X-Request-Timeout-Ms, or ask for less at once"
        if read:
            return DeadlineError(f"the deadline passed before the answer was ready: {advice}")
        return SlowClientError(f"the deadline passed before the body had come: {advice}")


class Door:
    """What the server asks about a request whose head has come, before the application hears of it."""

    def __init__(self, default_ms: int, check: Callable[[Call], None], front: Front, refusing: ASGIApp) -> None:
        """Let in by `front`, or answer with `refusing`; `check` as for Deadlines."""
        self._default_ms = default_ms
        self._check = check
        self.front = front
        self._refusing = refusing
        self._refused_at = -inf

    @property
    def shut(self) -> bool:
        """Whether a request was refused just now: then the next ones probably are."""
        return perf_counter() - self._refused_at < SHUT_SECONDS

    def come(self, scope: Scope, app: ASGIApp, start: Callable[[ASGIApp], None]) -> None:
        """Call `start` with what shall answer, `app` or a refusal: at once, or when it is the turn of this request."""
        if not asks_a_model(scope):
            start(app)
            return

        async def begun(scope: Scope, receive: Receive, send: Send) -> None:
            with self.front.begun():
                await app(scope, receive, send)

        def refused(why: OverloadedError) -> None:
            scope["state"][REFUSED] = why
            start(self._refusing)

        now = scope["state"][ARRIVED] = perf_counter()
        try:
            call = read_call(plain_headers(scope["headers"]), self._default_ms, now)
        except InvalidRequestError:  # for the application, where the keys come first
            call = None
        if why := call and self._without_a_chance(call):
            refused(why)
        else:
            scope["state"][CALL] = call
            seconds = call.deadline - now if call else self._default_ms / 1e3
            self.front.come(lambda: start(begun), lambda: refused(self._too_late()), seconds)

    def refusal(self, headers: Mapping[str, str], now: float) -> OverloadedError | None:
        """Return why a request to a model that came at `now` is refused; None: `come` will see."""
        try:
            return self._without_a_chance(read_call(headers, self._default_ms, now))
        except InvalidRequestError:
            return None

    def _too_late(self) -> OverloadedError:
        """Return why a request is refused that was let wait: its turn did not come, and nothing was done for it."""
        self._refused_at = perf_counter()
        return OverloadedError(
            "its turn did not come before the deadline: try again later, or allow more with X-Request-Timeout-Ms",
            retry_after=max(1, ceil(self.front.seconds_at_the_door)),
        )

    def _without_a_chance(self, call: Call) -> OverloadedError | None:
        try:
            self._check(call)
        except OverloadedError as error:
            self._refused_at = perf_counter()
            error.__traceback__ = None  # whose frames keep the error
            return error
        return None


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001, as ASGI says
    """Raise why the Door refused a request."""
    raise scope["state"][REFUSED]
