"""What the queue must know of the request that it works for: by when, how urgent."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final

from service.errors import InvalidRequestError

# Longer waits belong to a job queue, not to an open connection.
LONGEST_TIMEOUT_MS: Final = 600_000


class Lane(StrEnum):
    """Which of the two queues a request waits in."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass
class Call:
    """One request. `deadline`: when its answer is worth nothing any more, in `perf_counter` seconds."""

    deadline: float = inf
    lane: Lane = Lane.INTERACTIVE


# A context variable, so that every contract's routes and the engine's queue see it without passing it on.
_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call:
    """Return the call that this task works for; outside of a request one that may take for ever."""
    return _current.get() or Call()


@contextmanager
def working_for(call: Call) -> Iterator[None]:
    """Make `call` the current one inside the block."""
    before = _current.set(call)
    try:
        yield
    finally:
        _current.reset(before)


def plain_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of an ASGI scope by their lower-case names, the last of each.

    Starlette's look-up decodes them all for each name and raises inside for one that is not there: refusing a request
    took a sixth longer by it.
    """
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def read_call(headers: Mapping[str, str], default_ms: int, now: float) -> Call:
    """Return what the headers of a request that arrived at `now` want.

    Raises:
        InvalidRequestError: X-Request-Timeout-Ms is no whole number from 1 on, or X-Priority no lane.
    """
    return Call(now + _timeout_ms(headers.get("x-request-timeout-ms"), default_ms) / 1e3, _lane(headers))


def _timeout_ms(given: str | None, default_ms: int) -> int:
    if given is None:
        return default_ms
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= LONGEST_TIMEOUT_MS and len(given) < 10):
        raise InvalidRequestError.at(
            "",
            f"X-Request-Timeout-Ms must be a whole number of milliseconds, 1 to {LONGEST_TIMEOUT_MS}",
            value=given,
            limit=LONGEST_TIMEOUT_MS,
        )
    return int(given)


def _lane(headers: Mapping[str, str]) -> Lane:
    given = headers.get("x-priority")
    if given is None:
        return Lane.INTERACTIVE
    if given not in list(Lane):
        raise InvalidRequestError.at("", f"X-Priority must be one of {', '.join(Lane)}", value=given)
    return Lane(given)
