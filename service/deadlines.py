"""The way in for every request that asks a model, as plain ASGI: refused at once where it would be late, and cut off
when it is.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.call import Call, read_call, working_for
from service.errors import DeadlineError, SlowClientError
from service.front import Front
from service.metrics import Metrics

# Where the contracts put their models; everything else (probes, documents, administration) has no deadline.
ASKS_A_MODEL: Final = ("/v1/", "/models/", "/v2/models/", "/predict")


def asks_a_model(scope: Scope) -> bool:
    """Whether this is a request to a model: it is counted, and has a deadline."""
    path = scope["path"]  # a server of one model answers Hugging Face's clients at its root
    return bool(scope["method"] == "POST" and (path == "/" or path.startswith(ASKS_A_MODEL)))


class Deadlines:
    """Reads X-Request-Timeout-Ms and X-Priority, and holds a request to them."""

    def __init__(
        self, app: ASGIApp, default_ms: int, entered: Callable[[Call], AbstractContextManager[Front]], metrics: Metrics
    ) -> None:
        """Wrap `app`; `entered` counts a call, or raises OverloadedError where it has no chance, whatever its body."""
        self._app = app
        self._default_ms = default_ms
        self._entered = entered
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says.

        Raises:
            InvalidRequestError: a header is wrong. OverloadedError: no chance; the body is not even read.
            DeadlineError, SlowClientError: the deadline passed after the body was read, or before.
        """
        if scope["type"] != "http" or not asks_a_model(scope):
            await self._app(scope, receive, send)
            return
        call = read_call(Headers(scope=scope), self._default_ms, perf_counter())
        read = False

        async def receive_noted() -> Message:
            nonlocal read
            if read:
                return await receive()
            with front.elsewhere():
                message = await receive()
            read = not message.get("more_body", False)
            return message

        with working_for(call), self._entered(call) as front, self._metrics.inflight.track_inprogress():
            try:
                async with asyncio.timeout(call.deadline - perf_counter()) as limit:
                    await self._app(scope, receive_noted, send)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise self._late(read) from error

    def _late(self, read: bool) -> DeadlineError | SlowClientError:
        advice = "allow more with X-Request-Timeout-Ms, or ask for less at once"
        if read:
            return DeadlineError(f"the deadline passed before the answer was ready: {advice}")
        return SlowClientError(f"the deadline passed before the body had come: {advice}")
